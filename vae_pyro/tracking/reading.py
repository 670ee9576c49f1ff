"""Runs that were recorded before: their numbers and files, read back from MLflow."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vae_pyro.errors import TrackingError
from vae_pyro.tracking.mlflow_run import PARENT
from vae_pyro.tracking.mlflow_store import MLflow
from vae_pyro.tracking.reasons import reason

_NAME_STORE = (
    "Name the tracking store that the run is in ($MLFLOW_TRACKING_URI; tracking_uri=... in Python, "
    "--uri on the command line)"
)


@contextmanager
def downloaded(run_id: str, artifact: str, uri: str | None = None) -> Iterator[Path]:
    """A copy of a run's artifact, in a folder that is removed afterwards.

    Args:
        run_id: MLflow's.
        artifact: a file or folder of the run.
        uri: of the tracking store; by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.

    Raises:
        TrackingError: where the store does not respond, or has no such run or artifact.
    """
    store = existing_store(uri)
    client = store.client()
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = client.download_artifacts(run_id, artifact, folder)
        except Exception as error:  # the stores raise their own kinds, from many libraries
            raise TrackingError(
                f"runs:/{run_id} in {store.uri} has no {artifact!r}: {reason(error)}. Name a run "
                f"that has finished. {_NAME_STORE}"
            ) from error
        yield Path(path)


@dataclass(frozen=True)
class RecordedRun:
    """What a store holds of a run that was recorded before.

    Attributes:
        run_id: MLflow's.
        name: of the run.
        status: how it ended.
        tags, params, metrics: by name; of a metric the last value.
    """

    run_id: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def recorded_runs(run_id: str, uri: str | None = None) -> list[RecordedRun]:
    """A run, or the jobs of a sweep where it is that of a sweep; in the order of their start.

    Args:
        run_id: MLflow's, 32 hexadecimal digits.
        uri: see ``downloaded``.

    Raises:
        TrackingError: where the store does not respond, or has no such run.
    """
    store = existing_store(uri)
    client = store.client()
    try:
        run = client.get_run(run_id)
        query = f"tags.`{PARENT}` = '{run.info.run_id}'"
        jobs = client.search_runs([run.info.experiment_id], query, order_by=["start_time ASC"])
    except Exception as error:  # the stores raise their own kinds, from many libraries
        raise TrackingError(
            f"there is no run {run_id} in {store.uri}: {reason(error)}. {_NAME_STORE}"
        ) from error
    return [
        RecordedRun(
            found.info.run_id,
            found.info.run_name or found.info.run_id,
            found.info.status,
            found.data.tags,
            found.data.params,
            found.data.metrics,
        )
        for found in jobs or [run]
    ]


def existing_store(uri: str | None = None, experiment: str = MLflow.experiment) -> MLflow:
    """The store of this address; a database must exist.

    Args:
        uri: by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.
        experiment: whose runs are meant.

    Raises:
        TrackingError: where it is a file that does not exist.
    """
    store = MLflow(uri or os.environ.get("MLFLOW_TRACKING_URI") or MLflow.uri, experiment)
    if store.uri.startswith("sqlite:///"):
        database = Path(store.uri.removeprefix("sqlite:///"))
        if not database.is_file():  # asking MLflow would create it
            raise TrackingError(f"there is no {database.absolute()}. {_NAME_STORE}")
    return store
