"""MNIST and data sets of the same format: 28x28 grey images of ten classes, in IDX files."""

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from vae_pyro.data.dataset import Binarisation, Dataset, Split, unlabelled
from vae_pyro.data.files import DownloadedSource
from vae_pyro.data.larochelle import read_larochelle
from vae_pyro.data.splits import first_and_last
from vae_pyro.errors import DataError
from vae_pyro.files import read_regular, regular_size

# Each of these data sets has four files; each file is an array of bytes with this shape.
_SHAPES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}


@dataclass(frozen=True)
class MNIST(DownloadedSource):
    """MNIST: 50,000 train, 10,000 valid (the last of the official 60,000), 10,000 test; 28x28.

    With ``binarisation="larochelle"``, the published files of binary images are read instead; they
    have no labels.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        root: see ``DownloadedSource``.
        split: how many images are for training, the first, and for validation, the last of the
            60,000: ``50000/10000``; Burda et al. (2016) have ``59600/400``.

    Source: LeCun et al. (1998); binarised once, Larochelle and Murray (2011).
    """

    split: str = field(default="50000/10000", kw_only=True)

    binarisations: ClassVar[tuple[Binarisation, ...]] = ("dynamic", "static", "larochelle")

    name: ClassVar[str] = "MNIST"
    subfolder: ClassVar[str] = "MNIST/raw"
    md5: ClassVar[dict[str, str]] = {  # of the unpacked files
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    }

    def _read(self) -> Dataset:
        is_binary = self.binarisation == "larochelle"
        official, test = self._binary() if is_binary else self._grey()
        train, valid = first_and_last(official, self.split)
        return Dataset(train, valid, test, num_levels=2 if is_binary else 256)

    def _binary(self) -> tuple[Split, Split]:
        """The images that are not for the test, and those that are, as published by Larochelle."""
        train, valid, test = (
            read_larochelle(Path(self.root), part) for part in ("train", "valid", "test")
        )
        return unlabelled(torch.cat([train, valid])), unlabelled(test)

    def _grey(self) -> tuple[Split, Split]:
        """Likewise, from the original files."""
        from torchvision import datasets
        from torchvision.datasets.mnist import read_image_file, read_label_file

        missing = [name for name in _SHAPES if not (self.folder / name).exists()]
        for name in _SHAPES.keys() - missing:
            self._verify(self.folder / name)
        if missing:
            with self.downloading(f"{', '.join(missing)} (or .gz of it)"):
                getattr(datasets, self.name)(self.root, download=True)
        for name in missing:
            self._verify(self.folder / name)
        official, test = (
            Split(
                read_image_file(str(self.folder / f"{part}-images-idx3-ubyte")).unsqueeze(1),
                read_label_file(str(self.folder / f"{part}-labels-idx1-ubyte")),
            )
            for part in ("train", "t10k")
        )
        return official, test

    def _verify(self, path: Path) -> None:
        # Before torchvision reads it, because torchvision allocates the size in the header.
        header = _idx_header(_SHAPES[path.name])
        size = len(header) + math.prod(_SHAPES[path.name])
        try:
            found = regular_size(path)
            content = read_regular(path, size) if found == size else b""
        except OSError as error:
            raise DataError(
                f"{path.resolve()} cannot be read ({error.strerror or error}): check its "
                "permissions, or use data=digits."
            ) from error
        damage = ""
        if found != size:
            damage = f"{found:,} bytes of {size:,}"
        elif not content.startswith(header):
            damage = f"its header is {content[: len(header)].hex()}, not {header.hex()}"
        elif path.name in self.md5:
            md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
            damage = f"MD5 {md5}" if md5 != self.md5[path.name] else ""
        if damage:
            raise DataError(
                f"{path.resolve()} is truncated or damaged ({damage}): delete it and run again to "
                "download it, or use data=digits."
            )


def _idx_header(shape: tuple[int, ...]) -> bytes:
    """The first bytes of an IDX file of an array of bytes: 0, 0, 8, its rank, and its shape."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


@dataclass(frozen=True)
class FashionMNIST(MNIST):
    """Fashion-MNIST: articles of clothing, with the splits of MNIST.

    torchvision checks the MD5 sums of a download; other files are checked by size and header.

    Source: Xiao et al. (2017).
    """

    binarisations: ClassVar[tuple[Binarisation, ...]] = DownloadedSource.binarisations
    name: ClassVar[str] = "FashionMNIST"
    subfolder: ClassVar[str] = "FashionMNIST/raw"
    md5: ClassVar[dict[str, str]] = {}


@dataclass(frozen=True)
class KMNIST(MNIST):
    """Kuzushiji-MNIST: ten hiragana in cursive script, with the splits of MNIST.

    torchvision checks the MD5 sums of a download; other files are checked by size and header.

    Source: Clanuwat et al. (2018).
    """

    binarisations: ClassVar[tuple[Binarisation, ...]] = DownloadedSource.binarisations
    name: ClassVar[str] = "KMNIST"
    subfolder: ClassVar[str] = "KMNIST/raw"
    md5: ClassVar[dict[str, str]] = {}
