"""What every likelihood is: a family of distributions over images, and the kind of x it scores."""

import math
from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from vae_pyro.errors import DataError
from vae_pyro.likelihoods.preparation import binarise, dequantise, off_the_ends


class Support(Enum):
    """The kind of number that one pixel of x is, and so how x is drawn from an image."""

    BINARY = "0 or 1"  # drawn with probability level / (L - 1)
    LEVELS = "level / (L - 1)"  # the image itself
    UNIT_INTERVAL = "between 0 and 1"  # dequantised: (level + u) / L
    REAL = "a real number"  # dequantised likewise, or real to begin with

    @property
    def is_continuous(self) -> bool:
        """Whether p(x | z) is a density, and not a probability."""
        return self in (Support.UNIT_INTERVAL, Support.REAL)


class Likelihood(nn.Module, ABC):
    """A family of distributions over images, indexed by the decoder's outputs.

    A subclass is a choice for ``likelihood=``: one class, and one YAML file that names it. It
    declares its support, and with it how x is drawn of an image, which x is refused, and how
    log p(x) becomes bits per dimension.

    Args:
        num_levels: how many values a pixel of the data can have, L; None for real-valued pixels.

    Attributes:
        support: the kind of x this is a distribution over.
        num_parameters: decoder outputs per pixel and channel, P.

    Raises:
        DataError: where the data are real-valued and the support is not.
    """

    support: ClassVar[Support]
    num_parameters: int = 1

    def __init__(self, num_levels: int | None) -> None:
        super().__init__()
        if num_levels is None and self.support is not Support.REAL:
            raise DataError(
                f"{type(self).__name__} needs images made of levels, but these data are real "
                "numbers: use likelihood=normal, normal_learned_scale or normal_heteroscedastic, "
                "or other data"
            )
        self.num_levels = num_levels

    @abstractmethod
    def forward(self, parameters: Tensor) -> TorchDistribution:
        """p(x | z) as one distribution per image.

        Args:
            parameters: unconstrained decoder outputs, ``(*batch, P, C, H, W)``.

        Returns:
            a distribution with batch shape ``(*batch,)`` and event shape ``(C, H, W)``.
        """

    def initial_parameters(self, x: Tensor) -> Tensor:
        """Decoder outputs to start from, as good as can be without z.

        Args:
            x: training images as this likelihood scores them, ``(N, C, H, W)``.

        Returns:
            ``(P, C, H, W)``; zeros where a subclass does not say better.
        """
        return x.new_zeros(self.num_parameters, *x.shape[1:])

    def prepare(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Images of the data set -> the x that this likelihood scores.

        Args:
            images: ``uint8`` levels ``0 .. L - 1``, or real numbers, ``(batch, C, H, W)``.
            generator: for the preparations that draw, on the device of ``images``.

        Returns:
            x, float32, ``(batch, C, H, W)``.
        """
        if self.num_levels is None:
            return images
        if self.support is Support.BINARY:
            return binarise(images, self.num_levels, generator)
        if self.support is Support.LEVELS:
            return images.float() / (self.num_levels - 1)
        return dequantise(images, self.num_levels, generator)

    def check(self, x: Tensor) -> None:
        """Refuse an x outside the support, where a log p(x) would mean nothing.

        Raises:
            DataError: naming what was found and the way out.
        """
        inside, way_out = self._inside(x)
        if inside.all():
            return
        outside = x[~inside]
        raise DataError(
            f"{type(self).__name__} needs pixels that are {self.support.value}, but "
            f"{outside.numel():,} of {x.numel():,} pixel values are not (they range from "
            f"{outside.min().item():g} to {outside.max().item():g}). {way_out}"
        )

    def _inside(self, x: Tensor) -> tuple[Tensor, str]:
        if self.support is Support.BINARY:
            return (x == 0) | (x == 1), (
                "A probability of 0 and 1 does not sum to 1 over grey values. Binarise the images "
                "(vae_pyro.likelihoods.binarise), or use a likelihood for grey levels, such as "
                "likelihood=categorical."
            )
        if self.support is Support.LEVELS:
            assert self.num_levels is not None
            level = x * (self.num_levels - 1)
            on_grid = (level - level.round()).abs() < 1e-3
            return on_grid & (x >= 0) & (x <= 1), (
                f"Here L = {self.num_levels}. Divide the levels by L - 1, or use a likelihood for "
                "real numbers, such as likelihood=normal_learned_scale."
            )
        if self.support is Support.UNIT_INTERVAL:
            return (x > 0) & (x < 1), (
                "Dequantise the levels (vae_pyro.likelihoods.dequantise), or use a likelihood for "
                "real numbers, such as likelihood=normal_learned_scale."
            )
        return x.isfinite(), "Remove or replace what is not finite."

    def into_support(self, x: Tensor) -> Tensor:
        """Draws from p(x | z), moved off the ends of the interval that rounding took them to."""
        return off_the_ends(x) if self.support is Support.UNIT_INTERVAL else x

    @property
    def x_kind(self) -> str:
        """What x is. Two log p(x) may be compared only where this is the same."""
        if self.support is Support.BINARY:
            return "binary pixels"
        return "real-valued pixels" if self.num_levels is None else f"{self.num_levels} levels"

    @property
    def log_cell_width(self) -> float | None:
        """log of the width, in x, of the cell that stands for one value of a pixel.

        0 for probabilities; -log L for densities of dequantised images, so that log p(x) + D
        log_cell_width bounds log P(image) from below, for D pixels and channels; None where the
        data have no levels and there is no P(image).
        """
        if not self.support.is_continuous:
            return 0.0
        return None if self.num_levels is None else -math.log(self.num_levels)


def inverse_softplus(y: Tensor) -> Tensor:
    """The s with softplus(s) = y, for y > 0."""
    return y + torch.log(-torch.expm1(-y))
