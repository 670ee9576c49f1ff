"""Numbers with an error, for ``results.json``, tables and prose."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev


@dataclass(frozen=True)
class Number:
    """A measured number.

    Attributes:
        value: the mean over seeds, or a number that does not depend on a seed.
        std_error: of that mean; None for one seed or an exact number.
        unit: ``nats per image``, ``share``, ...
        seeds: the number of each seed, in the order of the seeds.
    """

    value: float
    std_error: float | None = None
    unit: str = ""
    seeds: Sequence[float] = field(default_factory=tuple)

    def __str__(self) -> str:
        """``-23.480 ± 0.021``: two digits of the error; without an error, four digits."""
        if not self.std_error or not math.isfinite(self.std_error):
            return _plain(self.value)
        digits = 1 - math.floor(math.log10(self.std_error))
        if abs(digits) > 9:
            return f"{self.value:.3g} ± {self.std_error:.1g}"
        value, error = (round(number, digits) for number in (self.value, self.std_error))
        return f"{value:,.{max(digits, 0)}f} ± {error:,.{max(digits, 0)}f}"

    @property
    def brief(self) -> str:
        """The value alone, with as many digits as its error allows."""
        return str(self).partition(" ± ")[0]


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
    return Number(mean(numbers), error, unit, numbers)


def _plain(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.4g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"
