"""Which model has the higher log p(x)? Paired over images, over training seeds, with ties."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cached_property
from typing import Literal

from vae_pyro.evaluation.scores import Scores
from vae_pyro.log_marginal import Estimate
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
        adjusted_p_value: the same for all comparisons made together (Holm).
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
class Comparison:
    """Configurations on the same test images, and what the data decide between them.

    Attributes:
        scores: by name, two or more.

    Raises:
        ValueError: where they have different numbers of images.
    """

    scores: Mapping[str, Scores] = field(repr=False)

    def __post_init__(self) -> None:
        if len({scores.num_images for scores in self.scores.values()}) > 1:
            sizes = ", ".join(f"{name}: {s.num_images}" for name, s in self.scores.items())
            raise ValueError(f"models are compared on the same images; these have {sizes}")

    @cached_property
    def differences(self) -> list[Difference]:
        """Of every pair, in the order of ``scores``; the p-values are adjusted for all of them."""
        pairs = itertools.combinations(self.scores, 2)
        found = [_difference(a, b, self.scores[a], self.scores[b]) for a, b in pairs]
        if len(found) < 2:
            return found
        from statsmodels.stats.multitest import multipletests  # slow to import

        adjusted = multipletests([d.p_value for d in found], method="holm")[1]
        return [replace(d, adjusted_p_value=float(p)) for d, p in zip(found, adjusted, strict=True)]

    def difference(self, first: str, second: str) -> Difference:
        """Of one pair, in this order.

        Raises:
            KeyError: where they are not two of the configurations.
        """
        for d in self.differences:
            if (d.first, d.second) == (first, second):
                return d
            if (d.first, d.second) == (second, first):
                return replace(d, first=first, second=second, value=-d.value)
        raise KeyError(f"{first!r} and {second!r} are not two of {', '.join(self.scores)}")

    @property
    def highest(self) -> str:
        """The name with the highest mean log p(x), decided or not."""
        return max(self.scores, key=lambda name: self.scores[name].mean())

    @cached_property
    def ranks(self) -> dict[str, tuple[int, int]]:
        """The ranks that the data leave open, first and last, by name.

        The first is 1 + how many are decided to be higher; the last leaves out those decided to be
        lower. With probability 95% all of these sets contain the true ranks.
        """
        higher, lower = (dict.fromkeys(self.scores, 0) for _ in range(2))
        for d in self.differences:
            if d.verdict != "undecided":
                up, down = (d.first, d.second) if d.verdict == "higher" else (d.second, d.first)
                higher[down] += 1
                lower[up] += 1
        count = len(self.scores)
        return {name: (1 + higher[name], count - lower[name]) for name in self.scores}

    @property
    def best_set(self) -> list[str]:
        """The names that no other one is decided to be higher than."""
        return [name for name, (first, _) in self.ranks.items() if first == 1]

    @property
    def scopes(self) -> list[Scope]:
        """What the error bars are about: both where only some have a single training seed."""
        return list(dict.fromkeys(difference.scope for difference in self.differences))

    def __str__(self) -> str:
        import pandas as pd

        best = self.highest
        rows = [
            {
                "": name,
                "seeds": scores.num_seeds,
                "log p(x)": f"{'≥ ' * (not scores.is_trusted)}{scores.mean():.2f}",
                "difference to the highest": "" if name == best else self.difference(name, best),
                "rank": rank_set(self.ranks[name]),
            }
            for name, scores in self.scores.items()
        ]
        table = pd.DataFrame(rows).to_string(index=False)
        images = next(iter(self.scores.values())).num_images
        notes = [f"nats per image, {images} images", *(scope.value for scope in self.scopes)]
        return "\n".join([table, *notes])


def compare(models: Mapping[str, Estimate | Sequence[Estimate]]) -> Comparison:
    """Compare models by log p(x) of the same test images.

    Of the mean difference over S training seeds and N images,

        Var = s2_seed / S + s2_image / N + s2_residual / (S N),

    where the first and the last are summed over both configurations, whose seeds are independent,
    and s2_image is of the paired differences. Each is estimated by mean squares; the interval is
    that of a t distribution with Satterthwaite's degrees of freedom. Ranks are from all pairs at
    95% together, by Holm's method.

    Args:
        models: by name, an estimate, or one for each training seed. All are of the same images in
            the same order, and of the same quantity: log p(x), or the same bound.

    Returns:
        the comparison; ``print`` it for a table.

    Raises:
        ValueError: where they have different numbers of images, or an estimate is an upper bound.

    Source: Satterthwaite (1946); Holm (1979).

    >>> import torch
    >>> from vae_pyro.log_marginal import Bound, Estimate
    >>> x = torch.linspace(-3, 3, 100, dtype=torch.float64)
    >>> def exact(value: torch.Tensor) -> Estimate:
    ...     return Estimate(value, torch.zeros_like(value), Bound.EXACT)
    >>> comparison = compare({"a": exact(-(x**2)), "b": exact(-(x**2) - 0.2 + 0.1 * x)})
    >>> print(comparison.difference("a", "b"))
    0.20 ± 0.02 [0.17, 0.23]
    >>> comparison.ranks
    {'a': (1, 1), 'b': (2, 2)}
    """
    return Comparison(
        {
            name: Scores.of([given] if isinstance(given, Estimate) else given)
            for name, given in models.items()
        }
    )


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


def rank_set(ranks: tuple[int, int]) -> str:
    """``1``, or ``2-3`` where the data do not decide.

    >>> rank_set((1, 1)), rank_set((2, 3))
    ('1', '2-3')
    """
    first, last = ranks
    return str(first) if first == last else f"{first}-{last}"


def _difference(first: str, second: str, a: Scores, b: Scores) -> Difference:
    """Of one pair; its adjusted p-value is its own."""
    from scipy import stats  # slow to import

    images = a.num_images
    of_images = (a.value.mean(0) - b.value.mean(0)).var().item() / images
    terms = [(of_images, images - 1.0)]  # of the variance, with their degrees of freedom
    of_seeds, scope = 0.0, Scope.WEIGHTS
    if min(a.num_seeds, b.num_seeds) > 1:
        scope = Scope.CONFIGURATIONS
        for s in (a, b):
            seeds, _, residual = s.mean_squares()
            cells = s.num_seeds * images
            of_seeds += seeds / cells
            terms.append((seeds / cells, s.num_seeds - 1.0))
            # The terms of images and of seeds both contain the residual, which counts once.
            terms.append((-residual / cells, (s.num_seeds - 1.0) * (images - 1)))
    variance = max(sum(term for term, _ in terms), of_images, of_seeds)
    spread = sum(term**2 / freedom for term, freedom in terms)
    freedom = variance**2 / spread if spread else images - 1.0
    value, error = a.mean() - b.mean(), variance**0.5
    # Without an error the difference is the same for every image and seed.
    p = float(2 * stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    of_images_unpaired = sum(s.value.mean(0).var().item() for s in (a, b)) / images
    monte_carlo = sum(s.std_error.square().sum().item() / s.value.numel() ** 2 for s in (a, b))
    open_ended = {
        name
        for name, s, other in ((first, a, b), (second, b, a))
        if not s.is_trusted or (s.is_density and not other.is_density)
    }
    return Difference(
        first,
        second,
        value,
        error,
        freedom,
        monte_carlo**0.5,
        (variance - of_images + of_images_unpaired) ** 0.5,
        scope,
        p,
        p,
        frozenset(open_ended),
    )


def _t_quantile(level: float, freedom: float) -> float:
    from scipy import stats  # slow to import

    return float(stats.t.ppf((1 + level) / 2, freedom))
