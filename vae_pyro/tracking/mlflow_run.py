"""A run in MLflow: parameters, metrics, pictures, files."""

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_pyro.tracking.base import FINAL, Status, StoredRun

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

PARENT = "mlflow.parentRunId"
_DIGEST = 36  # characters, at most, of a data set's digest


class MLflowRun(StoredRun):
    """A run of MLflow.

    Args:
        client: of its store.
        run_id: MLflow's.
        monitored: address of the store to which system metrics go while the run is running; None
            for none.
        is_running: whether it is.
    """

    def __init__(
        self,
        client: "MlflowClient",
        run_id: str,
        *,
        monitored: str | None = None,
        is_running: bool = False,
    ) -> None:
        self._run_id = run_id
        self._client = client
        self._monitored = monitored
        self._monitor: SystemMetricsMonitor | None = None
        if is_running:
            self._begin_to_monitor()

    @property
    def run_id(self) -> str:
        return self._run_id

    def log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        entries = [Param(key, str(value)) for key, value in params.items()]
        for start in range(0, len(entries), 100):  # MLflow's limit per call
            self._client.log_batch(self.run_id, params=entries[start : start + 100])

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        self.log_steps([(metrics, step, time.time() if at is None else at)])

    def log_steps(self, records: Sequence[tuple[Mapping[str, float], int, float]]) -> None:
        from mlflow.entities import Metric

        entries = [
            Metric(key, value, int(at * 1000), step)
            for metrics, step, at in records
            for key, value in metrics.items()
        ]
        for start in range(0, len(entries), 1000):  # MLflow's limit per call
            self._client.log_batch(self.run_id, metrics=entries[start : start + 1000])

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self.run_id, image, key=key, step=step)

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name,
            digest[:_DIGEST],
            source_type="code",
            source=json.dumps({"class": source}),
            profile=json.dumps(dict(profile)),
        )
        context = InputTag("mlflow.data.context", "training, validation and test")
        self._client.log_inputs(self.run_id, [DatasetInput(dataset, [context])])

    def log_file(self, path: Path, folder: str | None = None) -> None:
        if not self._share(path, folder):
            self._client.log_artifact(self.run_id, str(path), folder)

    def log_model(self, name: str) -> None:
        from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
        from mlflow.exceptions import MlflowException

        run = self._client.get_run(self.run_id)
        try:
            model = self.model() or self._client.create_logged_model(
                run.info.experiment_id,
                name,
                self.run_id,
                tags={"mlflow.model.isExternal": "true"},  # until its files are registered
                params=run.data.params,
            )
        except MlflowException as error:
            if error.error_code == "ENDPOINT_NOT_FOUND":  # of servers before 3.0
                return
            raise
        if not (run.outputs and run.outputs.model_outputs):
            self._client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, FINAL)])
        # With their time: the run knows them already, and gets no second point.
        metrics = [
            Metric(one.key, one.value, one.timestamp, one.step, model_id=model.model_id)
            for one in run.data.to_proto().metrics
            if one.key.startswith("test/")
        ]
        self._client.log_batch(self.run_id, metrics=metrics)
        self._client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)

    def model(self) -> "LoggedModel | None":
        """The model that the run has trained; None where it is not recorded."""
        experiment = self._client.get_run(self.run_id).info.experiment_id
        found = self._client.search_logged_models(
            [experiment], f"source_run_id = '{self.run_id}'", max_results=1
        )
        return found[0] if found else None

    def _share(self, path: Path, folder: str | None) -> bool:
        """Where the store lies beside the job's folder, both have one copy: a link.

        That is safe, since files are replaced and never changed.

        Returns:
            whether that was possible; not so on two file systems, or in another user's store.
        """
        root = self._client.get_run(self.run_id).info.artifact_uri
        if not root.startswith("file:"):
            return False
        from mlflow.utils.file_utils import local_file_uri_to_path

        stored = Path(local_file_uri_to_path(root)) / (folder or "") / path.name
        try:
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.unlink(missing_ok=True)
            os.link(path, stored)
        except OSError:
            return False
        return True

    def tag(self, name: str, value: str) -> None:
        self._client.set_tag(self.run_id, name, value)

    def describe(self, markdown: str) -> None:
        self._client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def end(self, status: Status) -> None:
        if status == "RUNNING":
            self._client.update_run(self.run_id, status)
            self._begin_to_monitor()
            return
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._client.set_terminated(self.run_id, status)

    def _begin_to_monitor(self) -> None:
        if self._monitored is None or self._monitor is not None:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self._monitor = SystemMetricsMonitor(
            self.run_id, resume_logging=True, tracking_uri=self._monitored
        )
        self._monitor.start()

    def has_image(self, key: str, step: int) -> bool:
        names = (
            Path(file.path).name for file in self._client.list_artifacts(self.run_id, "images")
        )
        # MLflow writes the picture and then its thumbnail: where that is there, both are. Its
        # versions differ in what they write for / and %.
        name = re.escape(key).replace("/", "[#~]")
        mine = re.compile(rf"{name}[%+]step[%+]{step}[%+].*\.webp")
        return any(map(mine.fullmatch, names))

    def set_parent(self, parent: str) -> None:
        self._client.set_tag(self.run_id, PARENT, parent)

    def discard(self) -> None:
        self._client.delete_run(self.run_id)
