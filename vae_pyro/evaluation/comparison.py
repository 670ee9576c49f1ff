"""Which model has the higher log p(x)? Paired over images, over training seeds, with ties."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from vae_pyro.evaluation.difference import Difference, PooledSeeds, Scope, difference
from vae_pyro.evaluation.scores import Scores
from vae_pyro.log_marginal import Estimate


@dataclass(frozen=True)
class Comparison:
    """Configurations on the same test images, and what the data decide between them.

    Attributes:
        scores: by name.

    Raises:
        ValueError: where there are none, or they have different numbers of images.
    """

    scores: Mapping[str, Scores] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.scores:
            raise ValueError("no models to compare")
        if len({scores.num_images for scores in self.scores.values()}) > 1:
            sizes = ", ".join(f"{name}: {s.num_images}" for name, s in self.scores.items())
            raise ValueError(f"models are compared on the same images; these have {sizes}")

    @cached_property
    def differences(self) -> list[Difference]:
        """Of every pair, in the order of ``scores``; the p-values are adjusted for all of them."""
        pairs = itertools.combinations(self.scores, 2)
        pooled = PooledSeeds.of(self.scores.values())
        found = [difference(a, b, self.scores[a], self.scores[b], pooled) for a, b in pairs]
        if len(found) < 2:
            return found
        from statsmodels.stats.multitest import multipletests  # slow to import

        adjusted = multipletests([d.adjusted_p_value for d in found], method="holm")[1]
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
    95% together, by Holm's method, with seeds that vary by at least their pooled variance.

    Args:
        models: by name, an estimate, or one for each training seed. All are of the same images in
            the same order, and of the same quantity: log p(x) of one kind of x, or the same bound.

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


def rank_set(ranks: tuple[int, int]) -> str:
    """``1``, or ``2-3`` where the data do not decide.

    >>> rank_set((1, 1)), rank_set((2, 3))
    ('1', '2-3')
    """
    first, last = ranks
    return str(first) if first == last else f"{first}-{last}"
