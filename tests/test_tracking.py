"""MLflow, the real thing: an embedded database and a server on loopback."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests import forkserver
from vae_pyro.errors import TrackingError
from vae_pyro.files import write_atomically
from vae_pyro.tracking import MLflow, NoTracking


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_healthy(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            time.sleep(0.25)
    raise TimeoutError(log.read_text())


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """A tracking server with its own database and artifact store, on loopback."""
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "store")]
    # Without its eight processes for jobs, which no test needs.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = forkserver.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(uri, server, folder / "server.log")
        yield uri
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(params=["database", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "database":
        yield f"sqlite:///{tmp_path}/mlflow.db"
    else:
        with mlflow_server(tmp_path) as address:
            yield address


@pytest.mark.slow
def test_everything_comes_back(uri: str, tmp_path: Path) -> None:
    tracker = MLflow(uri, "an experiment")
    parent = tracker.start_run("the sweep", {"sweep": "parent"})
    run = tracker.start_run("a job", {"fingerprint": "abc"}, parent.run_id)
    run.log_params({f"group.key_{i}": i for i in range(130)})  # more than one call takes
    for step in (1, 2):
        run.log_metrics({"valid/elbo": -10.0 / step, "valid/kl": float(step)}, step)
    run.log_image("samples", np.zeros((4, 5, 3), np.uint8), 0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.txt").write_text("a")
    run.log_file(tmp_path / "folder", "model")
    run.log_file(tmp_path / "folder" / "a.txt")
    run.tag("log_px_trusted", "no")
    run.describe("| a table |")
    run.end("FINISHED")
    parent.end("FAILED")

    client = MlflowClient(uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "a job"
    assert stored.data.tags["mlflow.parentRunId"] == parent.run_id
    assert stored.data.tags["fingerprint"] == "abc"
    assert stored.data.tags["log_px_trusted"] == "no"
    assert stored.data.tags["mlflow.note.content"] == "| a table |"
    assert stored.data.params == {f"group.key_{i}": str(i) for i in range(130)}
    history = client.get_metric_history(run.run_id, "valid/elbo")
    assert [(point.step, point.value) for point in history] == [(1, -10.0), (2, -5.0)]
    paths = {artifact.path for artifact in client.list_artifacts(run.run_id)}
    assert paths == {"a.txt", "model", "images"}
    images = [artifact.path for artifact in client.list_artifacts(run.run_id, "images")]
    assert any("samples" in path and path.endswith(".png") for path in images)
    parent_run = client.get_run(parent.run_id)
    assert parent_run.info.status == "FAILED"
    assert "mlflow.parentRunId" not in parent_run.data.tags


def test_an_embedded_database_keeps_its_files_beside_it(tmp_path: Path) -> None:
    tracker = MLflow(f"sqlite:///{tmp_path}/mlflow.db")
    run = tracker.start_run("job", {})
    run.log_image("samples", np.zeros((4, 5, 3), np.uint8), 0)
    assert list((tmp_path / "mlartifacts").rglob("*.png"))


def test_a_relative_address_is_that_of_the_folder_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow itself goes on with the database of the first folder."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        MLflow().start_run(name, {})
    for name in ("first", "second"):
        client = MlflowClient(f"sqlite:///{tmp_path / name}/mlflow.db")
        experiment = client.get_experiment_by_name("vae-pyro")
        assert [run.info.run_name for run in client.search_runs([experiment.experiment_id])] == [
            name
        ]


def test_a_file_beside_its_store_is_there_once(tmp_path: Path) -> None:
    """A link, which writing the file anew does not change."""
    run = MLflow(f"sqlite:///{tmp_path}/mlflow.db").start_run("run", {})
    path = tmp_path / "weights.safetensors"
    write_atomically(path, b"first")
    run.log_file(path, "model")
    (stored,) = tmp_path.glob("mlartifacts/*/artifacts/model/*")
    assert stored.samefile(path)
    write_atomically(path, b"second")
    assert stored.read_bytes() == b"first"
    run.log_file(path, "model")
    assert stored.samefile(path)
    assert [p.name for p in stored.parent.iterdir()] == [path.name]


def test_a_discarded_run_is_out_of_sight(tmp_path: Path) -> None:
    tracker = MLflow(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.start_run("job", {}).discard()
    client = MlflowClient(tracker.uri)
    experiment = client.get_experiment_by_name("vae-pyro")
    assert client.search_runs([experiment.experiment_id]) == []


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("http://127.0.0.1:{port}", "no server responds there"),
        ("https://127.0.0.1:{port}/mlflow", "no server responds there"),
        ("postgresql://me@127.0.0.1:{port}/db", "no server responds there"),
        ("sqlite:////no/such/folder/mlflow.db", "/no/such/folder is not a folder"),
        ("carrier-pigeon://loft", "carrier-pigeon"),
        ("http://127.0.0.1:abc", "no server responds there"),
        ("postgresql://127.0.0.1:abc/db", "no server responds there"),
        ("http://[::1", "it is not an address"),
        ("sqlite://", "a database in memory is lost"),
        ("sqlite:///", "a database in memory is lost"),
        ("sqlite:///:memory:", "a database in memory is lost"),
        ("sqlite:///file:x?mode=memory", "a database in memory is lost"),
        ("", "it is empty"),
        ("./mlruns", "mlruns"),
    ],
)
def test_an_unusable_store_is_told_within_seconds(uri: str, why: str) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        MLflow(uri.format(port=free_port())).start_run("job", {})
    assert time.monotonic() - start < 10
    message = str(caught.value)
    assert why in message
    assert "tracking=none" in message
    assert "\n" not in message


def test_a_database_that_says_nothing_is_not_waited_for() -> None:
    """It takes the connection, and then nothing comes."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"postgresql://me@127.0.0.1:{silent.getsockname()[1]}/db"
        start = time.monotonic()
        with pytest.raises(TrackingError):
            MLflow(uri).start_run("job", {})
        assert time.monotonic() - start < 10


def test_somebody_else_who_answers_is_not_mlflow(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    other = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        with pytest.raises(TrackingError, match="404"):
            MLflow(f"http://127.0.0.1:{port}").start_run("job", {})
    finally:
        other.terminate()
        other.wait(10)


def test_a_deleted_experiment_is_told(tmp_path: Path) -> None:
    tracker = MLflow(f"sqlite:///{tmp_path}/mlflow.db")
    tracker.start_run("job", {}).end("FINISHED")
    client = MlflowClient(tracker.uri)
    client.delete_experiment(client.get_experiment_by_name("vae-pyro").experiment_id)
    with pytest.raises(TrackingError, match=r"'vae-pyro' was deleted.*tracking\.experiment"):
        tracker.start_run("job", {})


@pytest.mark.slow
def test_system_metrics_are_recorded_while_a_job_runs(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    tracker = MLflow(uri, system_metrics=True)
    client = MlflowClient(uri)

    def steps(run_id: str | None) -> list[int]:
        assert run_id is not None
        history = client.get_metric_history(run_id, "system/cpu_utilization_percentage")
        assert all(0 <= point.value <= 100 for point in history)
        return sorted(point.step for point in history)

    def wait_for(number: int) -> None:
        end = time.monotonic() + 60
        while len(steps(run.run_id)) < number and time.monotonic() < end:
            time.sleep(0.1)

    parent = tracker.start_run("the sweep", {"sweep": "parent"})
    run = tracker.start_run("a job", {"fingerprint": "abc"}, parent.run_id)
    wait_for(3)
    run.end("KILLED")
    before = len(steps(run.run_id))
    assert before >= 3
    found = tracker.find_run("fingerprint", "abc")  # for instance to deliver its last records
    assert found is not None
    time.sleep(1)
    assert len(steps(run.run_id)) == before
    found.end("RUNNING")
    wait_for(before + 3)
    found.end("FINISHED")
    assert steps(run.run_id) == list(range(len(steps(run.run_id))))
    assert len(steps(run.run_id)) >= before + 3
    assert steps(parent.run_id) == []


def test_system_metrics_need_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MLflow(system_metrics=True).is_store_of(MLflow().options())
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(TrackingError, match="needs: pip install psutil"):
        MLflow(system_metrics=True)


def test_no_tracking_keeps_nothing() -> None:
    run = NoTracking().start_run("job", {})
    run.log_metrics({"valid/elbo": 1.0}, 1)
    run.end("FINISHED")
    assert run.run_id is None


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As some that clusters share: flock fails with ENOLCK."""

    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    run = MLflow(f"sqlite:///{tmp_path}/mlflow.db").start_run("job", {})
    run.end("FINISHED")
    assert (
        MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(run.run_id).info.run_name == "job"
    )


@pytest.mark.parametrize("name", ["it's", 'a"b', """it's "both" ones""", "back\\slash", "a:b"])
def test_a_folder_with_an_odd_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow writes the current folder's path into SQL as it is."""
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.chdir(folder)
    run = MLflow(f"sqlite:///{folder}/mlflow.db").start_run("job", {})
    run.log_image("samples", np.zeros((4, 5, 3), np.uint8), 0)
    run.end("FINISHED")
    assert list((folder / "mlartifacts").rglob("*.png"))
