"""An embedded database that is moved or copied with its files: each copy has its own."""

import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from vae_pyro.tracking import MLflow
from vae_pyro.tracking.embedded import follow

PICTURE = np.zeros((4, 5, 3), np.uint8)


def project(folder: Path) -> str:
    """A folder with a run that has a picture; the id of the run."""
    folder.mkdir()
    run = MLflow(f"sqlite:///{folder}/mlflow.db").start_run("first", {})
    run.log_image("samples", PICTURE, 0)
    run.end("FINISHED")
    assert run.run_id is not None
    return run.run_id


def pictures(folder: Path, run_id: str) -> list[str]:
    client = MLflow(f"sqlite:///{folder}/mlflow.db").client()
    return [file.path for file in client.list_artifacts(run_id, "images")]


def files(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*.png"))


def test_a_moved_project_finds_its_pictures(tmp_path: Path) -> None:
    run_id = project(tmp_path / "old place's")
    before = pictures(tmp_path / "old place's", run_id)
    (tmp_path / "old place's").rename(tmp_path / "new")
    assert pictures(tmp_path / "new", run_id) == before != []
    again = MLflow(f"sqlite:///{tmp_path}/new/mlflow.db").start_run("second", {})
    again.log_image("samples", PICTURE, 0)
    assert not (tmp_path / "old place's").exists()


def test_a_copied_project_writes_into_itself_alone(tmp_path: Path) -> None:
    run_id = project(tmp_path / "first")
    before = files(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    # A process of its own, because MLflow keeps in memory where the files of a run lie.
    program = (
        "import numpy as np; from vae_pyro.tracking import MLflow; tracker = MLflow(); "
        "picture = np.zeros((4, 5, 3), np.uint8); "
        "tracker.start_run('new', {}).log_image('samples', picture, 0); "
        f"tracker.client().log_image('{run_id}', picture, key='more', step=1)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "second", check=True)
    assert files(tmp_path / "first") == before
    assert len(files(tmp_path / "second")) == len(before) + 2


def test_a_database_without_its_files_still_finds_those_it_had(tmp_path: Path) -> None:
    run_id = project(tmp_path / "first")
    (tmp_path / "second").mkdir()
    shutil.copy(tmp_path / "first/mlflow.db", tmp_path / "second/mlflow.db")
    assert pictures(tmp_path / "second", run_id) == pictures(tmp_path / "first", run_id)
    MLflow(f"sqlite:///{tmp_path}/second/mlflow.db").start_run("new", {}).log_image(
        "samples", PICTURE, 0
    )
    assert len(files(tmp_path / "first")) == 1


def test_experiments_that_lie_elsewhere_on_purpose_stay_there(tmp_path: Path) -> None:
    project(tmp_path / "first")
    uri = f"sqlite:///{tmp_path}/first/mlflow.db"
    elsewhere = (tmp_path / "elsewhere").as_uri()
    MlflowClient(uri).create_experiment("mine", elsewhere)
    client = MLflow(uri).client()
    assert client.get_experiment_by_name("mine").artifact_location == elsewhere


def test_a_file_without_tables_becomes_a_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()  # as SQLite leaves it when somebody looks into it early
    run = MLflow(f"sqlite:///{tmp_path}/mlflow.db").start_run("first", {})
    assert run.run_id is not None


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])
def test_a_database_that_another_process_locks_is_left_to_it(lock: str, tmp_path: Path) -> None:
    project(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    database = tmp_path / "new/mlflow.db"
    before = database.read_bytes()
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute(lock)
        start = time.monotonic()
        follow(database)
        assert time.monotonic() - start < 10
    assert database.read_bytes() == before
    follow(database)
    assert database.read_bytes() != before
