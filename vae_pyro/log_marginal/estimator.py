"""How every estimator of log p(x) is called."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from vae_pyro.log_marginal.estimate import Estimate
from vae_pyro.log_marginal.program import Images, ModelAndGuide

OnProgress = Callable[[float, str], None]
"""Called with (share of the work done, between 0 and 1; a few words on the current state)."""


def part_of(on_progress: OnProgress, start: float, stop: float) -> OnProgress:
    """Reports the progress of a part as that of the whole, of which it is from start to stop."""
    return lambda share, state: on_progress(start + share * (stop - start), state)


class Estimator(ABC):
    """The one signature: a frozen dataclass that holds its budget, called as ``(vae, x)``.

    Attributes:
        budget_for_all: an evaluation runs its further estimators on the first test images only. An
            estimator that costs fewer multiply-adds than this for the whole test set
            is run on all of it; see ``is_cheap``.
        targets_log_px: whether the value is meant as log p(x) itself, not as a bound of the guide
            that stays below it at any budget (ELBO, IWAE-K).
    """

    budget_for_all: ClassVar[float] = 0.0
    targets_log_px: ClassVar[bool] = True

    @abstractmethod
    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        """Estimate log p(x) of every image, in bounded memory whatever their number and the budget.

        Args:
            vae: the pair; in evaluation mode.
            x: images, ``(batch, C, H, W)``.
            on_progress: called on the way.

        Raises:
            EstimatorError: as ``check``.
        """

    def check(self, vae: ModelAndGuide) -> None:  # noqa: B027  # most estimators apply to every VAE
        """Refuse a VAE to which this estimator does not apply.

        Raises:
            EstimatorError: with the reason, and what to use instead.
        """
