"""Where a run's numbers and files go: MLflow, or nowhere. The only file that imports mlflow."""

import http.client
import logging
import os
import socket
import tempfile
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np

from vae_pyro.config import without_passwords
from vae_pyro.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
_ANSWER_WITHIN = 5.0  # seconds
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Run(ABC):
    """One run that is being recorded.

    Attributes:
        run_id: under which the tracker keeps it; None where nothing is kept.
    """

    run_id: str | None = None

    @abstractmethod
    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record the configuration, once."""

    @abstractmethod
    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers that belong together."""

    @abstractmethod
    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        """Record a picture, ``uint8 (H, W, 3)``, of a series."""

    @abstractmethod
    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Keep a copy of a file, or of a whole folder, under ``folder``."""

    @abstractmethod
    def describe(self, markdown: str) -> None:
        """Set the text that is shown first when the run is opened."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Close the run."""

    @abstractmethod
    def discard(self) -> None:
        """Take back a run under which nothing happened."""


class Tracker(ABC):
    """A choice for ``tracking=``."""

    @abstractmethod
    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> Run:
        """Open a run, as a child of the run ``parent`` where one is given.

        The store is created where there is none: in a sweep by the parent, before any job starts.

        Raises:
            TrackingError: where the store does not answer or cannot be written.
        """


@dataclass(frozen=True)
class MLflow(Tracker):
    """Record in MLflow.

    Args:
        uri: a database (``sqlite:///mlflow.db``, ``postgresql://...``) or a server (``http://...``).
        experiment: its name; created where it is missing.
    """

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "vae-pyro"

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> Run:
        client, experiment_id = self._open()
        tags = dict(tags)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        return _MLflowRun(client, run.info.run_id)

    def client(self) -> "MlflowClient":
        """MLflow's own client of a store that answers.

        Raises:
            TrackingError: where it does not.
        """
        self._reach()
        # A suite that people run on their own data has no business reporting on its use.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            return mlflow.MlflowClient(self.uri)
        except Exception as error:
            raise self._refused(error) from error

    def _open(self) -> "tuple[MlflowClient, str]":
        client = self.client()
        try:
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                # The kind decides which of MLflow's two faces the experiment opens with.
                kind = {"mlflow.experimentKind": "custom_model_development"}
                created = client.create_experiment(self.experiment, self._artifacts(), tags=kind)
                return client, created
        except Exception as error:  # the stores raise SQLAlchemy's, requests' and MLflow's own
            raise self._refused(error) from error
        if experiment.lifecycle_stage != "active":
            raise self._unusable(
                f"its experiment {self.experiment!r} was deleted; restore it, or choose another "
                "with tracking.experiment"
            )
        return client, experiment.experiment_id

    def _reach(self) -> None:
        """Find out within seconds what MLflow's own retries take minutes to tell."""
        if not self.uri:
            raise self._unusable("it is empty")
        parts = urlsplit(self.uri)
        if parts.scheme == "sqlite":
            folder = self._sqlite_folder()
            if not os.access(folder, os.W_OK):
                raise self._unusable(f"{folder} is not a folder that can be written")
        elif parts.scheme in ("http", "https"):
            try:
                health = f"{self.uri.rstrip('/')}/health"
                urllib.request.urlopen(health, timeout=_ANSWER_WITHIN).close()  # noqa: S310
            except urllib.error.HTTPError:
                pass  # somebody answers; what they say to MLflow's own calls will be seen
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise self._unusable(f"nobody answers there ({error})") from error
        elif (database := parts.scheme.partition("+")[0]) in _DATABASE_PORTS:
            try:
                port = parts.port or _DATABASE_PORTS[database]
                socket.create_connection((parts.hostname, port), timeout=_ANSWER_WITHIN).close()
            except (OSError, ValueError) as error:
                raise self._unusable(f"nobody answers there ({error})") from error

    def _sqlite_folder(self) -> Path:
        return Path(self.uri.removeprefix("sqlite:///")).absolute().parent

    def _artifacts(self) -> str | None:
        """Beside an embedded database; a server knows its own place."""
        if self.uri.startswith("sqlite:///"):
            return (self._sqlite_folder() / "mlartifacts").as_uri()
        return None

    def _refused(self, error: Exception) -> TrackingError:
        return self._unusable(_first_line(error))

    def _unusable(self, why: str) -> TrackingError:
        return TrackingError(
            f"tracking.uri={without_passwords(self.uri)} cannot be used: {why}. Start the server, "
            "mend the address, use the embedded database (tracking.uri=sqlite:///mlflow.db), or "
            "record nothing (tracking=none)."
        )


def _first_line(error: Exception) -> str:
    first_line, *_ = str(error).strip().splitlines() or [type(error).__name__]
    return without_passwords(first_line.rstrip("."))


@contextmanager
def downloaded(run_id: str, artifact: str, uri: str | None = None) -> Iterator[Path]:
    """A copy of what a run kept, in a folder that is removed afterwards.

    Args:
        run_id: MLflow's.
        artifact: a file or folder of the run.
        uri: of the tracking store; by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.

    Raises:
        TrackingError: where the store does not answer, or has no such run or artifact.
    """
    store = MLflow(uri or os.environ.get("MLFLOW_TRACKING_URI") or MLflow.uri)
    if store.uri.startswith("sqlite:///"):
        database = Path(store.uri.removeprefix("sqlite:///"))
        if not database.is_file():  # asking MLflow would create it
            raise TrackingError(
                f"there is no {database.absolute()}: name the tracking store that the run is in "
                "(tracking_uri=..., or $MLFLOW_TRACKING_URI)"
            )
    client = store.client()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(run_id, artifact, folder)
        except Exception as error:  # the stores raise their own kinds, from many libraries
            raise TrackingError(
                f"runs:/{run_id} in {without_passwords(store.uri)} has no {artifact!r}: "
                f"{_first_line(error)}. Name a run that has finished, and the tracking "
                "store it is in (tracking_uri=..., or $MLFLOW_TRACKING_URI)"
            ) from error
        yield Path(path)


class _MLflowRun(Run):
    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.run_id: str = run_id
        self._client = client

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), 100):  # MLflow's limit per call
            self._client.log_batch(self.run_id, params=entries[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[Metric(key, value, now, step) for key, value in metrics.items()]
        )

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self.run_id, image, key=key, step=step)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def describe(self, markdown: str) -> None:
        self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def end(self, status: Status) -> None:
        self._client.set_terminated(self.run_id, status)

    def discard(self) -> None:
        self._client.delete_run(self.run_id)


@dataclass(frozen=True)
class NoTracking(Tracker):
    """Record nothing; a job still leaves its files in its own output folder."""

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> Run:
        return _SilentRun()


class _SilentRun(Run):
    def log_params(self, params: Mapping[str, Any]) -> None:
        pass

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        pass

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        pass

    def log_file(self, path: Path, folder: str | None = None) -> None:
        pass

    def describe(self, markdown: str) -> None:
        pass

    def end(self, status: Status) -> None:
        pass

    def discard(self) -> None:
        pass
