"""p_theta(x | z): what the decoder's outputs mean as a distribution over images."""

from abc import ABC, abstractmethod
from enum import Enum
from typing import ClassVar

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from vae_pyro.data import binarise
from vae_pyro.errors import DataError


class Support(Enum):
    """The kind of number that one pixel x is. Log p(x) may be compared only within one kind."""

    BINARY = "binary"


class Likelihood(nn.Module, ABC):
    """A family of distributions over images, indexed by the decoder's outputs.

    A subclass is a choice for ``likelihood=``: one class, and one YAML file that names it.

    Attributes:
        support: the kind of x this is a distribution over.
        num_parameters: decoder outputs per pixel and channel, P.
    """

    support: ClassVar[Support]
    num_parameters: ClassVar[int]

    @abstractmethod
    def forward(self, parameters: Tensor) -> TorchDistribution:
        """p(x | z) as one distribution per image.

        Args:
            parameters: unconstrained decoder outputs, ``(*batch, P, C, H, W)``.

        Returns:
            a distribution with batch shape ``(*batch,)`` and event shape ``(C, H, W)``.
        """

    @abstractmethod
    def prepare(self, levels: Tensor, max_level: int, generator: torch.Generator) -> Tensor:
        """Grey levels -> the x that this likelihood scores.

        Args:
            levels: ``uint8`` levels ``0 .. max_level``, ``(batch, C, H, W)``.
            max_level: the brightest level of the data set.
            generator: for the preparations that draw, on the device of ``levels``.

        Returns:
            x, float32, ``(batch, C, H, W)``.
        """

    @abstractmethod
    def check(self, x: Tensor) -> None:
        """Refuse an x outside the support, where a log p(x) would mean nothing.

        Raises:
            DataError: naming what was found and the way out.
        """


class Bernoulli(Likelihood):
    """log p(x | z) = sum_i x_i log m_i + (1 - x_i) log(1 - m_i), with m = sigmoid(parameters).

    Each pixel is 0 or 1, so p(x | z) is a probability and log p(x) is at most 0 nats.
    """

    support = Support.BINARY
    num_parameters = 1

    def forward(self, parameters: Tensor) -> TorchDistribution:
        # x is checked once per call of the model, in words, so torch need not check it again.
        return dist.Bernoulli(logits=parameters.squeeze(-4), validate_args=False).to_event(3)

    def prepare(self, levels: Tensor, max_level: int, generator: torch.Generator) -> Tensor:
        return binarise(levels, max_level, generator)

    def check(self, x: Tensor) -> None:
        outside = ((x != 0) & (x != 1)).sum().item()
        if outside:
            raise DataError(
                f"likelihood=bernoulli needs binary images, but {outside:,} of {x.numel():,} pixel "
                f"values are neither 0 nor 1 (range {x.min().item():g} to {x.max().item():g}): a "
                "Bernoulli 'likelihood' of grey pixels does not sum to 1 over x. Binarise the "
                "images (vae_pyro.data.binarise), or use a likelihood for grey levels."
            )
