"""Where a run's numbers and files go: MLflow, or nowhere; and a record on disk before that."""

from vae_pyro.tracking.base import NoTracking, Run, SilentRun, Status, StoredRun, Tracker
from vae_pyro.tracking.record import Record, deliver_rest, open_run
from vae_pyro.tracking.store import MLflow, downloaded

RECORD_FOLDER = "record"

__all__ = [
    "MLflow",
    "NoTracking",
    "Record",
    "Run",
    "SilentRun",
    "Status",
    "StoredRun",
    "Tracker",
    "deliver_rest",
    "downloaded",
    "open_run",
]
