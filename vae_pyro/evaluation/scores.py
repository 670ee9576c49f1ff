"""log p(x) of every test image under the models of one configuration, and how it varies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vae_pyro.log_marginal import Bound, Estimate
from vae_pyro.log_marginal.estimate import MOST_UNTRUSTED


@dataclass(frozen=True)
class Scores:
    """log p(x) of the same test images under the models of one configuration, one per seed.

    Attributes:
        value: ``(seeds, images)``, nats.
        std_error: Monte Carlo standard errors, ``(seeds, images)``.
        untrusted_share: share of the images, averaged over seeds, whose error bar cannot be
            trusted; see ``Estimate.untrusted_share``.
        is_density: whether x was dequantised. ``value`` is then a lower bound on log P(image),
            where it is compared with a probability.

    Raises:
        ValueError: where the two shapes are not the same ``(seeds, images)``, a value is not
            finite, or there are fewer than two images.
    """

    value: Float[Tensor, "seeds images"]
    std_error: Float[Tensor, "seeds images"]
    untrusted_share: float = 0.0
    is_density: bool = False

    def __post_init__(self) -> None:
        if self.value.shape != self.std_error.shape or self.value.ndim != 2:
            raise ValueError(
                f"value {tuple(self.value.shape)} and std_error {tuple(self.std_error.shape)} "
                "must both be (seeds, images)"
            )
        if self.num_images < 2 or not self.num_seeds:
            raise ValueError("a comparison needs at least one seed and two images")
        if not (self.value.isfinite().all() and self.std_error.isfinite().all()):
            raise ValueError("log p(x) is not finite for every image, so it cannot be compared")

    @classmethod
    def of(cls, estimates: Sequence[Estimate]) -> Scores:
        """From one estimate per training seed, all of the same images.

        Raises:
            ValueError: where there is none, they have different numbers of images, or one is an
                upper bound.
        """
        if len({len(estimate.value) for estimate in estimates}) != 1:
            sizes = [len(estimate.value) for estimate in estimates]
            raise ValueError(f"estimates of one or more seeds, of the same images: got {sizes}")
        if any(estimate.bound is Bound.UPPER for estimate in estimates):
            raise ValueError("an upper bound on log p(x) cannot be ranked; use a lower estimate")
        return cls(
            torch.stack([estimate.value.double().cpu() for estimate in estimates]),
            torch.stack([estimate.std_error.double().cpu() for estimate in estimates]),
            sum(estimate.untrusted_share for estimate in estimates) / len(estimates),
        )

    @property
    def num_seeds(self) -> int:
        return self.value.shape[0]

    @property
    def num_images(self) -> int:
        return self.value.shape[1]

    @property
    def is_trusted(self) -> bool:
        """Whether the error bars can be. If not, the true value may be higher by more."""
        return self.untrusted_share <= MOST_UNTRUSTED

    def mean(self) -> float:
        """Mean over seeds and images, nats per image."""
        return self.value.mean().item()

    @property
    def seed_variance(self) -> float:
        """Of the means over the images, from seed to seed; 0 for one seed."""
        return self.value.mean(1).var().item() if self.num_seeds > 1 else 0.0

    def components(self) -> Components:
        """The variances that one number is made of; seeds and residual are NaN for one seed.

        Of value(s, i) = mean + seed_s + image_i + residual_si + Monte Carlo error, by the mean
        squares of the two-way layout. A variance that would be negative is 0.

        Source: Searle, Casella, McCulloch (1992), "Variance Components", section 4.3.
        """
        monte_carlo = self.std_error.square().mean().item()
        if self.num_seeds < 2:
            return Components(math.nan, self.value[0].var().item(), math.nan, monte_carlo)
        seeds, images, residual = self.mean_squares()
        return Components(
            max(0.0, (seeds - residual) / self.num_images),
            max(0.0, (images - residual) / self.num_seeds),
            max(0.0, residual - monte_carlo),
            monte_carlo,
        )

    def mean_squares(self) -> tuple[float, float, float]:
        """Of seeds, images and residuals; 0 instead of the first and the last for one seed."""
        over_images, over_seeds = self.value.mean(1), self.value.mean(0)
        images = self.num_seeds * over_seeds.var().item()
        if self.num_seeds < 2:
            return 0.0, images, 0.0
        seeds = self.num_images * self.seed_variance
        rest = self.value - over_images[:, None] - over_seeds + self.value.mean()
        freedom = (self.num_seeds - 1) * (self.num_images - 1)
        return seeds, images, rest.square().sum().item() / freedom


@dataclass(frozen=True)
class Components:
    """Variances of one image's log p(x) under one trained model, in squared nats.

    Attributes:
        seeds: of the mean over all images, from one training seed to another.
        images: from image to image.
        residual: of what seed and image do together.
        monte_carlo: of the estimate itself.
    """

    seeds: float
    images: float
    residual: float
    monte_carlo: float
