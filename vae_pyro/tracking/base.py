"""The interface of trackers and their runs, and the tracker that records nothing."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

FINAL = 0
"""The step of final metrics and pictures: MLflow draws bars of what ends at step 0, not lines."""
Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


class Run(ABC):
    """One run that is being recorded."""

    @property
    def run_id(self) -> str | None:
        """The tracker's id of this run; None where nothing is kept."""
        return None

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the configuration, once."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        """Record metrics of one step; recording the same ones again changes nothing.

        Args:
            metrics: values by name.
            step: the epoch.
            at: when they were measured, in seconds since 1970; by default now.
        """

    @abstractmethod
    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Record one picture of a series.

        Args:
            key: name of the series; what is left of a slash is the section that shows it.
            image: ``uint8 (H, W, 3)``.
            step: the epoch.
        """

    @abstractmethod
    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Record which images the run used.

        Args:
            name: of the data set.
            digest: of its images and labels, in hexadecimal.
            source: where they come from.
            profile: its sizes, in values that JSON has.
        """

    @abstractmethod
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file of the job's folder.

        Args:
            path: of the file.
            folder: of the run's artifacts; by default the topmost.
        """

    @abstractmethod
    def log_model(self, name: str) -> None:
        """Record that the run has trained a model, with the final ``test/`` metrics so far."""

    @abstractmethod
    def tag(self, name: str, value: str) -> None:
        """Set a tag, by which runs can be found and filtered."""

    @abstractmethod
    def describe(self, markdown: str) -> None:
        """Set the text that is shown first when the run is opened."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Close the run; ``RUNNING`` opens it again."""

    def close(self) -> None:
        """Wait some seconds until the store has everything; log how many entries still wait."""
        return

    def discard(self) -> None:
        """Take back a run in which nothing happened."""
        return


class StoredRun(Run):
    """A run as a tracker keeps it."""

    def log_steps(self, records: Sequence[tuple[Mapping[str, float], int, float]]) -> None:
        """Record metrics of several steps, each as (metrics, step, at) of ``log_metrics``."""
        for metrics, step, at in records:
            self.log_metrics(metrics, step, at)

    @abstractmethod
    def has_image(self, key: str, step: int) -> bool:
        """Whether the series has a picture of this step."""

    @abstractmethod
    def set_parent(self, parent: str) -> None:
        """Make it a child of the run ``parent``."""


class Tracker(ABC):
    """A choice for ``tracking=``."""

    @abstractmethod
    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> StoredRun:
        """Open a run, as a child of the run ``parent`` where one is given.

        The store is created where there is none: in a sweep by the parent, before any job starts.

        Raises:
            TrackingError: within 10 seconds, where the store does not respond or cannot be written.
        """

    @abstractmethod
    def find_run(self, tag: str, value: str) -> StoredRun | None:
        """The run that has this tag; None where the store has none.

        Raises:
            TrackingError: as ``start_run``.
        """

    def apart(self) -> "Tracker":
        """This tracker, or one whose calls another process makes, beside a training."""
        return self

    def trouble(self) -> Exception | None:
        """Why the store does not respond, found in a moment; None where that is unknown."""
        return None

    def options(self) -> dict[str, str]:
        """The class and its options as text, which together identify the store."""
        fields: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        fields = {name: str(value) for name, value in fields.items()}
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **fields}

    def is_store_of(self, recorded: Mapping[str, str]) -> bool:
        """Whether ``recorded``, the ``options`` of a tracker, identifies this same store."""
        return _without_module(recorded) == _without_module(self.options())


def _without_module(options: Mapping[str, str]) -> dict[str, str]:
    """A class of this package may lie in another module than when the options were written."""
    target = options.get("_target_", "")
    own = target.rpartition(".")[2] if target.startswith("vae_pyro.") else target
    return {**options, "_target_": own}


@dataclass(frozen=True)
class NoTracking(Tracker):
    """Record nothing; a job still leaves its files in its own folder."""

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> StoredRun:
        return SilentRun()

    def find_run(self, tag: str, value: str) -> StoredRun | None:
        return SilentRun()


class SilentRun(StoredRun):
    """A run that keeps nothing."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        pass

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        pass

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        pass

    def log_file(self, path: Path, folder: str | None = None) -> None:
        pass

    def log_model(self, name: str) -> None:
        pass

    def tag(self, name: str, value: str) -> None:
        pass

    def describe(self, markdown: str) -> None:
        pass

    def end(self, status: Status) -> None:
        pass

    def has_image(self, key: str, step: int) -> bool:
        return False

    def set_parent(self, parent: str) -> None:
        pass
