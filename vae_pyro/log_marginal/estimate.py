"""What every estimator of log p(x) returns: a value, an error bar, and whether to trust it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vae_pyro.log_marginal.diagnostics import high_pareto_k

if TYPE_CHECKING:
    from pandas import DataFrame

MOST_UNTRUSTED = 0.05
"""Share of the images whose values may be untrusted before the error bar of their mean is."""
_MOST_ERROR = 0.5  # nats: above, the delta method's standard error of a logarithm is too small
_ROUNDING = 1e-3  # nats, of float32
_DISAGREEMENT = "disagreement"
_MOST_DISAGREEMENT = 5.0  # standard errors of the difference; see docs/accuracy.md


class Bound(Enum):
    """How a value relates to log p(x)."""

    LOWER = "lower"  # at most log p(x), in expectation
    UPPER = "upper"  # at least log p(x), in expectation
    EXACT = "exact"
    NUMERIC = "numeric"  # a deterministic approximation with its own error estimate


@dataclass(frozen=True, repr=False)
class PerImage:
    """A number for each image, and two different error bars of their mean.

    Attributes:
        value: nats unless its name says otherwise, float64, ``(batch,)``.
        std_error: Monte Carlo standard error of each value: how far it may move if the same image
            is evaluated anew; ``(batch,)``, 0 where exact.
    """

    value: Float[Tensor, " batch"]
    std_error: Float[Tensor, " batch"]

    def mean(self) -> float:
        """Mean over the images, per image."""
        return self.value.mean().item()

    def mean_std_error(self, draws: int = 1) -> float:
        """Monte Carlo standard error of ``mean()``: sqrt(sum_i se_i^2) / N.

        It is how far the mean may move when the same images are evaluated anew. It does not contain
        the spread from image to image.

        Args:
            draws: for a batch of so many blocks, each a fresh sample of x (a dequantisation) from
                the same N images, the error is computed from the spread between the blocks, and so
                contains that of x itself: sqrt(sum_i var_i / draws) / N.

        Raises:
            ValueError: where the batch cannot be cut into so many blocks.
        """
        if draws == 1:
            return (self.std_error.square().sum().sqrt() / len(self.std_error)).item()
        between = self._by_draw(draws).var(0) / draws
        return (between.sum().sqrt() / len(between)).item()

    def image_std_error(self, draws: int = 1) -> float:
        """Standard error of ``mean()`` as a statement about all images of this kind.

        It is how far the mean may move with other test images of the same kind: the standard
        deviation from image to image / sqrt(N). It contains the values' own Monte Carlo errors.
        NaN for one image.

        Args:
            draws: as in ``mean_std_error``; the draws of one image are averaged first.
        """
        images = self._by_draw(draws).mean(0)
        if len(images) < 2:
            return math.nan
        return images.std().item() / math.sqrt(len(images))

    def _by_draw(self, draws: int) -> Tensor:
        if draws < 1 or len(self.value) % draws:
            raise ValueError(f"{len(self.value)} values are not {draws} draws of the same images")
        return self.value.reshape(draws, -1)

    def __str__(self) -> str:
        return f"{with_error(self.mean(), self.mean_std_error())} per image"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self.value)} images: {self}>"


_BOUND_WORDS = {
    Bound.LOWER: "lower bound",
    Bound.UPPER: "upper bound",
    Bound.EXACT: "exact",
    Bound.NUMERIC: "numeric",
}


@dataclass(frozen=True, repr=False)
class Estimate(PerImage):
    """log p(x), or a bound on it, for each image, in nats. ``print`` it for a summary in one line.

    >>> import torch
    >>> from vae_pyro.log_marginal import Bound, Estimate
    >>> value = torch.tensor([-23.0, -25.0], dtype=torch.float64)
    >>> estimate = Estimate(value, torch.full_like(value, 0.03), Bound.LOWER)
    >>> print(estimate)
    -24.00 ± 0.02 nats per image (lower bound)
    >>> estimate.mean()
    -24.0
    >>> estimate.to_dataframe().shape
    (2, 2)

    Attributes:
        bound: how ``value`` relates to log p(x). Where it is NUMERIC, ``std_error`` is the method's
            own estimate of its error, which has no sign and does not average out over images.
        diagnostics: further numbers per image, by name, each ``(batch,)``.
        evaluations: of the decoder, per image; with or without its gradient.
        num_weights: how many importance weights each value is the log of the mean of; 0 where it
            is no such mean.
    """

    bound: Bound
    diagnostics: Mapping[str, Float[Tensor, " batch"]] = field(default_factory=dict)
    evaluations: float = 0.0
    num_weights: int = 0

    @property
    def trusted(self) -> Bool[Tensor, " batch"]:
        """Whether each value's ``std_error`` can be trusted: the one rule for all who show it.

        An exact value can. Any other needs a standard error of at most 0.5 nats; the log of a mean
        of weights a k-hat of at most ``high_pareto_k(num_weights)``, where there are enough weights
        for one; and a value that was estimated twice (``checked_by``) a second value within 5
        standard errors of their difference. An untrusted value of a lower bound is still one: it is
        a value that log p(x) is probably not far below, but may be far above.
        """
        return self._looks_good & ~self.disagreeing

    @property
    def disagreeing(self) -> Bool[Tensor, " batch"]:
        """Whether a second estimate differs by more than both error bars allow.

        Then one of the two missed a part of the posterior, which its own weights cannot show.
        False for images that were estimated once.
        """
        distance = self.diagnostics.get(_DISAGREEMENT)
        if distance is None:
            return torch.zeros_like(self.value, dtype=torch.bool)
        return self._looks_good & (distance > _MOST_DISAGREEMENT)

    @property
    def num_checked(self) -> int:
        """How many values were estimated twice."""
        distance = self.diagnostics.get(_DISAGREEMENT)
        return 0 if distance is None else int((~distance.isnan()).sum())

    @property
    def untrusted_share(self) -> float:
        """Share of the images whose error bar cannot be trusted.

        The share that disagrees is known of the images that were estimated twice, and is taken to
        be the same among the others.
        """
        share = (~self._looks_good).double().mean().item()
        return share + int(self.disagreeing.sum()) / max(self.num_checked, 1)

    @property
    def is_trusted(self) -> bool:
        """Whether the error bar of the mean can be: at most 5% of the images are untrusted."""
        return self.untrusted_share <= MOST_UNTRUSTED

    @property
    def _looks_good(self) -> Bool[Tensor, " batch"]:
        """Whether the value's own standard error and weights raise no doubt."""
        good = self.std_error <= _MOST_ERROR
        k = self.diagnostics.get("pareto_k")
        if self.num_weights and k is not None:
            # No k-hat of a few weights: the standard error alone is left to judge by.
            good &= (k <= high_pareto_k(self.num_weights)) | k.isnan()
        return good

    def checked_by(self, second: "Estimate", index: Int[Tensor, " n"]) -> "Estimate":
        """The same estimate, with a diagnostic of how far a second one is from it.

        ``disagreement`` is the distance in standard errors of the difference, NaN where there is no
        second value. Two runs that find different parts of a posterior disagree, which neither can
        tell from its own samples.

        Args:
            second: of the images ``index``, from other random numbers.
            index: places of these images, ``(n,)``.

        >>> import torch
        >>> from vae_pyro.log_marginal import Bound, Estimate
        >>> error = torch.full((2,), 0.1, dtype=torch.float64)
        >>> first = Estimate(torch.tensor([-9.0, -7.0]).double(), error, Bound.LOWER)
        >>> second = Estimate(torch.tensor([-7.0]).double(), error[:1], Bound.LOWER)
        >>> checked = first.checked_by(second, torch.tensor([0]))
        >>> checked.disagreeing, checked.untrusted_share
        (tensor([ True, False]), 1.0)
        """
        distance = torch.full_like(self.value, math.nan)
        error = torch.hypot(self.std_error[index], second.std_error).clamp(min=_ROUNDING)
        distance[index] = (self.value[index] - second.value).abs() / error
        return replace(self, diagnostics={**self.diagnostics, _DISAGREEMENT: distance})

    def mean_std_error(self, draws: int = 1) -> float:
        """As ``PerImage.mean_std_error``; for a NUMERIC value the mean of the error estimates.

        With several draws of x, their own spread is added.
        """
        if self.bound is not Bound.NUMERIC:
            return super().mean_std_error(draws)
        own = self.std_error.mean().item()
        return own if draws == 1 else math.hypot(own, super().mean_std_error(draws))

    def select(self, index: Shaped[Tensor, " n"]) -> "Estimate":
        """The estimate for some of the images, index ``(n,)`` or a mask ``(batch,)``."""
        diagnostics = {name: numbers[index] for name, numbers in self.diagnostics.items()}
        return Estimate(
            self.value[index],
            self.std_error[index],
            self.bound,
            diagnostics,
            self.evaluations,
            self.num_weights,
        )

    def to_dataframe(self) -> "DataFrame":
        """One row per image: value, std_error, and each diagnostic."""
        from pandas import DataFrame  # slow to import

        columns = {"value": self.value, "std_error": self.std_error, **self.diagnostics}
        frame = DataFrame({name: column.cpu().numpy() for name, column in columns.items()})
        return frame.rename_axis("image")

    def __str__(self) -> str:
        words = f"{self.shown()} nats per image ({_BOUND_WORDS[self.bound]})"
        untrusted = self.untrusted_share
        return f"{words}, untrusted: {untrusted:.0%} of the images" if untrusted else words

    def shown(self, offset: float = 0.0, draws: int = 1, sign: str = "") -> str:
        """``-23.48 ± 0.01``, or ``≥ -23.5`` where the error bar cannot be trusted; ≤ for an upper.

        Args:
            offset: nats, added to the mean.
            draws: see ``mean_std_error``.
            sign: put before a trusted number.
        """
        return shown(
            self.mean() + offset,
            self.mean_std_error(draws),
            self.is_trusted,
            "≤ " if self.bound is Bound.UPPER else "≥ ",
            sign,
        )


def shown(
    value: float, std_error: float, is_trusted: bool, one_sided: str = "≥ ", sign: str = ""
) -> str:
    """``-23.48 ± 0.01``, or ``≥ -23.5`` where the error bar cannot be trusted.

    >>> shown(-23.481, 0.012, True), shown(-93.112, 0.012, False)
    ('-23.481 ± 0.012', '≥ -93.1')
    """
    return f"{sign}{with_error(value, std_error)}" if is_trusted else f"{one_sided}{value:.1f}"


def with_error(value: float, std_error: float) -> str:
    """``-23.48 ± 0.01``: one significant digit of the error (two if it is 1), the value to match.

    A value with no error, or with one that is not finite, has two decimals and no error bar.
    """
    if not (math.isfinite(std_error) and std_error > 0):
        return f"{value:.2f}"
    first_digit, exponent = f"{std_error:.0e}".split("e")
    decimals = (1 if first_digit == "1" else 0) - int(exponent)
    shown = max(decimals, 0)
    return f"{round(value, decimals):.{shown}f} ± {round(std_error, decimals):.{shown}f}"


def concatenate(parts: Sequence[Estimate]) -> Estimate:
    """One estimate from those for consecutive parts of the images."""
    sizes = [len(part.value) for part in parts]
    evaluations = sum(p.evaluations * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes)
    return Estimate(
        torch.cat([part.value for part in parts]),
        torch.cat([part.std_error for part in parts]),
        parts[0].bound,
        {
            name: torch.cat([part.diagnostics[name] for part in parts])
            for name in parts[0].diagnostics
        },
        evaluations,
        parts[0].num_weights,
    )
