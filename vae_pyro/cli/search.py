"""What a search by Optuna needs to be continued. The only file that imports optuna."""

from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial


class ResumableTPESampler(TPESampler):  # type: ignore[misc]  # without optuna it is Any
    """Optuna's TPE sampler, whose random numbers depend on the seed and the trial's number.

    A study that is continued therefore suggests what it would have suggested uninterrupted. With
    Optuna's own, the same seed at a second start repeats the suggestions of the first.

    Args:
        seed: of all suggestions.
        options: as of ``optuna.samplers.TPESampler``.

    Source: Bergstra, Bardenet, Bengio, Kégl 2011, "Algorithms for Hyper-Parameter Optimization".
    """

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__(seed=seed, **options)
        self._seed = seed

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Optuna's first call for every trial."""
        seeds = np.random.SeedSequence([self._seed, trial.number]).generate_state(2)
        self._rng = np.random.RandomState(seeds[0])
        self._random_sampler = RandomSampler(seed=int(seeds[1]))
        space: dict[str, BaseDistribution] = super().infer_relative_search_space(study, trial)
        return space
