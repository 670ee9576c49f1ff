"""What every answer to "what is log p(x)?" looks like."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from vae_pyro.vae import VAE

OnProgress = Callable[[float, str], None]
"""Called with (share of the work done, between 0 and 1; a few words on the current state)."""


def part_of(on_progress: OnProgress, start: float, stop: float) -> OnProgress:
    """Reports the progress of a part as that of the whole, of which it is from start to stop."""
    return lambda share, state: on_progress(start + share * (stop - start), state)


class Bound(Enum):
    """How an answer relates to log p(x)."""

    LOWER = "lower"  # at most log p(x), in expectation
    UPPER = "upper"  # at least log p(x), in expectation
    EXACT = "exact"
    NUMERIC = "numeric"  # a deterministic approximation with its own error estimate


@dataclass(frozen=True)
class PerImage:
    """A number for each image, and two different answers to "plus or minus what?".

    Attributes:
        value: nats unless its name says otherwise, float64, ``(batch,)``.
        std_error: Monte Carlo standard error of each value: how far it may move if the same image
            is evaluated anew; ``(batch,)``, 0 where exact.
    """

    value: Tensor
    std_error: Tensor

    def mean(self) -> float:
        """Mean over the images, per image."""
        return self.value.mean().item()

    def mean_std_error(self, draws: int = 1) -> float:
        """Monte Carlo standard error of ``mean()``.

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
        between = self._by_draw(draws).var(0) / draws
        return (between.sum().sqrt() / len(between)).item()

    def image_std_error(self, draws: int = 1) -> float:
        """Standard error of ``mean()`` as an answer about all images there might have been.

        It says how far the number may move with other test images of the same kind: the standard
        deviation from image to image / sqrt(N). The values' own Monte Carlo errors are in it.
        NaN of one image.

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


@dataclass(frozen=True)
class Estimate(PerImage):
    """An answer to "what is log p(x)?" for each image, in nats.

    Attributes:
        bound: how ``value`` relates to log p(x). Where it is NUMERIC, ``std_error`` is the method's
            own estimate of its error, which has no sign and does not average out over images.
        diagnostics: further numbers per image, by name, each ``(batch,)``.
        evaluations: how often the decoder was asked, per image; with or without its gradient.
    """

    bound: Bound
    diagnostics: Mapping[str, Tensor] = field(default_factory=dict)
    evaluations: float = 0.0

    def mean_std_error(self, draws: int = 1) -> float:
        """As ``PerImage.mean_std_error``; of a NUMERIC answer the mean of the error estimates.

        To which, with several draws of x, their own spread is added.
        """
        if self.bound is not Bound.NUMERIC:
            return super().mean_std_error(draws)
        own = self.std_error.mean().item()
        return own if draws == 1 else math.hypot(own, super().mean_std_error(draws))

    def select(self, index: Tensor) -> "Estimate":
        """The answers for some of the images."""
        diagnostics = {name: numbers[index] for name, numbers in self.diagnostics.items()}
        return Estimate(
            self.value[index], self.std_error[index], self.bound, diagnostics, self.evaluations
        )


def concatenate(parts: Sequence[Estimate]) -> Estimate:
    """One answer from those for consecutive parts of the images."""
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
    )


class Estimator(ABC):
    """The one signature: a frozen dataclass that holds its budget, called as ``(vae, x)``.

    Attributes:
        budget_for_all: an evaluation runs its further estimators on the first test images only. An
            estimator whose answer for the whole test set costs fewer multiply-adds than this is
            run on all of them; see ``is_cheap``.
        targets_log_px: whether ``value`` is an estimate of log p(x); False for a bound that is
            reported for its own sake, such as the ELBO.
    """

    budget_for_all: ClassVar[float] = 0.0
    targets_log_px: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, vae: VAE, x: Tensor, on_progress: OnProgress | None = None) -> Estimate:
        """Estimate log p(x) of every image, in bounded memory whatever their number and the budget.

        Args:
            vae: the pair; in evaluation mode.
            x: images, ``(batch, C, H, W)``.
            on_progress: called on the way.

        Raises:
            EstimatorError: as ``check``.
        """

    def check(self, vae: VAE) -> None:  # noqa: B027  # most estimators answer for every VAE
        """Refuse a VAE for which this estimator has no answer.

        Raises:
            EstimatorError: saying why, and what to ask instead.
        """
