"""A data set in memory: splits, what is drawn of them, batches, and where they come from."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vae_pyro.errors import DataError
from vae_pyro.likelihoods.preparation import binarise
from vae_pyro.randomness import RandomStream

Binarisation = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: ``(N, C, H, W)``; grey levels ``0 .. num_levels - 1`` as ``uint8``, or real numbers
            as ``float32`` where the data set has no levels.
        labels: class labels, ``int64``, shape ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def of_classes(self, classes: Sequence[int]) -> "Split":
        """The images with one of these labels, in their order.

        Raises:
            DataError: where there are none.
        """
        kept = torch.isin(self.labels, torch.tensor(classes, device=self.labels.device))
        if not kept.any():
            raise DataError(
                f"no image has a label of {list(classes)}; there are "
                f"{self.labels.unique().tolist()}: choose among these (data.classes)"
            )
        return Split(self.images[kept], self.labels[kept])


@dataclass(frozen=True)
class Dataset:
    """Train, validation and test images of one source, all in memory.

    Attributes:
        train, valid, test: the splits.
        num_levels: how many values a pixel can have (17 for digits, 256 for MNIST); None where
            pixels are real numbers.
        preparation_seed: fixes which x is drawn of the held-out images (their binarisation or
            dequantisation), whatever the job's own seed, so that all jobs are scored on the same x.
        log_prob: x ``(N, C, H, W)`` -> log p(x) under the distribution that made the images, nats,
            ``(N,)``; None where nobody knows it.
    """

    train: Split
    valid: Split
    test: Split
    num_levels: int | None
    preparation_seed: int = 0
    log_prob: Callable[[Tensor], Tensor] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def checksum(self) -> str:
        """SHA-256 over every image and label of every split, in hexadecimal."""
        digest = hashlib.sha256(f"num_levels={self.num_levels}".encode())
        for split in (self.train, self.valid, self.test):
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Dataset":
        """The same images, resident on ``device``."""
        return self.map(lambda split: Split(split.images.to(device), split.labels.to(device)))

    def binarised_once(self) -> "Dataset":
        """The same data set after one binary draw of every image, its pixels at the two extremes.

        A later draw with probability level / (num_levels - 1) is then certain.
        """
        assert self.num_levels is not None
        num_levels = self.num_levels
        stream = RandomStream("static binarisation", self.preparation_seed)

        def binary(split: Split) -> Split:
            drawn = binarise(split.images.cpu(), num_levels, stream.generator)
            levels = drawn.mul(num_levels - 1).to(torch.uint8)
            return Split(levels.to(split.images.device), split.labels)

        return self.map(binary)

    def held_out_stream(self, split: Literal["valid", "test"]) -> RandomStream:
        """The randomness with which a held-out split is prepared: the same in every job.

        On the CPU whatever the job's device, because a GPU draws other numbers from one seed.
        """
        return RandomStream(f"prepare {split}", self.preparation_seed)

    def prepared(self, split: Any, vae: Any, draws: int = 1) -> Tensor:
        images = getattr(self, split).images
        generator = self.held_out_stream(split).generator
        x = [vae.model.likelihood.prepare(images.cpu(), generator) for _ in range(draws)]
        return torch.cat(x).to(vae.model.origin.device)

    def check(self) -> None:
        """Refuse images that no likelihood can score, whichever split they are in.

        Raises:
            DataError: where a split is empty, images or labels have a wrong shape or type, or a
                pixel is no level or no finite number.
        """
        levels = self.num_levels
        if levels is not None and not 2 <= levels <= 256:
            raise DataError(f"num_levels must be from 2 to 256, or None, but is {levels}")
        shape = tuple(self.train.images.shape[1:])
        for name in ("train", "valid", "test"):
            images, labels = getattr(self, name).images, getattr(self, name).labels
            if images.ndim != 4 or images.numel() == 0:
                raise DataError(
                    f"the images of the {name} split must have the shape (N, C, H, W), each at "
                    f"least 1, but it is {tuple(images.shape)}: reshape them, or give the split "
                    "some images"
                )
            if images.shape[1:] != shape:
                raise DataError(
                    f"an image of the {name} split has the shape {tuple(images.shape[1:])}, of the "
                    f"train split {shape}: all splits need images of one shape"
                )
            if labels.shape != (len(images),):
                raise DataError(
                    f"the {name} split has {len(images):,} images but labels of the shape "
                    f"{tuple(labels.shape)}: give one label per image (zeros where there are none)"
                )
            self._check_pixels(name, images)

    def _check_pixels(self, name: str, images: Tensor) -> None:
        kind = torch.float32 if self.num_levels is None else torch.uint8
        if images.dtype != kind:
            raise DataError(
                f"the images of the {name} split are {images.dtype}, but must be {kind}, because "
                f"num_levels is {self.num_levels}: convert them (images.to({kind})), or change "
                "num_levels"
            )
        if self.num_levels is None:
            # One pass: a sum is finite where all are, but for an overflow, which is looked into.
            bad = 0 if images.sum().isfinite() else int((~images.isfinite()).sum())
            wanted = "finite numbers: remove or replace what is NaN or infinite"
        else:
            top = self.num_levels - 1
            bad = 0 if int(images.max()) <= top else int((images > top).sum())
            wanted = f"levels from 0 to {top}: rescale them, or raise num_levels"
        if bad:
            raise DataError(
                f"{bad:,} of {images.numel():,} pixel values of the {name} split are not {wanted}"
            )

    def map(self, change: Callable[[Split], Split]) -> "Dataset":
        """The same data set with every split changed: train, valid, test, in this order."""
        return replace(
            self, train=change(self.train), valid=change(self.valid), test=change(self.test)
        )


def batches(
    images: Tensor,
    prepare: Callable[[Tensor], Tensor],
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[Tensor]:
    """One epoch: every image once, in a new random order, prepared batch by batch.

    Args:
        images: ``(N, C, H, W)``.
        prepare: images of one batch -> the x that the likelihood scores.
        batch_size: the last batch is shorter where N is not a multiple.
        generator: of the order, on the device of ``images``.

    Yields:
        prepared batches, ``(batch, C, H, W)``.
    """
    order = torch.randperm(len(images), generator=generator, device=images.device)
    for index in order.split(batch_size):
        yield prepare(images.index_select(0, index))  # ten times as fast as images[index]


@dataclass(frozen=True)
class ImageSource(ABC):
    """Where images come from: one subclass and one YAML file per data set.

    Args:
        binarisation: for binary likelihoods only; ``dynamic`` draws training pixels anew for every
            batch, ``static`` draws them once.
        preparation_seed: fixes the static draw, and what is drawn of the held-out splits.
        classes: labels of the images that are kept, in every split; None for all.
    """

    binarisation: Binarisation = "dynamic"
    preparation_seed: int = 0
    classes: tuple[int, ...] | None = field(default=None, kw_only=True)

    def load(self) -> Dataset:
        """Read, split, and keep the classes that were asked for.

        Raises:
            DataError: where the files are missing or damaged, a split has no image of the classes,
                or ``Dataset.check`` refuses what was read.
        """
        dataset = replace(self._read(), preparation_seed=self.preparation_seed)
        dataset.check()
        classes = self.classes
        return dataset if classes is None else dataset.map(lambda split: split.of_classes(classes))

    @abstractmethod
    def _read(self) -> Dataset: ...
