"""``python -m vae_pyro.cli.deliver``: what a journal says is data, maybe of a stranger."""

import io
import json
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from tests import forkserver
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # programs are run

MLFLOW = "vae_pyro.tracking.store.MLflow"  # as earlier versions wrote it


def deliver(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    return forkserver.run(
        [sys.executable, "-m", "vae_pyro.cli.deliver", *arguments],
        cwd=folder,
        timeout=200,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def start(tracker: Any) -> dict[str, Any]:
    return {"op": "start", "name": "n", "tags": {"record": "a"}, "parent": None, "tracker": tracker}


def write(job: Path, *entries: Any) -> None:
    (job / "record").mkdir(parents=True)
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (job / "record" / "journal.jsonl").write_text(text)


def mine(folder: Path) -> dict[str, str]:
    """The default store, as a journal in this folder names it."""
    return {"_target_": MLFLOW, "uri": f"sqlite:///{folder}/mlflow.db", "experiment": "vae-pyro"}


def test_a_class_that_a_journal_names_is_not_imported(tmp_path: Path) -> None:
    job = tmp_path / "outputs/foreign"
    write(job, start({"_target_": "outputs.foreign.evil.E"}))
    (job / "evil.py").write_text(
        "import pathlib\npathlib.Path('ran').touch()\n"
        "from vae_pyro.tracking import NoTracking\nclass E(NoTracking): pass\n"
    )
    done = deliver(tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()
    assert "name the one to use with --uri" in done.stderr
    done = deliver(tmp_path, "--uri", f"sqlite:///{tmp_path}/mine.db")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_store_that_a_journal_names_is_used_only_where_the_user_names_it(tmp_path: Path) -> None:
    theirs = f"sqlite:///{tmp_path}/theirs.db"
    write(tmp_path / "outputs/job", start({**mine(tmp_path), "uri": theirs}))
    done = deliver(tmp_path)
    assert done.returncode == 1
    assert f"its records were made for {theirs!r}" in done.stderr
    assert not list(tmp_path.glob("*.db"))
    assert deliver(tmp_path, "--uri", theirs).returncode == 0
    assert (tmp_path / "theirs.db").exists()


@pytest.mark.parametrize("how", ["above", "absolute", "link", "linked folder", "picture", "folder"])
def test_no_file_from_outside_the_job_is_copied(how: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim.txt"
    victim.write_text("private")
    job = tmp_path / "outputs/job"
    entry: dict[str, Any] = {"op": "file", "folder": None}
    entry["path"] = {
        "above": "../../../victim.txt",
        "absolute": str(victim),
        "link": "../link.txt",
        "linked folder": "../away/victim.txt",
        "picture": "",
        "folder": "../../job",
    }[how]
    if how == "picture":
        entry = {"op": "image", "key": "samples", "step": 1, "file": "link.png"}
    whole = {"op": "file", "path": "../mine.txt", "folder": "model"}
    write(job, start(mine(tmp_path)), entry, whole)
    (job / "link.txt").symlink_to(victim)
    (job / "record/link.png").symlink_to(victim)
    (job / "away").symlink_to(tmp_path)
    (job / "mine.txt").write_text("mine")
    done = deliver(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "line 2 of outputs/job/record/journal.jsonl is left out" in done.stdout.replace(
        "\n", " "
    )
    kept = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert [path.read_text() for path in kept] == ["mine"]


@pytest.mark.parametrize(
    "entry",
    [
        {"op": "file", "path": "../a", "folder": "../.."},
        {"op": "image", "key": "../k", "step": 0, "file": "a.png"},
        {"op": "image", "key": "k", "step": 0, "file": "../a.png"},
        {"op": "metrics", "metrics": {"a": "1"}, "step": 1, "at": 0.0},
        {"op": "metrics", "metrics": [1], "step": 1, "at": 0.0},
        {"op": "metrics", "metrics": {}, "step": 2**70, "at": 0.0},
        {"op": "metrics", "metrics": {}, "step": 1, "at": math.inf},
        {"op": "file", "path": "a\0b", "folder": None},
        {"op": "end", "status": "GONE"},
        {"op": [1]},
        {"op": "run", "command": "x"},
        [1],
        5,
        None,
    ],
    ids=str,
)
def test_an_entry_that_is_none_is_an_error_in_words(entry: Any, tmp_path: Path) -> None:
    write(tmp_path / "outputs/job", start(mine(tmp_path)), entry)
    done = deliver(tmp_path)
    assert done.returncode == 1
    assert "journal.jsonl is damaged in line 2" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.db"))


@pytest.mark.parametrize("tracker", [5, None, [], {"uri": 5}])
def test_a_store_of_another_kind_is_an_error_in_words(tracker: Any, tmp_path: Path) -> None:
    write(tmp_path / "outputs/job", start(tracker))
    done = deliver(tmp_path)
    assert done.returncode == 1
    assert "journal.jsonl is damaged in line 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_things_that_lie_there(tmp_path: Path) -> None:
    """An empty journal, one that never ends, a pipe, a link; and a whole one beside them."""
    for name in ("empty", "deep", "pipe", "link"):
        (tmp_path / "outputs" / name / "record").mkdir(parents=True)
    (tmp_path / "outputs/empty/record/journal.jsonl").touch()
    (tmp_path / "outputs/deep/record/journal.jsonl").write_text("[" * 100_000 + "\n")
    os.mkfifo(tmp_path / "outputs/pipe/record/journal.jsonl")
    (tmp_path / "elsewhere").write_text("not a line")
    (tmp_path / "outputs/link/record/journal.jsonl").symlink_to(tmp_path / "elsewhere")
    write(tmp_path / "outputs/whole", start(mine(tmp_path)), {"op": "end", "status": "FINISHED"})
    done = deliver(tmp_path)
    assert done.returncode == 1
    output = done.stdout.replace("\n", " ")
    assert "outputs/empty: has nothing recorded" in output
    assert "outputs/whole: 2 records delivered" in output
    assert "outputs/deep: " in done.stderr
    assert "is not a regular file" in done.stderr
    assert "is a link to a record elsewhere" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "elsewhere").read_text() == "not a line"
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("kind", ["torn", "huge", "postscript", "long", "circle"])
def test_one_bad_file_does_not_hold_up_the_rest(kind: str, tmp_path: Path) -> None:
    job = tmp_path / "outputs/job"
    entry: dict[str, Any] = {"op": "image", "key": "samples", "step": 1, "file": "a.png"}
    if kind == "long":
        entry = {"op": "file", "path": "../" + 300 * "a", "folder": None}
    write(job, start(mine(tmp_path)), entry, {"op": "end", "status": "FINISHED"})
    picture = job / "record/a.png"
    whole = io.BytesIO()
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(whole, "PNG")
    content = bytearray(whole.getvalue())
    if kind == "torn":
        content[40:50] = bytes(10)
    elif kind == "huge":  # as its header says
        content[16:24] = struct.pack(">II", 60_000, 60_000)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    if kind in ("torn", "huge"):
        picture.write_bytes(content)
    elif kind == "postscript":  # Pillow would run a program for it
        picture.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    elif kind == "circle":
        picture.symlink_to(picture)
    done = deliver(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "line 2 of outputs/job/record/journal.jsonl is left out" in " ".join(done.stdout.split())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"


def test_links_and_pipes_among_a_jobs_own_files_are_not_followed(tmp_path: Path) -> None:
    victim, other = tmp_path / "victim", tmp_path / "other"
    victim.write_text("mine")
    other.mkdir()
    (other / ".x.json.12").write_text("mine")
    for name in ("linked", "locked", "piped"):
        write(tmp_path / "outputs" / name, start(mine(tmp_path)))
    (tmp_path / "outputs/linked/record/.delivered").symlink_to(victim)
    (tmp_path / "outputs/linked/checkpoint").symlink_to(other)
    (tmp_path / "outputs/locked/.lock").symlink_to(tmp_path / "new")
    os.mkfifo(tmp_path / "outputs/piped/.lock")
    done = deliver(tmp_path)
    assert done.returncode == 1  # of those whose lock is not a file
    assert "outputs/locked cannot be written" in done.stderr
    assert "outputs/piped cannot be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert "outputs/linked: 1 records delivered" in done.stdout
    assert victim.read_text() == "mine"
    assert (other / ".x.json.12").exists()
    assert not (tmp_path / "new").exists()
