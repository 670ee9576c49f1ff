"""Every experiment runs in quick mode, and what its page says is what it measured."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from experiments.command import main
from experiments.numbers import Number, over_seeds
from experiments.pages import HERE, NAMES, fill, fill_table, read_results
from experiments.study import OUTPUTS, Lab
from tests import forkserver
from tests.conftest import ROOT
from vae_pyro.cli.app import make_console
from vae_pyro.errors import ConfigError

QUICK = ("training.epochs=2", "evaluation.num_samples=50", "seed=0", "experiment.workers=1")
BUDGETS = {
    "what_is_p_of_an_image": ("experiment.images=3",),
    "how_to_estimate_p_of_x": (
        "experiment.images=2",
        "experiment.draws=[1,10]",
        "experiment.temperatures=[2]",
        "experiment.reference_draws=100",
        "experiment.reference_temperatures=3",
        "experiment.shown_draws=50",
    ),
    "is_two_dimensions_enough": (
        "experiment.latent_dims=[2,5]",
        "experiment.test_images=50",
        "experiment.draws=2",
        "experiment.rate_samples=2",
    ),
    "autoencoder_pca_vae": (
        "experiment.test_images=30",
        "experiment.temperatures=3",
        "experiment.generated=30",
    ),
    "prior_or_aggregated_posterior": (
        "experiment.latent_dims=[2]",
        "experiment.images=50",
        "experiment.latents=2",
        "experiment.prior_draws=50",
        "experiment.generated=30",
    ),
    "why_approximate_the_posterior": (
        "experiment.large=3",
        "experiment.images=3",
        "experiment.grid=21",
        "experiment.local_steps=3",
        "experiment.draws=200",
        "experiment.nuts_images=1",
        "experiment.nuts_samples=10",
        "experiment.nuts_warmup=10",
    ),
    "moving_in_latent_space": (
        "experiment.latent_dim=3",
        "experiment.test_images=30",
        "experiment.pairs=2",
        "experiment.temperatures=2",
        "experiment.noise=[0.0,0.3]",
    ),
    "can_the_error_bars_be_trusted": (
        "experiment.images=3",
        "experiment.repetitions=3",
        "experiment.num_samples=50",
        "experiment.groups=[1,5,50]",
        "experiment.bias_samples=200",
        "experiment.tail_samples=100",
        "experiment.inflations=[0.5,1.0]",
        "experiment.temperatures=3",
        "experiment.early_epochs=1",
    ),
    "which_likelihood": (
        "experiment.likelihoods=[bernoulli,categorical,normal]",
        "experiment.images=20",
    ),
    "do_networks_output_distributions": (
        "experiment.likelihoods=[bernoulli,categorical,beta]",
        "experiment.inputs=1",
        "experiment.steps=2",
        "experiment.radii=[0,8]",
        "experiment.grid=51",
        "experiment.points=101",
    ),
    "generate_and_classify": ("experiment.images=30", "experiment.samples=25"),
}
SECTIONS = ["Question", "Prediction", "Method", "Command", "Result", "What would change our mind"]


def experiment(
    name: str, *arguments: str, cwd: Path, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """``python -m experiments.<name>`` in an empty folder."""
    return forkserver.run(
        [sys.executable, "-m", f"experiments.{name}", *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_budgets_are_known() -> None:
    assert set(BUDGETS) == set(NAMES)
    folders = {path.parent.name for path in HERE.glob("*/experiment.py")}
    assert folders == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_quick_mode(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = (HERE / name / "results.json").read_bytes()
    study = importlib.import_module(f"experiments.{name}.experiment").study
    uri = f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"
    main(study, [*QUICK, *BUDGETS[name], uri])
    assert (HERE / name / "results.json").read_bytes() == before  # it is of the plain command
    left = tmp_path / OUTPUTS / name
    results = read_results(left)
    assert (left / "figure.png").read_bytes().startswith(b"\x89PNG")
    numbers = {key: Number(**number) for key, number in results["numbers"].items()}
    assert all(math.isfinite(number.value) for number in numbers.values())
    assert set(read_results(HERE / name)["predictions"]) == set(results["predictions"])
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_experiments(filter_string="name = 'vae-pyro'")
    (run,) = client.search_runs([found.experiment_id], f"tags.experiment = '{name}'")
    assert run.info.status == "FINISHED"
    for key, number in numbers.items():
        assert run.data.metrics[key] == pytest.approx(number.value, nan_ok=True)
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {
        "results.json",
        "figure.png",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_was_measured(name: str) -> None:
    folder, results = HERE / name, read_results(HERE / name)
    page = (folder / "README.md").read_text()
    assert fill(page, results) == page
    assert "-->none<!--" not in page
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == SECTIONS
    assert page.startswith(f"# {results['question']}\n")
    assert results["command"] == f"python -m experiments.{name}"
    assert f"python -m experiments.{name}\n" in page
    for mark in (*results["predictions"], "answer"):
        assert f"<!--{mark}-->" in page
    for target in re.findall(r"\]\(([^)h][^)]*)\)", page):
        assert (folder / target).is_file(), target


@pytest.mark.parametrize("name", NAMES)
def test_means_are_over_seeds(name: str) -> None:
    for number in read_results(HERE / name)["numbers"].values():
        if number["seeds"]:
            assert number["value"] == pytest.approx(mean(number["seeds"]))
        if len(number["seeds"]) > 1:
            error = stdev(number["seeds"]) / math.sqrt(len(number["seeds"]))
            assert number["std_error"] == pytest.approx(error)


def test_the_table_of_all() -> None:
    page = (HERE / "README.md").read_text()
    assert fill_table(page, NAMES) == page
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(rows) == len(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        assert f"]({name}/README.md)" in row
        assert len(re.split(r"(?<!\\)\|", row)) == 5  # three cells between four bars


@given(st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=6))
def test_a_number_is_shown_to_its_error(values: list[float]) -> None:
    number = over_seeds(values)
    value, _, error = str(number).replace(",", "").partition(" ± ")
    if error:
        assert float(error) == pytest.approx(number.std_error, rel=0.51)
        assert abs(float(value) - number.value) <= 0.51 * abs(float(error)) + 1e-2 * abs(
            number.value
        ) * (number.std_error > 100 or number.std_error < 1e-5)
    assert float(number.brief.replace(",", "")) == pytest.approx(
        number.value, abs=max(number.std_error or 0, 1e-2 * abs(number.value), 1e-9)
    )


def test_marks() -> None:
    results = {
        "numbers": {"log_px": {"value": -23.4567, "std_error": 0.0213}},
        "predictions": {"higher": False},
        "answer": "No.",
        "cost": "12 s on 2 cores",
    }
    page = "It is <!--log_px--><!----> (<!--log_px.brief-->old<!---->), <!--higher-->held<!---->."
    filled = fill(page, results)
    assert filled == (
        "It is <!--log_px-->-23.457 ± 0.021<!----> (<!--log_px.brief-->-23.457<!---->), "
        "<!--higher-->**did not hold**<!---->."
    )
    assert fill(filled, results) == filled
    assert fill("<!--unknown--><!---->", results) == "<!--unknown-->none<!---->"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("latent_dim=2,3", "one value at a time"),
        ("seed=-1", "whole numbers"),
        ("seed=a", "whole numbers"),
        ("seed=0,0", "each seed once"),
        ("latent_dims=3", "latent_dims"),
        ("data=unknown", "unknown"),
        ("experiment.imags=3", "did you mean experiment.images"),
        ("experiment.images=many", "experiment.images=many"),
        ("experiment.workers=-1", "at least 0"),
        ("resume=true", "always goes on"),
        ("latent_dim", "key=value"),
        ("device=tpu", "device=tpu"),
    ],
)
def test_wrong_overrides(typed: str, said: str) -> None:
    from experiments.what_is_p_of_an_image.experiment import study

    with pytest.raises(ConfigError, match=re.escape(said)):
        Lab(study, [typed], make_console())


@pytest.mark.slow
def test_what_the_experiment_chooses_is_not_the_users(tmp_path: Path) -> None:
    done = experiment("what_is_p_of_an_image", *QUICK, "latent_dim=5", cwd=tmp_path)
    assert done.returncode == 1
    assert "latent_dim=5: this experiment chooses latent_dim itself" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.rglob("results.json")) == []


@pytest.mark.slow
def test_vaes_are_trained_at_once_and_read_back(tmp_path: Path) -> None:
    name = "is_two_dimensions_enough"
    command = (name, *QUICK[:3], "experiment.workers=2", *BUDGETS[name])
    first = experiment(*command, cwd=tmp_path)
    assert first.returncode == 0, first.stdout + first.stderr
    numbers = read_results(tmp_path / OUTPUTS / command[0])["numbers"]
    vaes = sorted((tmp_path / OUTPUTS / "vaes").iterdir())
    written = [(path / "result.json").stat().st_mtime_ns for path in vaes]
    assert len(vaes) == 2
    again = experiment(*command, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert read_results(tmp_path / OUTPUTS / command[0])["numbers"] == numbers
    assert sorted((tmp_path / OUTPUTS / "vaes").iterdir()) == vaes
    assert [(path / "result.json").stat().st_mtime_ns for path in vaes] == written


@pytest.mark.slow
def test_interrupted_and_gone_on_with(tmp_path: Path) -> None:
    """SIGTERM reaches the processes that train; nothing of theirs is trained twice."""
    name = "is_two_dimensions_enough"
    command = (
        name,
        "seed=0",
        "training.epochs=60",
        "training.checkpoint_seconds=0",
        "training.compile=false",
        "evaluation.num_samples=50",
        "experiment.workers=2",
        *BUDGETS[name],
    )
    with forkserver.Popen(
        [sys.executable, "-m", f"experiments.{command[0]}", *command[1:]],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        until = time.monotonic() + 200
        while len(list(tmp_path.glob(f"{OUTPUTS}/vaes/*/checkpoint/*"))) < 2:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.terminate()
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "interrupted by SIGTERM; the same command goes on" in said
    assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_experiments(filter_string="name = 'vae-pyro'")

    def statuses() -> list[str]:
        runs = client.search_runs([found.experiment_id], order_by=["start_time ASC"])
        return [run.info.status for run in runs]

    assert set(statuses()) == {"KILLED"}
    done = experiment(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert statuses().count("KILLED") == 1  # the experiment's own; the VAEs' runs went on
    assert statuses().count("FINISHED") == 3


COMMANDS = re.findall(
    r"^python -m experiments\.(\w+) ?(.*)$", (HERE / "README.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("name", "overrides"), COMMANDS)
def test_commands_of_the_page_of_all_are_understood(name: str, overrides: str) -> None:
    """Quick mode runs them with other budgets; here their overrides are taken at their word."""
    study = importlib.import_module(f"experiments.{name}.experiment").study
    lab = Lab(study, overrides.split(), make_console())
    assert lab.command == f"python -m experiments.{name} {overrides}".rstrip()
    assert lab.is_default == (not overrides)
