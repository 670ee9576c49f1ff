"""The base class of all likelihoods: a family of distributions over images, and its support."""

import math
from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

import torch
from jaxtyping import Float, Shaped
from pyro.distributions import Distribution
from torch import Tensor, nn

from vae_pyro.errors import DataError
from vae_pyro.likelihoods.preparation import binarise, dequantise, strictly_inside


class Support(Enum):
    """What one pixel of x can be; it decides how an image becomes x."""

    BINARY = "0 or 1"  # binarised: 1 with probability level / (L - 1)
    LEVELS = "level / (L - 1)"  # the image itself
    UNIT_INTERVAL = "between 0 and 1"  # dequantised: (level + u) / L
    REAL = "a real number"  # dequantised too, or the image itself if its pixels are real-valued

    @property
    def is_continuous(self) -> bool:
        """True where p(x | z) is a density, False where it is a probability."""
        return self in (Support.UNIT_INTERVAL, Support.REAL)


class Likelihood(nn.Module, ABC):
    """A family of distributions over images; the decoder's outputs are its parameters.

    A subclass is a choice for ``likelihood=``: one class, and one YAML file that names it. Its
    support decides how an image becomes x, which x are refused, and how log p(x) is converted to
    bits per dimension.

    Args:
        num_levels: how many values a pixel of the data can have, L; None for real-valued pixels.

    Attributes:
        support: what one pixel of x can be.
        num_parameters: decoder outputs per pixel and channel, P.

    Raises:
        DataError: where the data are real-valued and the support is not.

    >>> import torch, vae_pyro as vp
    >>> likelihood = vp.likelihoods.NormalHeteroscedastic(num_levels=17)
    >>> p_x = likelihood(torch.zeros(5, likelihood.num_parameters, 1, 8, 8))
    >>> p_x.batch_shape, p_x.event_shape
    (torch.Size([5]), torch.Size([1, 8, 8]))
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
    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        """p(x | z), one distribution per image.

        Args:
            parameters: unconstrained decoder outputs, ``(*batch, P, C, H, W)``.

        Returns:
            a distribution with batch shape ``(*batch,)`` and event shape ``(C, H, W)``.
        """

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """Decoder outputs that fit the training images without z, to start training from.

        Args:
            x: prepared training images, ``(N, C, H, W)``.

        Returns:
            ``(P, C, H, W)``; zeros unless a subclass overrides this.
        """
        return x.new_zeros(self.num_parameters, *x.shape[1:])

    def prepare(
        self,
        images: Shaped[Tensor, "*batch channels height width"],
        generator: torch.Generator,
    ) -> Float[Tensor, "*batch channels height width"]:
        """The x that this likelihood scores, from images of a data set.

        Args:
            images: ``uint8`` levels ``0 .. L - 1``, or real numbers, ``(batch, C, H, W)``.
            generator: for binarisation and dequantisation, on the device of ``images``.

        Returns:
            x, float32, ``(batch, C, H, W)``.

        >>> import torch, vae_pyro as vp
        >>> data = vp.data.Digits().load()
        >>> levels, generator = data.train.images[:3], torch.Generator().manual_seed(0)
        >>> vp.likelihoods.Categorical(data.num_levels).prepare(levels, generator).shape
        torch.Size([3, 1, 8, 8])
        """
        if self.num_levels is None:
            return images
        if self.support is Support.BINARY:
            return binarise(images, self.num_levels, generator)
        if self.support is Support.LEVELS:
            return images.float() / (self.num_levels - 1)
        return dequantise(images, self.num_levels, generator)

    def check(self, x: Float[Tensor, "*batch channels height width"]) -> None:
        """Refuse an x outside the support, for which log p(x) has no meaning.

        Raises:
            DataError: with the number of such pixels, their range, and how to prepare them.
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
                "Over grey values, Bernoulli probabilities do not sum to 1. Binarise the images "
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
        return x.isfinite(), "Remove or replace what is not finite (NaN or infinite)."

    def into_support(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Samples from p(x | z); those that rounding took out of the support are moved back."""
        return strictly_inside(x) if self.support is Support.UNIT_INTERVAL else x

    @property
    def x_kind(self) -> str:
        """The kind of x. Values of log p(x) can be compared only where it is the same."""
        if self.support is Support.BINARY:
            return "binary pixels"
        return "real-valued pixels" if self.num_levels is None else f"{self.num_levels} levels"

    @property
    def log_cell_width(self) -> float | None:
        """log of the width, in x, of the cell that stands for one level of a pixel.

        It is 0 for probabilities. For densities of dequantised images it is -log L: then
        log p(x) + D log_cell_width, for D pixels and channels, is a lower bound of log P(image) in
        expectation. It is None where the data are real-valued and there is no P(image).
        """
        if not self.support.is_continuous:
            return 0.0
        return None if self.num_levels is None else -math.log(self.num_levels)


def inverse_softplus(y: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The s with softplus(s) = y, for y > 0."""
    return y + torch.log(-torch.expm1(-y))
