"""A tracker in another process: the same records, whatever happens to that process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from tests.conftest import ROOT
from vae_pyro.errors import TrackingError
from vae_pyro.runs.cores import _times
from vae_pyro.tracking import MLflow, OutboxRun, open_run
from vae_pyro.tracking.apart import RefusedCallError, begin, process_number
from vae_pyro.tracking.base import StoredRun

PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> MLflow:
    return MLflow(f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def run(store: MLflow) -> StoredRun:
    return store.apart().start_run("a job", {"fingerprint": "abc"})


@pytest.fixture(autouse=True)
def _end_what_was_started() -> Iterator[None]:
    yield
    number = process_number()
    if number is not None and is_alive(number):
        os.kill(number, signal.SIGKILL)
        assert eventually_ends(number)


def is_alive(number: int) -> bool:
    """Of a process that was killed, threads may still run when its first one has ended."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(os.listdir(f"/proc/{number}/task")) > 1
    except OSError:
        return False


def eventually_ends(number: int) -> bool:
    end = time.monotonic() + 60
    while is_alive(number) and time.monotonic() < end:
        time.sleep(0.05)
    return not is_alive(number)


def test_what_is_recorded_is_in_the_store(store: MLflow, run: StoredRun, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    run.log_params({"seed": 0})
    run.log_metrics({"elbo": -1.5}, 1)
    run.log_steps([({"elbo": -1.25}, 2, 1.0), ({"elbo": -1.0}, 3, 2.0)])
    run.log_image("samples", PICTURE, 1)
    run.log_image("final/samples", PICTURE, 0)
    run.log_file(tmp_path / "notes.txt", "notes")
    run.tag("colour", "blue")
    run.describe("a *job*")
    run.set_parent("f" * 32)
    run.end("FINISHED")
    assert run.has_image("samples", 1)
    assert not run.has_image("samples", 2)
    assert run.has_image("final/samples", 0)
    assert not run.has_image("final/samples", 1)
    assert not run.has_image("samples", 0)
    client = MlflowClient(store.uri)
    assert run.run_id is not None
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a job"
    assert found.data.params == {"seed": "0"}
    history = client.get_metric_history(run.run_id, "elbo")
    points = sorted((point.step, point.value) for point in history)
    assert points == [(1, -1.5), (2, -1.25), (3, -1.0)]
    assert [file.path for file in client.list_artifacts(run.run_id, "notes")] == ["notes/notes.txt"]
    tags = {
        "fingerprint": "abc",
        "colour": "blue",
        "mlflow.note.content": "a *job*",
        "mlflow.parentRunId": "f" * 32,
    }
    assert tags.items() <= found.data.tags.items()
    again = store.apart().find_run("fingerprint", "abc")
    assert again is not None
    assert again.run_id == run.run_id
    assert store.apart().find_run("fingerprint", "another") is None
    again.discard()
    assert client.get_run(run.run_id).info.lifecycle_stage == "deleted"


def test_it_is_the_same_store(store: MLflow) -> None:
    assert store.apart().options() == store.options()
    assert store.apart().is_store_of(store.options())
    assert store.apart().trouble() is None


def test_an_error_has_the_words_and_the_code_that_it_has_here(tmp_path: Path) -> None:
    nowhere = MLflow(f"sqlite:///{tmp_path}/no/mlflow.db")
    with pytest.raises(TrackingError, match="is not a folder that can be written") as here:
        nowhere.start_run("a job", {})
    with pytest.raises(TrackingError) as there:
        nowhere.apart().start_run("a job", {})
    assert str(there.value) == str(here.value)
    assert "in start_run" in "".join(there.value.__notes__)  # HYDRA_FULL_ERROR=1 shows where
    run = MLflow(f"sqlite:///{tmp_path}/mlflow.db").apart().start_run("a job", {})
    with pytest.raises(RefusedCallError, match="Invalid value") as refused:
        run.log_metrics({"no {name}": 1.0}, 1)
    assert refused.value.error_code == "INVALID_PARAMETER_VALUE"


def test_one_that_is_killed_is_replaced_and_nothing_is_lost(store: MLflow, tmp_path: Path) -> None:
    record = open_run(store, tmp_path / "record", "a job", {}, must_respond=True)
    assert isinstance(record, OutboxRun)
    for step in range(1, 61):
        record.log_metrics({"elbo": -1.0 * step}, step)
        if step % 20 == 0:
            record.log_image("samples", PICTURE, step)
            number = process_number()
            assert number is not None
            os.kill(number, signal.SIGKILL)
            assert eventually_ends(number)
    end = time.monotonic() + 300
    while record.undelivered and time.monotonic() < end:  # a new process imports MLflow first
        time.sleep(0.1)
    record.end("FINISHED")
    record.close()
    assert not record.undelivered
    client = MlflowClient(store.uri)
    assert record.run_id is not None
    points = client.get_metric_history(record.run_id, "elbo")
    assert [point.step for point in points] == list(range(1, 61))
    assert len(client.list_artifacts(record.run_id, "images")) == 6  # with thumbnails
    assert client.get_run(record.run_id).info.status == "FINISHED"
    assert len(client.search_runs(["0", "1"])) == 1


def test_signals_to_all_processes_of_a_job_leave_it_at_work(run: StoredRun) -> None:
    """A job that is told to end still has something to record."""
    number = process_number()
    assert number is not None
    for signum in (signal.SIGINT, signal.SIGTERM):
        os.kill(number, signum)
        run.tag("told", signum.name)
    assert process_number() == number


@pytest.mark.parametrize("ending", ["pass", "os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)"])
def test_it_ends_with_the_process_that_asks(tmp_path: Path, ending: str) -> None:
    """Whatever it does then: here it waits for a server that never answers."""
    program = f"""
import os, signal, socket, threading, time
from vae_pyro.tracking import MLflow
from vae_pyro.tracking.apart import process_number
silent = socket.create_server(("127.0.0.1", 0))
tracker = MLflow(f"http://127.0.0.1:{{silent.getsockname()[1]}}").apart()
threading.Thread(target=lambda: tracker.start_run("a job", {{}}), daemon=True).start()
silent.accept()
print(process_number(), flush=True)
{ending}
"""
    told = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert told.stdout, told.stderr
    assert eventually_ends(int(told.stdout))


def test_relative_paths_are_those_of_the_process_that_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert begin(time.tzset)  # it starts in another folder
    monkeypatch.chdir(tmp_path)
    run = MLflow("sqlite:///here.db").apart().start_run("a job", {})
    Path("notes.txt").write_text("hello")
    run.log_file(Path("notes.txt"))
    assert run.run_id is not None
    (file,) = MlflowClient(f"sqlite:///{tmp_path}/here.db").list_artifacts(run.run_id)
    assert file.path == "notes.txt"


def test_where_no_process_can_be_started_this_one_records(
    store: MLflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_pyro.tracking.apart._current", [])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert store.apart() is store


@pytest.mark.skipif(sys.platform != "linux", reason="known on Linux only")
def test_its_work_does_not_count_as_that_of_other_programs(run: StoredRun) -> None:
    assert (start := _times()) is not None
    before = _seconds_of(process_number())
    for step in range(20):
        run.log_metrics({f"elbo {n}": 1.0 for n in range(500)}, step)
    busy = _seconds_of(process_number()) - before
    assert (now := _times()) is not None
    assert busy > 0.1
    assert now[2] - start[2] >= busy - 0.05  # the system counts in hundredths of a second


def _seconds_of(number: int | None) -> float:
    about = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    return (int(about[11]) + int(about[12])) / os.sysconf("SC_CLK_TCK")


def test_a_job_does_not_import_the_client(tmp_path: Path) -> None:
    program = """
import sys
from vae_pyro.cli.main import main
try:
    main()
finally:
    print("imported:", "mlflow" in sys.modules, "sqlalchemy" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "training.epochs=1", "evaluation=quick"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "imported: False False" in done.stdout
    assert (tmp_path / "mlflow.db").exists()
