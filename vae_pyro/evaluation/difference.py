"""The difference of two configurations: its error, its interval, and what it is about."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from vae_pyro.evaluation.scores import Scores
from vae_pyro.log_marginal.estimate import with_error

LEVEL = 0.95
"""Of every interval, and of all decisions of one comparison together."""

Verdict = Literal["higher", "lower", "undecided"]


class Scope(Enum):
    """What the error bars of a difference are about; the values say it in words."""

    CONFIGURATIONS = (
        "several seeds: ± and [95% interval] of a difference are paired over images, and hold for "
        "other training seeds and other images"
    )
    WEIGHTS = (
        "one seed: ± and [95% interval] of a difference are paired over images, and hold for these "
        "trained weights and other images; seed=0,1,2,3,4 -m compares configurations"
    )


@dataclass(frozen=True)
class Difference:
    """log p(x) of one configuration minus that of another, paired over images.

    Attributes:
        first, second: their names.
        value: mean difference, nats per image.
        std_error: of ``value``, for other images of the same kind and (where ``scope`` is
            CONFIGURATIONS) for other training seeds. The Monte Carlo error is part of it.
        degrees_of_freedom: of the t distribution of value / std_error, by Satterthwaite.
        monte_carlo_std_error: how much of ``std_error`` is Monte Carlo error.
        unpaired_std_error: what ``std_error`` would be of images that the two do not share.
        scope: WEIGHTS where one of them has a single training seed: then the interval is about
            these trained weights, and another seed may lie outside.
        p_value: of no difference, this comparison alone, two-sided.
        adjusted_p_value: of all comparisons made together, by Holm's method, with seeds that are
            taken to vary by at least their pooled variance; never below ``p_value``.
        may_be_higher: the names whose log p(x) may be higher by more than any error bar: an
            untrusted estimate, or a density beside a probability.
    """

    first: str
    second: str
    value: float
    std_error: float
    degrees_of_freedom: float
    monte_carlo_std_error: float
    unpaired_std_error: float
    scope: Scope
    p_value: float
    adjusted_p_value: float
    may_be_higher: frozenset[str] = frozenset()

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Where the difference lies, this comparison alone; infinite where nothing bounds it."""
        half = _t_quantile(level, self.degrees_of_freedom) * self.std_error
        low = -math.inf if self.second in self.may_be_higher else self.value - half
        high = math.inf if self.first in self.may_be_higher else self.value + half
        return low, high

    @property
    def verdict(self) -> Verdict:
        """Whether the first is higher or lower than the second, at 95% for all comparisons."""
        if self.adjusted_p_value >= 1 - LEVEL:
            return "undecided"
        lead, other = (self.first, self.second) if self.value > 0 else (self.second, self.first)
        if other in self.may_be_higher:
            return "undecided"
        return "higher" if lead == self.first else "lower"

    def __str__(self) -> str:
        """``-0.10 ± 0.07 [-0.29, 0.08]``.

        ``≥ -0.1`` where the first may be higher by more, ``≤ -0.1`` where the second may, and
        ``? -0.1`` where both may.
        """
        if self.may_be_higher:
            sign = "≥" if self.first in self.may_be_higher else "≤"
            return f"{'?' if len(self.may_be_higher) == 2 else sign} {self.value:.1f}"
        shown = with_error(self.value, self.std_error)
        decimals = len(shown.partition(" ")[0].partition(".")[2])
        low, high = self.interval()
        return f"{shown} [{low:.{decimals}f}, {high:.{decimals}f}]"


@dataclass(frozen=True)
class PooledSeeds:
    """The variance from seed to seed of log p(x) of all images, over all configurations.

    Attributes:
        variance: squared nats; 0 where no configuration has several seeds.
        freedom: its degrees of freedom.
    """

    variance: float
    freedom: int

    @classmethod
    def of(cls, scores: Iterable[Scores]) -> PooledSeeds:
        """Pooled over the configurations with several seeds."""
        several = [s for s in scores if s.num_seeds > 1]
        freedom = sum(s.num_seeds - 1 for s in several)
        squares = sum((s.num_seeds - 1) * s.seed_variance for s in several)
        return cls(squares / freedom if freedom else 0.0, freedom)


def difference(first: str, second: str, a: Scores, b: Scores, pooled: PooledSeeds) -> Difference:
    """Of one pair.

    Its adjusted p-value is not yet for many comparisons, but fit for them: it takes the seeds of
    both to vary by at least ``pooled``. Of three seeds some vary little by chance, and of many
    pairs the one with the smallest error would be found.

    Args:
        first: its name.
        second: likewise.
        a: the scores of the first.
        b: those of the second, of the same images.
        pooled: of all configurations that are compared.
    """
    several = min(a.num_seeds, b.num_seeds) > 1
    both = (a, b) if several else ()
    of_seeds = sum(s.seed_variance / s.num_seeds for s in both)
    spread = sum((s.seed_variance / s.num_seeds) ** 2 / (s.num_seeds - 1) for s in both)
    variance, freedom = _variance(a, b, of_seeds, spread)
    value = a.mean() - b.mean()
    p = adjusted = _p_value(value, variance, freedom)
    if several and p < 1 - LEVEL:
        at_least = [max(s.seed_variance, pooled.variance) / s.num_seeds for s in both]
        spread = (2 * max(at_least)) ** 2 / pooled.freedom
        adjusted = max(p, _p_value(value, *_variance(a, b, sum(at_least), spread)))
    monte_carlo = sum(s.std_error.square().sum().item() / s.value.numel() ** 2 for s in (a, b))
    may_be_higher = {
        name
        for name, s, other in ((first, a, b), (second, b, a))
        if not s.is_trusted or (s.is_density and not other.is_density)
    }
    of_images = (a.value.mean(0) - b.value.mean(0)).var().item()
    of_images_unpaired = sum(s.value.mean(0).var().item() for s in (a, b))
    unpaired = variance + (of_images_unpaired - of_images) / a.num_images
    return Difference(
        first,
        second,
        value,
        variance**0.5,
        freedom,
        monte_carlo**0.5,
        unpaired**0.5,
        Scope.CONFIGURATIONS if several else Scope.WEIGHTS,
        p,
        adjusted,
        frozenset(may_be_higher),
    )


def _variance(a: Scores, b: Scores, of_seeds: float, spread: float) -> tuple[float, float]:
    """Of the mean difference, and its degrees of freedom by Satterthwaite.

    Args:
        a: the scores of the one.
        b: those of the other.
        of_seeds: the variance by the seeds of both; 0 for these trained weights.
        spread: of ``of_seeds``, the sum of its parts squared / their degrees of freedom.
    """
    images = a.num_images
    of_images = (a.value.mean(0) - b.value.mean(0)).var().item() / images
    spread += of_images**2 / (images - 1)
    # The variances by images and by seeds both contain the residual, which counts once.
    residuals = [s.mean_squares()[2] / s.value.numel() for s in (a, b)] if of_seeds else []
    variance = max(of_images + of_seeds - sum(residuals), of_images, of_seeds)
    return variance, variance**2 / spread if spread else images - 1.0


def _p_value(value: float, variance: float, freedom: float) -> float:
    from scipy import stats  # slow to import

    if not variance:  # the same difference for every image and seed
        return float(value == 0)
    return float(2 * stats.t.sf(abs(value) / variance**0.5, freedom))


def seed_interval(means: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """Where the mean of a number over training seeds lies, on these test images.

    A t interval. It contains no error of the images, which models on one test set share.

    Args:
        means: over the images, one for each seed.
        level: of the interval.

    Returns:
        its two ends; NaN for one seed.

    >>> low, high = seed_interval([-23.0, -23.2, -23.1])
    >>> round(low, 2), round(high, 2)
    (-23.35, -22.85)
    """
    if len(means) < 2:
        return math.nan, math.nan
    mean, error = statistics.mean(means), statistics.stdev(means) / len(means) ** 0.5
    half = _t_quantile(level, len(means) - 1) * error
    return mean - half, mean + half


def _t_quantile(level: float, freedom: float) -> float:
    from scipy import stats  # slow to import

    return float(stats.t.ppf((1 + level) / 2, freedom))
