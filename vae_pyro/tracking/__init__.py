"""Where a run is recorded: in MLflow, through an outbox on disk, or nowhere."""

from vae_pyro.tracking.base import FINAL, NoTracking, Run, SilentRun, Status, StoredRun, Tracker
from vae_pyro.tracking.mlflow_store import MLflow
from vae_pyro.tracking.outbox import RECORD_FOLDER, OutboxRun, deliver_rest, open_run
from vae_pyro.tracking.reading import (
    RecordedRun,
    downloaded,
    existing_store,
    fetch_pictures,
    recorded_as,
    recorded_runs,
)
from vae_pyro.tracking.serving import register

__all__ = [
    "FINAL",
    "RECORD_FOLDER",
    "MLflow",
    "NoTracking",
    "OutboxRun",
    "RecordedRun",
    "Run",
    "SilentRun",
    "Status",
    "StoredRun",
    "Tracker",
    "deliver_rest",
    "downloaded",
    "existing_store",
    "fetch_pictures",
    "open_run",
    "recorded_as",
    "recorded_runs",
    "register",
]
