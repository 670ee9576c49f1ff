"""Learning-rate schedules: what the learning rate is multiplied by, as training goes on."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar, Literal

Every = Literal["step", "epoch"]


@dataclass(frozen=True)
class Schedule(ABC):
    """A choice for ``schedule=``: one class, and one YAML file that names it.

    The learning rate is a function of the step alone, so a training that continues from a
    checkpoint has the learning rates of an uninterrupted one.

    Args:
        warmup_epochs: over so many epochs, the learning rate grows linearly to that of the rest of
            the schedule.
        every: whether the learning rate changes at every ``step``, or at every ``epoch`` only.

    Raises:
        ValueError: where a number is out of range.
    """

    depends_on_epochs: ClassVar[bool] = False
    """Whether the learning rate of a step depends on how many epochs there are."""

    warmup_epochs: float = field(default=0.0, kw_only=True)
    every: Every = field(default="step", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs: must be a number from 0 up, got {self.warmup_epochs}")

    def learning_rate(
        self,
        base: float,
        epoch: int,
        step: int = 0,
        *,
        steps: int,
        epochs: int,
        length: float = 1.0,
    ) -> float:
        """The learning rate of one step.

        Args:
            base: what the schedule multiplies.
            epoch: finished epochs, 0 in the first.
            step: finished steps of this epoch.
            steps: of an epoch.
            epochs: of the schedule.
            length: of one epoch of the training, in epochs of the schedule: 10 where a tenth of the
                schedule is trained.

        >>> schedule = MultiStep(milestones=(200, 350), gamma=0.5)
        >>> schedule.learning_rate(1e-3, 200, steps=500, epochs=500)
        0.0005
        """
        unit = 1 / steps if self.every == "step" else 1.0
        start = epoch + (step / steps if self.every == "step" else 0.0)
        end = (start + unit) * length
        warm = min(1.0, end / self.warmup_epochs) if self.warmup_epochs else 1.0
        return base * warm * self.factor(start * length, epochs)

    @abstractmethod
    def factor(self, epoch: float, epochs: int) -> float:
        """What the learning rate is multiplied by, without the warm-up.

        Args:
            epoch: of the schedule, 0 at its start.
            epochs: of the schedule.
        """


@dataclass(frozen=True)
class Constant(Schedule):
    """The same learning rate throughout, after the warm-up.

    >>> warm = Constant(warmup_epochs=4, every="epoch")
    >>> [warm.learning_rate(1.0, epoch, steps=10, epochs=6) for epoch in range(6)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    """

    def factor(self, epoch: float, epochs: int) -> float:  # noqa: ARG002
        return 1.0


@dataclass(frozen=True)
class MultiStep(Schedule):
    """The learning rate is multiplied by gamma at every milestone.

    Args:
        milestones: epochs, in increasing order; the new rate holds from the next epoch on.
        gamma: above 0.
        warmup_epochs, every: see ``Schedule``.

    Raises:
        ValueError: where a number is out of range, or the milestones are not in order.

    >>> schedule = MultiStep(milestones=(2, 3), gamma=0.1)
    >>> [round(schedule.factor(epoch, 5), 4) for epoch in range(5)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _increase((0, *self.milestones)):
            raise ValueError(f"milestones: must be positive and increase, got {self.milestones}")
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma: must be a positive number, got {self.gamma}")

    def factor(self, epoch: float, epochs: int) -> float:  # noqa: ARG002
        passed = sum(epoch >= milestone - _ROUNDING for milestone in self.milestones)
        return float(self.gamma**passed)


@dataclass(frozen=True)
class Cosine(Schedule):
    """final + (1 - final) (1 + cos(pi t / T)) / 2 in epoch t of T.

    Args:
        final: what the learning rate is multiplied by at the end, from 0 to 1.
        warmup_epochs, every: see ``Schedule``.

    Raises:
        ValueError: where a number is out of range.

    Source: Loshchilov and Hutter (2017), equation 5, without restarts.

    >>> [round(Cosine().factor(epoch, 4), 3) for epoch in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """

    depends_on_epochs: ClassVar[bool] = True

    final: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.final <= 1:
            raise ValueError(f"final: must be a number from 0 to 1, got {self.final}")

    def factor(self, epoch: float, epochs: int) -> float:
        share = (1 + math.cos(math.pi * epoch / epochs)) / 2
        return self.final + (1 - self.final) * share


@dataclass(frozen=True)
class Burda(Schedule):
    """Stages i = 0, 1, ..., each three times as long as the one before: 10^(1 - i / (stages - 1)).

    The factor is rounded to one decimal: 10, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4 and 1 for eight stages.
    Stage i takes 3^i of (3^stages - 1) / 2 parts of the training, 3^i epochs of 3,280 for eight.

    Args:
        stages: 2 or more.
        warmup_epochs, every: see ``Schedule``.

    Raises:
        ValueError: where a number is out of range.

    Source: Burda et al. (2016), section 5.

    >>> [Burda().factor(epoch, 3280) for epoch in (0, 1, 4, 13, 1093)]
    [10.0, 7.2, 5.2, 3.7, 1.0]
    """

    depends_on_epochs: ClassVar[bool] = True

    stages: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.stages <= _MOST_STAGES:
            raise ValueError(f"stages: must be from 2 to {_MOST_STAGES}, got {self.stages}")

    def factor(self, epoch: float, epochs: int) -> float:
        parts = (3**self.stages - 1) // 2
        begun = [(3**i - 1) // 2 * epochs / parts for i in range(self.stages)]
        stage = sum(epoch >= start - _ROUNDING for start in begun) - 1
        return float(round(10 ** (1 - stage / (self.stages - 1)), 1))


_ROUNDING = 1e-6  # epochs
_MOST_STAGES = 20


def _increase(numbers: Sequence[float]) -> bool:
    return all(before < after < math.inf for before, after in pairwise(numbers))
