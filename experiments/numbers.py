"""Numbers with an error, for ``results.json``, tables and prose, and verdicts on predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from statistics import mean, stdev

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from vae_pyro.evaluation import Comparison, Scores
from vae_pyro.evaluation.difference import LEVEL


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        value: the mean over seeds, or a number that does not depend on a seed.
        std_error: of that mean; None for one seed or an exact number.
        unit: ``nats per image``, ``share``, ...
        seeds: the number of each seed, in the order of the seeds.
        freedom: degrees of freedom of ``std_error``, 0 for one seed; None for an exact number.
    """

    value: float
    std_error: float | None = None
    unit: str = ""
    seeds: Sequence[float] = field(default_factory=tuple)
    freedom: float | None = None

    def __str__(self) -> str:
        """``-23.480 ± 0.021``: two digits of the error; without an error, four digits."""
        if not self.std_error or not math.isfinite(self.std_error):
            return _plain(self.value)
        digits = 1 - math.floor(math.log10(self.std_error))
        if abs(digits) > 9:
            return f"{self.value:.3g} ± {self.std_error:.1g}"
        value, error = (round(number, digits) for number in (self.value, self.std_error))
        return f"{value:,.{max(digits, 0)}f} ± {error:,.{max(digits, 0)}f}"

    def __sub__(self, other: Number) -> Number:
        """The difference: seed by seed, or of independent numbers with Welch's error.

        Two numbers of as many seeds must be of the same seeds.
        """
        if self.seeds and len(self.seeds) == len(other.seeds):
            pairs = zip(self.seeds, other.seeds, strict=True)
            return over_seeds([a - b for a, b in pairs], self.unit)
        if self.seeds and other.freedom is None:
            return over_seeds([value - other.value for value in self.seeds], self.unit)
        if other.seeds and self.freedom is None:
            return -1 * (other - self)
        value, unit = self.value - other.value, self.unit
        inexact = [n for n in (self, other) if n.freedom is not None]
        if not inexact:
            return Number(value, unit=unit)
        terms = [(n.std_error**2, n.freedom) for n in inexact if n.std_error is not None]
        if len(terms) < len(inexact):
            return Number(value, unit=unit, freedom=0)
        variance = sum(term for term, _ in terms)
        spread = sum(term**2 / freedom for term, freedom in terms if freedom)
        freedom = variance**2 / spread if spread else min(n.freedom or 0 for n in inexact)
        return Number(value, math.sqrt(variance), unit, freedom=freedom)

    def __rmul__(self, factor: float) -> Number:
        return replace(
            self,
            value=factor * self.value,
            std_error=None if self.std_error is None else abs(factor) * self.std_error,
            seeds=[factor * value for value in self.seeds],
        )

    @property
    def brief(self) -> str:
        """The value alone, with as many digits as its error allows."""
        return str(self).partition(" ± ")[0]

    @property
    def interval(self) -> tuple[float, float]:
        """Where the number lies with 95% confidence, by Student's t; unbounded for one seed."""
        if self.freedom is None:
            return self.value, self.value
        if self.std_error is None:
            return -math.inf, math.inf
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.freedom)) * self.std_error
        return self.value - half, self.value + half

    @property
    def shown_interval(self) -> str:
        """``[-23.54, -23.42]``, with the digits of the number."""
        if "e" in self.brief:
            return "[{}, {}]".format(*map(_plain, self.interval))
        decimals = len(self.brief.partition(".")[2])
        low, high = self.interval
        return f"[{low:,.{decimals}f}, {high:,.{decimals}f}]"


NONE = Number(math.nan, freedom=0)  # was not measured: every verdict on it is undecided


class Verdict(StrEnum):
    """On a prediction, by the 95% intervals of its numbers."""

    HELD = "held"
    REFUTED = "did not hold"
    UNDECIDED = "undecided"


def above(number: Number, threshold: float = 0.0) -> Verdict:
    """Whether the number is above the threshold; undecided where its interval contains it."""
    low, high = number.interval
    if low > threshold:
        return Verdict.HELD
    return Verdict.REFUTED if high <= threshold else Verdict.UNDECIDED


def below(number: Number, threshold: float = 0.0) -> Verdict:
    """Whether the number is below the threshold; undecided where its interval contains it."""
    return above(-1 * number, -threshold)


def within(number: Number, low: float, high: float) -> Verdict:
    """Whether the number lies between two others."""
    return all_of([above(number, low), below(number, high)])


def all_of(verdicts: Iterable[Verdict]) -> Verdict:
    """Held if all of them held, did not hold if any did not, undecided otherwise and of none."""
    found = set(verdicts)
    if Verdict.REFUTED in found:
        return Verdict.REFUTED
    return Verdict.HELD if found == {Verdict.HELD} else Verdict.UNDECIDED


def lowest(name: str, numbers: Mapping[str, Number]) -> Verdict:
    """Whether one of the numbers is below each of the others."""
    return all_of(below(numbers[name] - other) for key, other in numbers.items() if key != name)


def percent(number: Number) -> str:
    """A share as ``85.8 ± 0.7%``."""
    error = number.std_error
    return (
        f"{100 * number.value:.1f}%"
        if not error
        else (f"{100 * number.value:.1f} ± {100 * error:.1f}%")
    )


def over_seeds(values: Sequence[float], unit: str = "") -> Number:
    """Mean and standard error, stdev / sqrt(n), of one number per seed."""
    numbers = [float(value) for value in values]
    error = stdev(numbers) / math.sqrt(len(numbers)) if len(numbers) > 1 else None
    return Number(mean(numbers), error, unit, numbers, len(numbers) - 1)


def over_images(values: Sequence[float] | Tensor, unit: str = "") -> Number:
    """Mean and standard error of one number per image; it contains no error of training."""
    return replace(over_seeds([float(value) for value in values], unit), seeds=())


def over_both(
    first: Float[Tensor, "seeds images"], second: Float[Tensor, "seeds images"], unit: str = ""
) -> Number:
    """Mean of first - second on the same images, for other seeds and other images.

    See ``vae_pyro.evaluation.compare``. With one seed the error is that of the images alone, and
    nothing is known about other seeds.
    """
    scores = {
        name: Scores(value.double(), torch.zeros_like(value).double())
        for name, value in (("first", first), ("second", second))
    }
    found = Comparison(scores).difference("first", "second")
    if len(first) < 2:
        return Number(found.value, unit=unit, freedom=0)
    return Number(found.value, found.std_error, unit, freedom=found.degrees_of_freedom)


def _plain(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
