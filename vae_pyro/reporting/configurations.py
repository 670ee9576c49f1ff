"""The runs of a sweep as configurations: what differs only in the training seed is one of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from vae_pyro.errors import ReportError
from vae_pyro.evaluation import Comparison, Scores
from vae_pyro.files import regular_size
from vae_pyro.reporting.results import JobResult, groups, setting, varying_settings

SEED = "seed"
PER_IMAGE_FILE = "per_image.csv"
_LARGEST_TABLE = 2 * 10**9  # bytes
_ROUNDING = 1e-6  # relative, of a mean that is computed twice


@dataclass(frozen=True)
class Configuration:
    """The finished runs that differ only in their training seed.

    Attributes:
        name: its settings that differ within the group.
        settings: the same, by key.
        runs: one for each seed.
        scores: log p(x) per image, nats; of a density with the log volume of the image's cell.
    """

    name: str
    settings: dict[str, str]
    runs: Sequence[JobResult]
    scores: Scores

    def mean(self, metric: str) -> float | None:
        """A metric averaged over the seeds; None where a run does not have it."""
        if not all(metric in run.metrics for run in self.runs):
            return None
        return sum(run.metrics[metric] for run in self.runs) / len(self.runs)

    def nats(self, metric: str) -> float | None:
        """The same with the log volume of the image's cell; see ``JobResult.nats``."""
        mean = self.mean(metric)
        return None if mean is None else mean + (self.runs[0].log_cell_volume or 0.0)

    @property
    def is_bound(self) -> bool:
        """See ``JobResult.is_bound``."""
        return self.runs[0].is_bound


@dataclass(frozen=True)
class Group:
    """The configurations with one kind of x and one set of test images.

    Attributes:
        x: what log p(x) is the probability of.
        keys: of the settings that differ in the sweep.
        configurations: in the order of the sweep.
    """

    x: str
    keys: Sequence[str]
    configurations: Sequence[Configuration]

    @cached_property
    def comparison(self) -> Comparison:
        """Of all configurations, by name."""
        return Comparison({c.name: c.scores for c in self.configurations})

    @property
    def runs(self) -> list[JobResult]:
        """Of all configurations."""
        return [run for configuration in self.configurations for run in configuration.runs]


def grouped(results: Sequence[JobResult]) -> list[Group]:
    """The finished runs by kind of x and test images, and within by configuration.

    Raises:
        ReportError: where the values per image of a run are missing or damaged.
    """
    found = [key for key in varying_settings(results) if key != SEED]
    made = []
    for group in groups(results):
        by_settings: dict[tuple[str, ...], dict[str, JobResult]] = {}
        for result in group:
            chosen = tuple(setting(result, key) for key in found)
            # A search may run one configuration twice with one seed: the same result.
            by_settings.setdefault(chosen, {})[setting(result, SEED)] = result
        own = [
            key
            for key in found
            if key == "latent_dim" or len({setting(result, key) for result in group}) > 1
        ]
        made.append(
            Group(
                group[0].x,
                found,
                [
                    _configuration(dict(zip(found, chosen, strict=True)), own, list(runs.values()))
                    for chosen, runs in by_settings.items()
                ],
            )
        )
    return made


def _configuration(
    settings: dict[str, str], own: Sequence[str], runs: Sequence[JobResult]
) -> Configuration:
    """Its name holds the settings ``own``, which tell it from the others of its group."""
    name = ", ".join(f"{key}={settings[key]}" for key in own)
    read = [read_scores(run) for run in runs]
    values, errors = zip(*read, strict=True)
    untrusted = sum(run.metrics["test/untrusted"] for run in runs) / len(runs)
    try:
        scores = Scores(torch.stack(values), torch.stack(errors), untrusted, runs[0].is_bound)
    except (RuntimeError, ValueError) as error:  # of different numbers of images, or not finite
        names = "; ".join(run.name for run in runs)
        raise ReportError(f"{names}: these runs cannot be compared: {error}") from error
    return Configuration(name, settings, runs, scores)


def read_scores(run: JobResult) -> tuple[torch.Tensor, torch.Tensor]:
    """log p(x) of every image, averaged over the samples of x, and its Monte Carlo error.

    Raises:
        ReportError: where the table is missing, is no such table, or is not that of the result.
    """
    import pandas as pd

    path = (run.folder or Path()) / PER_IMAGE_FILE
    names = ["image", "draw", "log_px", "log_px_std_error"]
    try:
        if regular_size(path) > _LARGEST_TABLE:
            raise ValueError(f"it has more than {_LARGEST_TABLE:,} bytes")
        frame = pd.read_csv(path, usecols=names, dtype="float64")
        # Rows are in order: the images of the first draw, then those of the next.
        draws = int(frame["draw"].max()) + 1
        image, value, error = (
            torch.tensor(frame[name].to_numpy()).reshape(draws, -1)
            for name in ("image", "log_px", "log_px_std_error")
        )
        if not (image == torch.arange(image.shape[1])).all():
            raise ValueError("its images are not in order")
        mean = value.mean().item()
        if not abs(mean - run.metrics["test/log_px"]) <= _ROUNDING * max(1.0, abs(mean)):
            raise ValueError("its mean log p(x) is not that of result.json")
    except (OSError, ValueError, RuntimeError) as problem:  # pandas' errors are ValueErrors
        raise ReportError(
            f"{path} of {run.name} cannot be read: {problem}. Runs are compared by the values of "
            "every image: run that job again, or leave it out"
        ) from problem
    return (
        value.mean(0) + (run.log_cell_volume or 0.0),
        error.square().sum(0).sqrt() / draws,
    )
