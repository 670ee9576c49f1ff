"""Things break while jobs run: no record is lost, no file is half-written, and it is told."""

import json
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests import forkserver
from tests.conftest import ROOT
from tests.test_resume import ONE_THREAD, SHORT, outcome, recorded, running, wait_for
from tests.test_sweep import CONTRACT
from tests.test_tracking import free_port, mlflow_server
from vae_pyro.evaluation.names import put_back
from vae_pyro.files import read_tensors

RunPy = Callable[..., subprocess.CompletedProcess[str]]
LONG = (*SHORT, "training.epochs=60", "training.patience=60")


class Server:
    """A tracking server that is away, and back again at the same address, in a moment.

    It is reached through a door, which alone is shut: starting the server takes half a minute.
    So the tests share one, in which each has an experiment of its own.
    """

    def __init__(self, address: str, experiment: str) -> None:
        self.experiment = experiment
        self._behind = ("127.0.0.1", int(address.rpartition(":")[2]))
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._open: list[socket.socket] = []
        self._is_hanging = False

    @property
    def overrides(self) -> tuple[str, str]:
        return f"tracking.uri={self.uri}", f"tracking.experiment={self.experiment}"

    def start(self) -> None:
        door = socket.create_server(("127.0.0.1", self.port))
        self._open = [door]
        threading.Thread(target=self._let_in, args=(door,), daemon=True).start()

    def stop(self) -> None:
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._open = []

    def hang(self) -> None:
        """Accept connections, and drop what is sent."""
        self._is_hanging = True

    def _let_in(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                guest, _ = door.accept()
                host = socket.create_connection(self._behind)
                self._open += [guest, host]
                for pair in ((guest, host), (host, guest)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if self._is_hanging:
                    return
                target.sendall(data)
            if not self._is_hanging:
                target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of MLflow's server, and the folder of all that it keeps."""
    folder = tmp_path_factory.mktemp("served")
    with mlflow_server(folder) as address:
        yield address, folder


@pytest.fixture
def server(served: tuple[str, Path], tmp_path: Path) -> Iterator[Server]:
    server = Server(served[0], tmp_path.name)
    server.start()
    yield server
    server.stop()


def assert_complete(server: Server, job: Path) -> None:
    """The server has every metric of every epoch once, in order, and every picture and file."""
    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(server.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert set(run.data.metrics) == CONTRACT
    result = json.loads((job / "result.json").read_text())["metrics"]
    assert result.items() <= put_back(run.data.metrics).items()
    for name in ("train/elbo", "valid/elbo", "valid/kl"):
        points = client.get_metric_history(run.info.run_id, name)
        assert [point.step for point in points] == list(range(1, 61))
        times = [point.timestamp for point in points]
        assert times == sorted(times)
    images = [f.path for f in client.list_artifacts(run.info.run_id, "images")]
    thumbnails = [path for path in images if path.endswith(".webp")]
    assert len(thumbnails) == 3 * 5  # three kinds, before, thrice, and the final ones
    # A server that is stopped between a picture and its thumbnail keeps it, and gets both later.
    assert 0 <= len(images) - 2 * len(thumbnails) <= 1
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert {"checkpoint", "config.yaml", "model", "per_image.csv"} <= files


def test_a_server_that_comes_back_gets_what_it_missed(server: Server, tmp_path: Path) -> None:
    journal = tmp_path / "job/record/journal.jsonl"
    with running(tmp_path, *LONG, *server.overrides, "hydra.run.dir=job") as process:
        wait_for(lambda: journal.exists() and '"step": 15' in journal.read_text(), process)
        server.stop()
        wait_for(lambda: '"step": 35' in journal.read_text(), process)
        server.start()
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "the tracking store cannot take records for now" in output.replace("\n", " ")
    assert "responds again, and has every record" in output
    assert_complete(server, tmp_path / "job")


def test_a_server_that_stays_away_gets_it_by_command(server: Server, tmp_path: Path) -> None:
    journal = tmp_path / "job/record/journal.jsonl"
    with running(tmp_path, *LONG, *server.overrides, "hydra.run.dir=job") as process:
        wait_for(lambda: journal.exists() and '"step": 15' in journal.read_text(), process)
        server.stop()
        output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "python -m vae_pyro.cli.deliver" in output
    command = [sys.executable, "-m", "vae_pyro.cli.deliver", str(tmp_path / "job")]
    command += ["--uri", server.uri]
    assert " ".join(command[1:]) in output.replace("\n", " ")
    away = forkserver.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert away.returncode == 1
    assert "records still wait" in away.stderr
    server.start()
    done = forkserver.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ records delivered", done.stdout)
    assert_complete(server, tmp_path / "job")
    again = forkserver.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert "has everything delivered" in again.stdout.replace("\n", " ")
    assert_complete(server, tmp_path / "job")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own, in memory."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs to be allowed to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # our own client has it open


@pytest.mark.parametrize("size", ["300k", "9m", "16m"])
def test_a_full_disk_is_told_and_the_job_goes_on_when_there_is_room(
    size: str, run_py: RunPy, tmp_path: Path
) -> None:
    """Room for the first records, for one checkpoint, for two."""
    command = [*SHORT, "seed=0", "hydra.run.dir=disk/job"]
    with small_disk(tmp_path / "disk", size) as disk:
        done = run_py(*command, **ONE_THREAD)
        assert done.returncode == 1
        assert re.search(r"error: .*cannot be written: No space left on device", done.stderr)
        assert "resume=true" in done.stderr
        assert "Traceback" not in done.stderr
        for path in disk.rglob("*.safetensors"):
            read_tensors(path)  # whole
        assert not list(disk.rglob(".*.safetensors.*"))
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        done = run_py(*command, "resume=true", **ONE_THREAD)
        assert done.returncode == 0, done.stderr
        client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        experiment = client.get_experiment_by_name("vae-pyro")
        runs = client.search_runs([experiment.experiment_id])
        (run,) = [run for run in runs if run.info.status == "FINISHED"]
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/elbo")]
        assert steps == list(range(1, 13))
        assert outcome(disk / "job")


@pytest.mark.slow
def test_a_database_without_room_gets_it_later(tmp_path: Path) -> None:
    """The database's disk is full, the job's is not: the job ends well, its records wait.

    A new interpreter, because MLflow's migration decides how much room is left.
    """
    with small_disk(tmp_path / "disk", "2m") as disk:
        uri = f"sqlite:///{disk}/mlflow.db"
        command = [*SHORT, "seed=0", f"tracking.uri={uri}", "hydra.run.dir=job"]
        with running(tmp_path, *command, start=subprocess.Popen) as process:
            output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "python -m vae_pyro.cli.deliver" in output
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        deliver = [
            sys.executable,
            "-m",
            "vae_pyro.cli.deliver",
            str(tmp_path / "job"),
            "--uri",
            uri,
        ]
        done = forkserver.run(deliver, cwd=ROOT, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
        assert run.info.status == "FINISHED"
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "train/elbo")]
        assert steps == list(range(1, 13))


@pytest.mark.parametrize("mode", [("hydra.run.dir=disk/job",), ("hydra.sweep.dir=disk/job", "-m")])
def test_a_folder_that_cannot_be_written_is_told(
    mode: tuple[str, ...], run_py: RunPy, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = run_py(*SHORT, "tracking=none", *mode)
    assert done.returncode == 1
    assert "error: disk/job cannot be written: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_sweeps_start_at_once_on_a_fresh_database(tmp_path: Path) -> None:
    """New interpreters, because MLflow is to migrate its tables for real."""
    short = (*SHORT, "training.epochs=1", "training.snapshots=1", "-m")
    new = {"start": subprocess.Popen}
    with (
        running(tmp_path, *short, "seed=0,1", "hydra.sweep.dir=a", **new) as first,
        running(tmp_path, *short, "seed=2,3", "hydra.sweep.dir=b", **new) as second,
    ):
        for process in (first, second):
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    assert [run.info.status for run in runs] == ["FINISHED"] * 6


@pytest.mark.long
def test_eight_jobs_at_once_on_one_database_lose_nothing(run_py: RunPy, tmp_path: Path) -> None:
    done = run_py(
        *SHORT,
        "training.epochs=3",
        "seed=0,1,2,3,4,5,6,7",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=8",
        "hydra.sweep.dir=sweep",
        "-m",
        timeout=600,
        **ONE_THREAD,
    )
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    jobs = [run for run in runs if "mlflow.parentRunId" in run.data.tags]
    assert len(jobs) == 8
    for run in jobs:
        kept = recorded(tmp_path, run)
        assert kept["status"] == "FINISHED"
        assert {len(kept["histories"][name]) for name in ("train/elbo", "valid/kl")} == {3}
        result = json.loads((tmp_path / f"sweep/{run.data.params['seed']}/result.json").read_text())
        assert result["metrics"].items() <= put_back(run.data.metrics).items()


def test_a_diverging_job_is_named_with_step_and_site(run_py: RunPy, tmp_path: Path) -> None:
    done = run_py(*SHORT, "training.learning_rate=1e-3,1e30", "hydra.sweep.dir=sweep", "-m")
    assert done.returncode == 1
    assert "error: 1 of 2 jobs failed" in done.stderr
    assert re.search(
        r"learning_rate=1e\+?30: .* in epoch \d+, step \d+ \(site '[xz]' of the (model|guide): its "
        r"(value|log-probability) is \S+\): try a smaller training.learning_rate",
        done.stderr,
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    statuses = {run.info.run_name.split("=")[-1]: run.info.status for run in runs}
    assert sorted(statuses.values()) == ["FAILED", "FAILED", "FINISHED"]  # the parent too


def test_a_password_is_nowhere(
    server: Server, served: tuple[str, Path], run_py: RunPy, tmp_path: Path
) -> None:
    """Given in the environment, in a sweep of which one job fails."""
    done = run_py(
        *SHORT,
        "training.epochs=2",
        "latent_dim=2,0",
        *server.overrides,
        "-m",
        HYDRA_FULL_ERROR="1",
        MLFLOW_TRACKING_USERNAME="user",
        MLFLOW_TRACKING_PASSWORD="s3cr3t",
    )
    assert done.returncode == 1
    assert "1 of 2 jobs failed" in done.stderr
    assert "s3cr3t" not in done.stdout + done.stderr
    holding = [
        path
        for folder in (tmp_path, served[1])
        for path in folder.rglob("*")
        if path.is_file() and b"s3cr3t" in path.read_bytes()
    ]
    assert holding == []


ENDLESS = (
    "latent_dim=2",
    "training.epochs=5000",
    "training.patience=5000",
    "training.snapshots=1",
    "training.compile=false",
    "training.checkpoint_seconds=1000",
    "hydra.run.dir=job",
    "hydra.sweep.dir=job",
)


@contextmanager
def locked_database(folder: Path, _: str) -> Iterator[tuple[str, Callable[[], Any], str]]:
    """The address of a store, how to make it hang, and what is told of it."""
    with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None)) as other:
        yield (
            f"sqlite:///{folder}/mlflow.db",
            lambda: other.execute("BEGIN IMMEDIATE"),
            "the database is locked by another process",
        )


@contextmanager
def stopped_server(_: Path, address: str) -> Iterator[tuple[str, Callable[[], Any], str]]:
    """A server that accepts connections and never responds."""
    server = Server(address, "vae-pyro")
    server.start()
    try:
        yield server.uri, server.hang, "the server does not respond"
    finally:
        server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("mode", [(), ("-m",)], ids=["job", "sweep"])
@pytest.mark.parametrize("store", [locked_database, stopped_server])
def test_a_store_that_hangs_delays_neither_training_nor_the_end(
    store: Callable[..., Any],
    mode: tuple[str, ...],
    served: tuple[str, Path],
    tmp_path: Path,
) -> None:
    def epochs() -> int:
        return journal.read_text().count('"valid/elbo"') if journal.exists() else 0

    (tmp_path / "store").mkdir()
    journal = tmp_path / "job" / ("0" if mode else "") / "record/journal.jsonl"
    with (
        store(tmp_path / "store", served[0]) as (uri, hang, why),
        running(tmp_path, *ENDLESS, f"tracking.uri={uri}", *mode) as process,
    ):
        wait_for(lambda: epochs() > 20, process)
        hang()
        before = epochs()
        time.sleep(4)  # MLflow's first call hangs for longer
        assert epochs() - before > 3
        start, clock = time.monotonic(), time.time()
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=100)
        seconds = time.monotonic() - start
    assert process.returncode == 143
    assert seconds < 5
    checkpoint = max(journal.parents[1].glob("checkpoint/epoch-*"))
    assert 0 < checkpoint.stat().st_mtime - clock < 2
    assert "interrupted by SIGTERM" in errors
    assert "Traceback" not in output + errors
    output = output.replace("\n", " ")
    assert f"because {why}; python -m vae_pyro.cli.deliver" in output
