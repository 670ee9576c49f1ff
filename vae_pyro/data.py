"""Data sets as integer grey levels in memory, their splits, binarisation, and batches."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from vae_pyro.errors import DataError
from vae_pyro.randomness import RandomStream

Binarisation = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        levels: grey levels ``0 .. max_level``, ``uint8``, shape ``(N, C, H, W)``.
        labels: class labels, ``int64``, shape ``(N,)``.
    """

    levels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.levels)


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test images of one source, all in memory.

    Attributes:
        train, valid, test: the splits.
        max_level: the brightest level a pixel can have (16 for digits, 255 for MNIST).
        binarisation_seed: fixes which binary images are validated and tested on, whatever the
            job's own seed, so that all jobs are scored on the same images.
    """

    train: Split
    valid: Split
    test: Split
    max_level: int
    binarisation_seed: int = 0

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.levels.shape[1:]
        return channels, height, width

    @property
    def checksum(self) -> str:
        """SHA-256 over every level and label of every split, in hexadecimal."""
        digest = hashlib.sha256(f"max_level={self.max_level}".encode())
        for split in (self.train, self.valid, self.test):
            for tensor in (split.levels, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Dataset":
        """The same images, resident on ``device``."""
        return self.map_levels(lambda levels: levels.to(device))

    def map_levels(self, change: Callable[[Tensor], Tensor]) -> "Dataset":
        """The same data set with every split's levels changed, labels following their device."""

        def changed(split: Split) -> Split:
            levels = change(split.levels)
            return Split(levels, split.labels.to(levels.device))

        return replace(
            self,
            train=changed(self.train),
            valid=changed(self.valid),
            test=changed(self.test),
        )

    def held_out_stream(self, split: Literal["valid", "test"]) -> RandomStream:
        """The randomness with which a held-out split is prepared: the same in every job.

        On the CPU whatever the job's device, because a GPU draws other numbers from one seed.
        """
        return RandomStream(f"prepare {split}", self.binarisation_seed)


def binarise(levels: Tensor, max_level: int, generator: torch.Generator) -> Tensor:
    """Draw each pixel anew: x = 1 with probability ``levels / max_level``.

    The draw compares integers, u ~ Uniform{0, .., max_level - 1} and x = [u < level], so the
    probability is the ratio itself and not the nearest multiple of 1/256.

    Args:
        levels: ``uint8`` of any shape, values ``0 .. max_level``.
        max_level: the level that is always drawn as 1.
        generator: on the device of ``levels``.

    Returns:
        float32 zeros and ones of the same shape.

    Source: Salakhutdinov and Murray (2008); Burda et al. (2016), section 5.
    """
    draws = torch.empty_like(levels).random_(0, max_level, generator=generator)
    return (draws < levels).to(torch.float32)


def batches(
    levels: Tensor,
    prepare: Callable[[Tensor], Tensor],
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """One epoch: every image once, in a new random order, prepared batch by batch.

    Args:
        levels: ``(N, C, H, W)``.
        prepare: levels of one batch -> the tensor that the likelihood scores.
        batch_size: the last batch is shorter where N is not a multiple.
        generator: of the order, on the device of ``levels``.

    Yields:
        prepared batches, ``(batch, C, H, W)``.
    """
    order = torch.randperm(len(levels), generator=generator, device=levels.device)
    for index in order.split(batch_size):
        yield prepare(levels[index])


@dataclass(frozen=True)
class ImageSource(ABC):
    """Where images come from: one subclass and one YAML file per data set.

    Args:
        binarisation: for binary likelihoods; ``dynamic`` draws training pixels anew for every
            batch, ``static`` draws them once.
        binarisation_seed: fixes the static draw, and the one of the held-out splits.
    """

    binarisation: Binarisation = "dynamic"
    binarisation_seed: int = 0

    def load(self) -> Dataset:
        """Read, split and, for static binarisation, binarise once.

        Raises:
            DataError: where the files are missing or damaged.
        """
        dataset = self._read()
        if self.binarisation == "static":
            stream = RandomStream("static binarisation", self.binarisation_seed)

            # Levels 0 and max_level: a later draw with probability level / max_level is certain.
            def binary(levels: Tensor) -> Tensor:
                drawn = binarise(levels, dataset.max_level, stream.generator)
                return drawn.mul(dataset.max_level).to(torch.uint8)

            dataset = dataset.map_levels(binary)
        return replace(dataset, binarisation_seed=self.binarisation_seed)

    @abstractmethod
    def _read(self) -> Dataset: ...


@dataclass(frozen=True)
class Digits(ImageSource):
    """The 1,797 real 8x8 digits that come with scikit-learn: 1,197 / 300 / 300, stratified.

    Source: UCI, Optical Recognition of Handwritten Digits (its test part), levels 0..16.
    """

    def _read(self) -> Dataset:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        levels = torch.from_numpy(images.astype("uint8")).reshape(-1, 1, 8, 8)
        targets = torch.from_numpy(labels.astype("int64"))
        index = list(range(len(levels)))
        rest, test = train_test_split(index, test_size=300, stratify=labels, random_state=0)
        train, valid = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=0)
        train_split, valid_split, test_split = (
            Split(levels[part], targets[part]) for part in (train, valid, test)
        )
        return Dataset(train_split, valid_split, test_split, max_level=16)


# MD5 of the four unpacked files whose .gz carry the sums that torchvision checks on download.
_MNIST_MD5 = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True)
class MNIST(ImageSource):
    """MNIST: 50,000 train, 10,000 valid (the last of the official 60,000), 10,000 test; 28x28.

    Args:
        root: folder that holds ``MNIST/raw``, torchvision's layout. Files that are there are
            checked and used; missing ones are downloaded.

    Source: LeCun et al. (1998).
    """

    root: str = "data"

    def _read(self) -> Dataset:
        folder = Path(self.root) / "MNIST" / "raw"
        missing = [name for name in _MNIST_MD5 if not (folder / name).is_file()]
        for name in _MNIST_MD5.keys() - missing:
            _verify(folder / name, _MNIST_MD5[name])
        if missing:
            self._download(folder, missing)
        for name in missing:
            _verify(folder / name, _MNIST_MD5[name])

        from torchvision.datasets.mnist import read_image_file, read_label_file

        train_levels, test_levels = (
            read_image_file(str(folder / f"{part}-images-idx3-ubyte")).unsqueeze(1)
            for part in ("train", "t10k")
        )
        train_labels, test_labels = (
            read_label_file(str(folder / f"{part}-labels-idx1-ubyte")) for part in ("train", "t10k")
        )
        return Dataset(
            train=Split(train_levels[:50_000], train_labels[:50_000]),
            valid=Split(train_levels[50_000:], train_labels[50_000:]),
            test=Split(test_levels, test_labels),
            max_level=255,
        )

    def _download(self, folder: Path, missing: list[str]) -> None:
        from torchvision import datasets

        new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            datasets.MNIST(self.root, download=True)
        except (RuntimeError, OSError) as error:
            for path in new_folders:
                with suppress(OSError):  # not empty: a part of the download is kept
                    path.rmdir()
            raise DataError(
                f"MNIST is not in {folder.resolve()} and could not be downloaded: missing "
                f"{', '.join(missing)}. Put these files (or their .gz) there, point data.root or "
                f"VAE_PYRO_DATA at a folder that holds MNIST/raw, or use data=digits, which needs "
                f"no download."
            ) from error


def _verify(path: Path, md5: str) -> None:
    try:
        found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    except OSError as error:
        raise DataError(
            f"{path.resolve()} cannot be read ({error.strerror}): check its permissions, or use "
            "data=digits."
        ) from error
    if found != md5:
        raise DataError(
            f"{path.resolve()} is truncated or damaged ({path.stat().st_size:,} bytes, MD5 "
            f"{found}, expected {md5}): delete it and run again to download it, or use data=digits."
        )
