"""The whole program once, in the fast tier: a job that trains, evaluates and records."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from tests.conftest import QUICK, ROOT


def test_a_job_trains_evaluates_and_records(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            "latent_dim=2",
            *QUICK,
            "name=mine",
            "hydra.run.dir=job",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "log p(x)" in done.stdout
    metrics = json.loads((tmp_path / "job" / "result.json").read_text())["metrics"]
    assert metrics["test/elbo"] < metrics["test/log_px"] < 0
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT name FROM runs").fetchall() == [("mine",)]
