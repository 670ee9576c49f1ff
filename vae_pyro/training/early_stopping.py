"""Which epoch's weights are kept, and when a training has waited long enough for better ones."""

import math
from dataclasses import dataclass
from typing import Literal

from vae_pyro.training.state import TrainingState

Keep = Literal["best", "last"]


@dataclass(frozen=True)
class EarlyStopping:
    """Keeps the weights with the best valid ELBO, and stops where they no longer improve.

    Args:
        epochs: the training ends with this epoch at the latest.
        keep: ``best``: the epoch with the highest valid ELBO; ``last``: the last epoch.
        patience: with ``best``, the training ends after so many epochs without a better one.
    """

    epochs: int
    keep: Keep = "best"
    patience: int = 50

    def update(self, state: TrainingState, valid_elbo: float, *, is_settled: bool) -> None:
        """Take note of one finished epoch: changes the kept weights and ``state.is_done``.

        Args:
            state: after this epoch.
            valid_elbo: nats per image; NaN counts as better than anything, so that it is seen.
            is_settled: whether this epoch maximised the final objective. While it warms up, a high
                ELBO belongs to an objective that is not yet the configured one.
        """
        if self.keep == "last" or not is_settled or not valid_elbo <= state.best:
            state.keep_weights(valid_elbo if is_settled else -math.inf)
        state.is_done = self.is_over(state)

    def is_over(self, state: TrainingState) -> bool:
        """Whether the training ends with the last finished epoch."""
        has_waited = state.epoch - state.kept_epoch >= self.patience
        return state.epoch >= self.epochs or (self.keep == "best" and has_waited)
