"""Runs that were recorded before: their numbers and files, read back from MLflow."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vae_pyro.errors import TrackingError
from vae_pyro.tracking.mlflow_run import PARENT
from vae_pyro.tracking.mlflow_store import MLflow
from vae_pyro.tracking.reasons import reason

# Of a series final/<name>; MLflow's versions differ in what they write for a slash.
_FINAL_PICTURE = re.compile(r"final[#~](\w+)[%+]step[%+].*\.png")
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


def fetch_pictures(run_id: str, folder: Path, uri: str | None = None) -> None:
    """Copy a run's final pictures and its configuration into a folder, named as a job names them.

    Args:
        run_id: MLflow's.
        folder: gets ``samples.png``, ``training.png``, ``config.yaml``, ... as far as the run has
            them.
        uri: see ``downloaded``.

    Raises:
        TrackingError: where the store does not respond.
    """
    store = existing_store(uri)
    client = store.client()
    try:
        found = [file.path for file in client.list_artifacts(run_id)]
        files = {path: path for path in found if path.endswith((".png", ".yaml"))}
        for file in client.list_artifacts(run_id, "images") if "images" in found else ():
            if (name := _FINAL_PICTURE.fullmatch(Path(file.path).name)) is not None:
                files[file.path] = f"{name[1]}.png"
        with tempfile.TemporaryDirectory() as place:
            for path, name in files.items():
                copy = client.download_artifacts(run_id, path, place)
                shutil.copyfile(copy, folder / name)
    except Exception as error:  # the stores raise their own kinds, from many libraries
        raise TrackingError(
            f"the pictures of run {run_id} in {store.uri} cannot be read: {reason(error)}"
        ) from error


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


def recorded_as(fingerprint: str, uri: str | None = None) -> str:
    """The run of a job, by its fingerprint; the newest, where there are several.

    Args:
        fingerprint: of the job, the run's tag.
        uri: of the tracking store; by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.

    Raises:
        TrackingError: where the store does not respond, or has no such run.
    """
    store = existing_store(uri)
    client = store.client()
    try:
        experiments = [found.experiment_id for found in client.search_experiments()]
        found = client.search_runs(
            experiments,
            f"tags.fingerprint = '{fingerprint}' AND attributes.status = 'FINISHED'",
            max_results=1,
        )
    except Exception as error:
        raise TrackingError(f"{store.uri} cannot be read: {reason(error)}") from error
    if not found:
        raise TrackingError(
            f"{store.uri} has no finished run of this job: it was recorded in another store (--uri)"
            ", or with tracking=none"
        )
    run_id: str = found[0].info.run_id
    return run_id


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
