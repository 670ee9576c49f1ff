"""``vae-pyro ui`` and the saved view of MLflow's runs page."""

import json
import re
import socket
import subprocess
import sys
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests import forkserver
from tests.conftest import ROOT
from tests.test_sweep import CONTRACT
from tests.test_tracking import mlflow_server
from vae_pyro.tracking import MLflow
from vae_pyro.tracking.view import NAME, missing_view

TAG = "mlflow.sharedViewState.elbo-vs-iwae"


def ui(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(
        [sys.executable, str(ROOT / "run.py"), "ui", *arguments],
        cwd=folder,
        timeout=200,
        capture_output=True,
        text=True,
    )


def state(tag: str) -> Any:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(b64decode(packed)))


@pytest.mark.slow
def test_without_a_database_there_is_nothing_to_show(tmp_path: Path) -> None:
    done = ui(tmp_path)
    assert done.returncode == 1
    assert "mlflow.db" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir())  # MLflow would have made a database


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("port", ["taken", "70000", "-1"])
def test_a_port_that_cannot_be_used(port: str, taken: int, tmp_path: Path) -> None:
    MLflow(f"sqlite:///{tmp_path}/mlflow.db").start_run("a", {})
    number = str(taken) if port == "taken" else port
    done = ui(tmp_path, f"--port={number}")
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    assert message.startswith(f"error: port {number} cannot be used")
    assert "make ui PORT=5001" in message


@pytest.mark.slow
def test_a_server_shows_itself(tmp_path: Path) -> None:
    """Where the store is a server, no second one is started."""
    with mlflow_server(tmp_path) as uri:
        MLflow(uri).start_run("a", {})
        done = ui(tmp_path, "--uri", uri)
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name("vae-pyro")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(rf"open {uri}/#/experiments/{experiment.experiment_id}/\S+\n", done.stdout)
    assert json.loads(experiment.tags[TAG])["name"] == NAME


def test_the_view_is_there_and_is_renewed_unless_somebody_changed_it(tmp_path: Path) -> None:
    store = MLflow(f"sqlite:///{tmp_path}/mlflow.db")
    store.start_run("a", {})
    client = MlflowClient(store.uri)

    def tag(**changed: Any) -> str:
        experiment = client.get_experiment_by_name("vae-pyro")
        now: str = experiment.tags[TAG]
        if changed:
            value = json.dumps(json.loads(now) | changed)
            client.set_experiment_tag(experiment.experiment_id, TAG, value)
            store.start_run("another", {})
            return tag()
        return now

    ours = tag()
    assert len(ours) <= 5000  # what MLflow takes
    assert tag(state="of an older version") == ours
    theirs = json.loads(ours)["updatedAt"] + 1
    assert json.loads(tag(updatedAt=theirs, name="mine"))["name"] == "mine"


@pytest.mark.parametrize("foreign", ["", "{", "[]", "3", '{"createdAt": 1}', '"text"'])
def test_a_tag_that_is_not_understood_stays(foreign: str) -> None:
    assert missing_view({TAG: foreign}) == {}


def test_the_view_asks_for_metrics_that_runs_have() -> None:
    """The names of the contract; a column that no run has would be empty."""
    view = state(missing_view({})[TAG])
    assert view["selectedColumns"] == [
        "params.`latent_dim`",
        "params.`likelihood`",
        "params.`seed`",
        "metrics.`test/elbo`",
        "metrics.`test/iwae_50`",
        "metrics.`test/log_px`",
        "metrics.`test/pareto_k_high`",
    ]
    metrics = {name[9:-1] for name in view["selectedColumns"] if name.startswith("metrics.")}
    assert metrics <= CONTRACT  # the browser test of a sweep checks that runs have these
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} <= sections
