"""MNIST and the data sets made in its likeness: 28x28 grey images in IDX files, ten classes."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.files import DownloadedSource
from vae_pyro.errors import DataError

# Every member of the family has these four files, of these sizes in bytes.
_SIZES = {
    "train-images-idx3-ubyte": 47_040_016,
    "train-labels-idx1-ubyte": 60_008,
    "t10k-images-idx3-ubyte": 7_840_016,
    "t10k-labels-idx1-ubyte": 10_008,
}


@dataclass(frozen=True)
class MNIST(DownloadedSource):
    """MNIST: 50,000 train, 10,000 valid (the last of the official 60,000), 10,000 test; 28x28.

    Source: LeCun et al. (1998).
    """

    name: ClassVar[str] = "MNIST"
    subfolder: ClassVar[str] = "MNIST/raw"
    md5: ClassVar[dict[str, str]] = {  # of the unpacked files
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    def _read(self) -> Dataset:
        from torchvision import datasets
        from torchvision.datasets.mnist import read_image_file, read_label_file

        missing = [name for name in _SIZES if not (self.folder / name).is_file()]
        for name in _SIZES.keys() - missing:
            self._verify(self.folder / name)
        if missing:
            with self.downloading(f"{', '.join(missing)} (or .gz of it)"):
                getattr(datasets, self.name)(self.root, download=True)
        for name in missing:
            self._verify(self.folder / name)
        train_images, test_images = (
            read_image_file(str(self.folder / f"{part}-images-idx3-ubyte")).unsqueeze(1)
            for part in ("train", "t10k")
        )
        train_labels, test_labels = (
            read_label_file(str(self.folder / f"{part}-labels-idx1-ubyte"))
            for part in ("train", "t10k")
        )
        return Dataset(
            train=Split(train_images[:50_000], train_labels[:50_000]),
            valid=Split(train_images[50_000:], train_labels[50_000:]),
            test=Split(test_images, test_labels),
            num_levels=256,
        )

    def _verify(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path.resolve()} cannot be read ({error.strerror}): check its permissions, or "
                "use data=digits."
            ) from error
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if len(content) != _SIZES[path.name] or md5 != self.md5.get(path.name, md5):
            raise DataError(
                f"{path.resolve()} is truncated or damaged ({len(content):,} bytes of "
                f"{_SIZES[path.name]:,}, MD5 {md5}): delete it and run again to download it, or "
                "use data=digits."
            )


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """Zalando's articles of clothing, split as MNIST is.

    A download is checked against torchvision's MD5 sums; files found unpacked, by their size.

    Source: Xiao et al. (2017).
    """

    name: ClassVar[str] = "FashionMNIST"
    subfolder: ClassVar[str] = "FashionMNIST/raw"
    md5: ClassVar[dict[str, str]] = {}


@dataclass(frozen=True)
class KMNIST(MNIST):
    """Kuzushiji-MNIST: ten hiragana in cursive script, split as MNIST is.

    A download is checked against torchvision's MD5 sums; files found unpacked, by their size.

    Source: Clanuwat et al. (2018).
    """

    name: ClassVar[str] = "KMNIST"
    subfolder: ClassVar[str] = "KMNIST/raw"
    md5: ClassVar[dict[str, str]] = {}
