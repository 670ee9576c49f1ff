"""What every answer to "what is log p(x)?" looks like."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from torch import Tensor

from vae_pyro.vae import VAE


class Bound(Enum):
    """How an answer relates to log p(x)."""

    LOWER = "lower"  # at most log p(x), in expectation
    UPPER = "upper"  # at least log p(x), in expectation
    EXACT = "exact"
    NUMERIC = "numeric"  # a deterministic approximation with its own error estimate


@dataclass(frozen=True)
class Estimate:
    """An answer for each image.

    Attributes:
        value: nats, float64, ``(batch,)``.
        std_error: Monte Carlo standard error of each value, nats, ``(batch,)``; 0 where exact.
        bound: how ``value`` relates to log p(x).
        diagnostics: further numbers per image, by name, each ``(batch,)``.
    """

    value: Tensor
    std_error: Tensor
    bound: Bound
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)

    def mean(self) -> float:
        """Mean over the images, nats per image."""
        return self.value.mean().item()

    def mean_std_error(self, draws: int = 1) -> float:
        """Monte Carlo standard error of ``mean()``, nats per image.

        It says how far the number may move when the same images are evaluated anew: sqrt(sum_i
        se_i^2) / N. It does not contain the spread from image to image.

        Args:
            draws: where the batch holds so many blocks, each a fresh draw of x (a dequantisation)
                from the same N images, the error is read off the spread between them, and so
                contains that of x itself: sqrt(sum_i var_i / draws) / N.

        Raises:
            ValueError: where the batch cannot be cut into so many blocks.
        """
        if draws == 1:
            return (self.std_error.square().sum().sqrt() / len(self.std_error)).item()
        if draws < 1 or len(self.value) % draws:
            raise ValueError(f"{len(self.value)} values are not {draws} draws of the same images")
        between = self.value.reshape(draws, -1).var(0) / draws
        return (between.sum().sqrt() / len(between)).item()


class Estimator(Protocol):
    """The one signature: a frozen dataclass that holds its budget."""

    def __call__(self, vae: VAE, x: Tensor) -> Estimate:
        """Answer for every image of x ``(batch, C, H, W)``."""
        ...
