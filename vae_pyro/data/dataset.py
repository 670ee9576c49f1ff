"""A data set in memory: its splits, batches, the x that a likelihood scores, and its source."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from vae_pyro.errors import DataError
from vae_pyro.likelihoods import Likelihood, Support
from vae_pyro.likelihoods.preparation import binarise
from vae_pyro.randomness import RandomStream

Binarisation = Literal["dynamic", "static", "larochelle"]
"""``larochelle``: the images are the published binary ones, so that they are never drawn."""
SplitName = Literal["train", "valid", "test"]

_PREPARED_AT_ONCE = 2**20  # pixels: fewer cost a call for every batch, more leave the cache


class HasLikelihood(Protocol):
    """What images are prepared for: a ``VAE``."""

    @property
    def likelihood(self) -> Likelihood: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def device(self) -> torch.device: ...


@dataclass(frozen=True)
class Split:
    """Images of one split.

    Attributes:
        images: ``(N, C, H, W)``; grey levels ``0 .. num_levels - 1`` as ``uint8``, or real numbers
            ``float32`` where the pixels are real-valued.
        labels: class labels, ``int64``, shape ``(N,)``.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def of_classes(self, classes: Sequence[int]) -> "Split":
        """The images with one of these labels, in the same order.

        Raises:
            DataError: where no image has one.
        """
        kept = torch.isin(self.labels, torch.tensor(classes, device=self.labels.device))
        if not kept.any():
            raise DataError(
                f"no image has a label of {list(classes)}; there are "
                f"{self.labels.unique().tolist()}: choose among these (data.classes)"
            )
        return Split(self.images[kept], self.labels[kept])


def unlabelled(images: Tensor) -> Split:
    """Images of a source that has no labels: all are 0."""
    return Split(images, torch.zeros(len(images), dtype=torch.int64))


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test images of one source, all in memory.

    Attributes:
        train, valid, test: the splits.
        num_levels: how many values a pixel can have (17 for digits, 256 for MNIST); None where
            pixels are real-valued.
        preparation_seed: fixes how the held-out images are binarised or dequantised. It does not
            depend on the training seed, so all models are scored on the same x.
        log_prob: x ``(N, C, H, W)`` -> log p(x) under the distribution that made the images, nats,
            ``(N,)``; None where it is unknown.
        binarisation: for binary likelihoods: ``dynamic``, anew for every batch of training images;
            or ``static``, once. See ``for_likelihood``. With ``larochelle`` the images are binary.

    >>> import vae_pyro as vp
    >>> data = vp.data.Digits().load()
    >>> data.image_shape, data.num_levels, len(data.train), len(data.test)
    ((1, 8, 8), 17, 1197, 300)
    """

    train: Split
    valid: Split
    test: Split
    num_levels: int | None
    preparation_seed: int = 0
    log_prob: Callable[[Tensor], Tensor] | None = None
    binarisation: Binarisation = "dynamic"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def checksum(self) -> str:
        """SHA-256 over every image and label of every split, in hexadecimal."""
        return self._digest(self.train, self.valid, self.test)

    @property
    def test_checksum(self) -> str:
        """The same over the test images: two data sets with equal ones can be compared."""
        return self._digest(self.test)

    def _digest(self, *splits: Split) -> str:
        digest = hashlib.sha256(f"num_levels={self.num_levels}".encode())
        for split in splits:
            for tensor in (split.images, split.labels):
                digest.update(str(tuple(tensor.shape)).encode())
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> "Dataset":
        """The same images, resident on ``device``."""
        return self.map(lambda split: Split(split.images.to(device), split.labels.to(device)))

    def binarised_once(self) -> "Dataset":
        """The same data set, binarised once: every pixel is then level 0 or num_levels - 1.

        Binarising these images again always gives the same x. This is static binarisation.
        """
        assert self.num_levels is not None
        num_levels = self.num_levels
        stream = RandomStream("static binarisation", self.preparation_seed)

        def binary(split: Split) -> Split:
            drawn = binarise(split.images.cpu(), num_levels, stream.generator)
            levels = drawn.mul(num_levels - 1).to(torch.uint8)
            return Split(levels.to(split.images.device), split.labels)

        return replace(self.map(binary), binarisation="dynamic")

    def for_likelihood(self, likelihood: Likelihood) -> "Dataset":
        """The data set that a likelihood is trained on and scores.

        Binarised once where ``binarisation`` is static and the likelihood is binary; otherwise
        unchanged.
        """
        is_static = self.binarisation == "static" and likelihood.support is Support.BINARY
        return self.binarised_once() if is_static else self

    def prepared(
        self,
        split: SplitName,
        vae: HasLikelihood | Likelihood,
        num_images: int | None = None,
        *,
        draws: int = 1,
    ) -> Tensor:
        """The x that a VAE scores: the split's images, binarised, dequantised or rescaled.

        The x is the same at every call and, of the validation and test images, the x of the
        command's own metrics.

        Args:
            split: ``"train"``, ``"valid"`` or ``"test"``.
            vae: the VAE that will score x, or its likelihood.
            num_images: return only the first ones; None for all of them.
            draws: how often each image is binarised or dequantised, one block of x after another.

        Returns:
            x, float32, ``(draws N, C, H, W)``, on the VAE's device.

        Raises:
            DataError: where the VAE is for images of another shape or another number of levels.
            ValueError: where there is no such split, or it has fewer images.

        >>> import vae_pyro as vp
        >>> data = vp.data.Digits().load()
        >>> x = data.prepared("test", vp.likelihoods.Bernoulli(data.num_levels), num_images=10)
        >>> x.shape, x.unique()
        (torch.Size([10, 1, 8, 8]), tensor([0., 1.]))
        """
        if split not in get_args(SplitName):
            raise ValueError(f"split: must be one of {get_args(SplitName)}, got {split!r}")
        likelihood = vae if isinstance(vae, Likelihood) else vae.likelihood
        size = len(getattr(self, split))
        if num_images is not None and not 1 <= num_images <= size:
            raise ValueError(f"num_images: the {split} split has {size:,} images, got {num_images}")
        if likelihood.num_levels != self.num_levels:
            raise DataError(
                f"the likelihood was built with num_levels={likelihood.num_levels}, but these data "
                f"have num_levels={self.num_levels}: build it with num_levels=data.num_levels"
            )
        images: Tensor = getattr(self.for_likelihood(likelihood), split).images
        device = images.device
        if not isinstance(vae, Likelihood):
            device = vae.device
            if vae.image_shape != self.image_shape:
                raise DataError(
                    f"the VAE was built for images of the shape {vae.image_shape}, but these data "
                    f"have {self.image_shape}: build it with image_shape=data.image_shape"
                )
        generator = self.held_out_stream(split).generator
        # All images, because the first x depend on how many are drawn together.
        x = [likelihood.prepare(images.cpu(), generator)[:num_images] for _ in range(draws)]
        return torch.cat(x).to(device)

    def held_out_stream(self, split: SplitName) -> RandomStream:
        """The random numbers that prepare a split, the same for every training seed.

        They are drawn on the CPU, because a GPU draws other numbers from the same seed.
        """
        return RandomStream(f"prepare {split}", self.preparation_seed)

    def check(self) -> None:
        """Refuse images that no likelihood can score, in any split.

        Raises:
            DataError: where a split is empty, images or labels have a wrong shape or dtype, or a
                pixel is not a level or not finite.
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
            # One pass over all pixels: their sum is finite only if they are. If the sum overflows,
            # the pixels are counted one by one.
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
    """One epoch of batches: every image once, in a new random order.

    Args:
        images: ``(N, C, H, W)``.
        prepare: images -> the x that the likelihood scores, for several batches at once.
        batch_size: the last batch is shorter where N is not a multiple of it.
        generator: draws the order, on the device of ``images``.

    Yields:
        prepared batches, ``(batch, C, H, W)``.

    >>> import torch, vae_pyro as vp
    >>> images, generator = torch.zeros(10, 1, 2, 2), torch.Generator().manual_seed(0)
    >>> [len(x) for x in vp.data.batches(images, lambda x: x, 4, generator)]
    [4, 4, 2]
    """
    order = torch.randperm(len(images), generator=generator, device=images.device)
    at_once = batch_size * max(1, _PREPARED_AT_ONCE // (batch_size * images[:1].numel()))
    for index in order.split(at_once):
        # index_select is ten times as fast as images[index].
        yield from prepare(images.index_select(0, index)).split(batch_size)
