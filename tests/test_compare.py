"""``vae-pyro compare``: runs from folders and from MLflow, in one table, or refused in words."""

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests import forkserver
from tests.conftest import QUICK, ROOT
from vae_pyro.cli.compare import main
from vae_pyro.runs.finding import found_runs

pytestmark = pytest.mark.slow


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


OTHER = ("data.binarisation=static", "training.learning_rate=0.001")


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sweeps over seeds, of different latent dimensions; and one job of another x."""
    folder = tmp_path_factory.mktemp("compare")
    for name, *overrides in (
        ("small", "latent_dim=2", "seed=0,1,2", "-m"),
        ("large", "latent_dim=5", "network=conv", "seed=0,1,2", "-m"),
        ("grey", "likelihood=categorical"),
        ("other", *OTHER),
    ):
        where = "sweep" if "-m" in overrides else "run"
        done = run(folder, *QUICK, *overrides, f"hydra.{where}.dir={name}")
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(autouse=True)
def store(sweeps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its whole address: MLflow keeps the connection of a relative one for other tests."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{sweeps}/mlflow.db")


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_sweeps_are_compared_over_seeds(sweeps: Path) -> None:
    done = run(sweeps, "compare", "small", "large")
    assert done.returncode == 0, done.stderr
    assert "latent_dim  network" in done.stdout
    assert "other training seeds" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["2", "MLP", "3"] in [line[:3] for line in lines]
    assert ["5", "Conv", "3"] in [line[:3] for line in lines]
    (pair,) = rows(run(sweeps, "compare", "small", "large", "--format", "csv").stdout)
    assert (pair["first_seeds"], pair["second_seeds"], pair["num_images"]) == ("3", "3", "300")
    assert pair["is_about"] == "configurations"
    means = []
    for name in ("small", "large"):
        results = [json.loads(path.read_text()) for path in (sweeps / name).glob("*/result.json")]
        means.append(sum(result["metrics"]["test/log_px"] for result in results) / 3)
    assert float(pair["difference"]) == pytest.approx(means[0] - means[1], rel=1e-5)


def test_runs_in_mlflow_give_the_same_as_their_folders(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sweep's run and by those of single jobs; the sweep has three children."""
    monkeypatch.chdir(sweeps)
    client = MlflowClient(f"sqlite:///{sweeps}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if r.data.tags.get("sweep") == "parent"]
    assert len(parents) == 2
    assert main(["small", "large", "--format", "csv"]) == 0
    (expected,) = rows(capsys.readouterr().out)
    parents.sort(key=lambda r: r.info.start_time)
    ids = [parents[0].info.run_id, f"runs:/{parents[1].info.run_id}"]
    assert main([*ids, "--format", "csv"]) == 0
    assert rows(capsys.readouterr().out) == [expected]
    of_small = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    (one,) = [r for r in of_small if r.data.params["seed"] == "0"]
    assert (
        main(
            [
                one.info.run_id,
                "large/1",
                "--uri",
                f"sqlite:///{sweeps}/mlflow.db",
                "--format",
                "csv",
            ]
        )
        == 0
    )
    (pair,) = rows(capsys.readouterr().out)
    assert pair["is_about"] == "weights"
    assert main([one.info.run_id, "grey"]) == 1
    refused = capsys.readouterr().err
    assert f"(run {one.info.run_id})" in refused
    assert "(grey)" in refused


def test_reading_runs_back_shows_no_progress_bars(sweeps: Path) -> None:
    client = MlflowClient(f"sqlite:///{sweeps}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    (run_id, *_) = [
        found.info.run_id
        for found in client.search_runs([experiment.experiment_id], "tags.sweep = 'parent'")
    ]
    done = run(sweeps, "compare", run_id)
    assert (done.returncode, done.stderr) == (0, "")


def test_markdown_and_latex_are_whole_documents_of_a_table(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweeps)
    assert main(["small", "large", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert "| latent_dim | network | seeds |" in text
    assert "training seeds" in text
    assert main(["small", "large", "--format", "latex"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(r"\begin{tabular}")
    assert r"latent\_dim" in text
    assert "±" not in "".join(line for line in text.splitlines() if not line.startswith("%"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["small", "grey"], "different kinds of x"),
        (["small", "other"], "kinds of x"),
        (["nothing"], "there is no folder nothing"),
        (["empty"], "no finished run"),
        (["0" * 32], "there is no run 0000"),
        (["0" * 32, "--uri", "sqlite:///missing.db"], "missing.db"),
        (["broken"], "fingerprint.json"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    sweeps: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(sweeps)
    (sweeps / "empty").mkdir(exist_ok=True)
    if arguments == ["broken"]:
        shutil.copytree("grey", "broken")
        (sweeps / "broken" / "fingerprint.json").write_text("{")
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert words in captured.err
    assert captured.out == ""


def test_a_run_that_has_not_finished_is_refused(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweeps)
    client = MlflowClient(f"sqlite:///{sweeps}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    run_id = client.create_run(experiment.experiment_id).info.run_id
    try:
        assert main([run_id]) == 1
    finally:
        client.delete_run(run_id)
    assert capsys.readouterr().err.startswith(f"error: run {run_id} has not finished")


def test_ctrl_c_is_one_line(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweeps)

    def interrupted(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return found_runs(*arguments)

    monkeypatch.setattr("vae_pyro.cli.compare.found_runs", interrupted)
    assert main(["small"]) == 130
    assert capsys.readouterr().err == "error: interrupted by SIGINT\n"


def test_the_title_of_a_report_is_whole(sweeps: Path) -> None:
    done = run(sweeps, "report", "other", "--out", "other.html")
    assert done.returncode == 0, done.stderr
    (title,) = re.findall("<h1>(.*)</h1>", (sweeps / "other.html").read_text())
    assert len(title) > 60
    assert all(option.partition(".")[2] in title for option in (*QUICK, *OTHER))


def test_a_command_that_does_not_exist_is_named(sweeps: Path) -> None:
    done = run(sweeps, "compar", "small", "large")
    assert done.returncode == 1
    assert done.stderr == (
        "error: there is no command compar (did you mean compare?); commands are compare, deliver, "
        "encode, evaluate, plan, reconstruct, register, report, sample, score, ui, and settings "
        "are written key=value\n"
    )


def test_seeds_of_one_configuration_have_an_interval(sweeps: Path) -> None:
    done = run(sweeps, "compare", "small")
    assert done.returncode == 0
    assert "log p(x) over 3 training seeds, on these images: -" in done.stdout
    assert "rank" not in done.stdout


def test_runs_of_other_code_are_another_configuration(
    sweeps: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sweeps)
    shutil.copytree("small/0", "earlier")
    path = sweeps / "earlier" / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["code"]["vae_pyro"] = "0" * 64
    path.write_text(json.dumps(fingerprint))
    assert main(["small/0", "earlier", "--format", "csv"]) == 0
    (pair,) = rows(capsys.readouterr().out)
    assert "code=" in pair["first"]
    assert float(pair["difference"]) == 0
    assert pair["verdict"] == "undecided"
