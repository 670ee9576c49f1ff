"""The main job, end to end: ``make sweep``, its database, its files, and MLflow in a browser."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image
from safetensors.torch import load_file

from tests import forkserver
from tests.conftest import QUICK, ROOT
from tests.test_tracking import free_port
from vae_pyro.data import Dataset
from vae_pyro.evaluation import validate
from vae_pyro.log_marginal import ELBOBound
from vae_pyro.randomness import RandomStream
from vae_pyro.runs.pictures import snapshot_epochs
from vae_pyro.saving import load_model

if TYPE_CHECKING:
    from selenium import webdriver

IN_TRAINING = ("train/elbo", "valid/elbo", "valid/reconstruction", "valid/kl")
IN_TEST = (
    "test/elbo",
    "test/iwae_1",
    "test/iwae_5",
    "test/iwae_50",
    "test/log_px",
    "test/gap",
    "test/bits_per_dim",
)
CONTRACT = {
    *IN_TRAINING,
    *IN_TEST,
    *(f"{name}_std_error" for name in (*IN_TRAINING, *IN_TEST)),
    *(f"{name.replace('test/', 'test_se/')}_image_std_error" for name in IN_TEST),
    "test/active_units_std_error",
    "test/effective_sample_size",
    "test/pareto_k_high",
    "test/untrusted",
    "compared/repeated_images",
    "compared/disagreeing",
    "test/active_units",
    "test/rounding_error",
    "time/train_seconds",
    "time/evaluate_seconds",
    "train/kept_epoch",
}


@dataclass(frozen=True)
class Sweep:
    folder: Path
    output: str
    client: MlflowClient
    parent: Run
    children: dict[int, Run]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """``make sweep`` as a user types it, in a fresh copy with this environment installed."""
    folder = tmp_path_factory.mktemp("sweep") / "vae-pyro"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    if not (folder / ".venv" / "installed").exists():
        pytest.skip("these tests do not run in the environment that make setup creates")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    done = subprocess.run(
        ["make", "-o", ".venv/installed", "sweep"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {
        int(run.data.params["latent_dim"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    }
    assert len(runs) == 1 + len(children)
    return Sweep(folder, done.stdout, client, parent, children)


def test_one_parent_and_three_finished_children(sweep: Sweep) -> None:
    assert sweep.parent.info.status == "FINISHED"
    assert set(sweep.children) == {2, 10, 20}
    assert {run.info.status for run in sweep.children.values()} == {"FINISHED"}


def test_every_contract_metric_is_there(sweep: Sweep) -> None:
    for run in sweep.children.values():
        assert set(run.data.metrics) == CONTRACT
        assert all(np.isfinite(value) for value in run.data.metrics.values())
        for name in ("train/elbo", "valid/elbo", "valid/kl", "valid/reconstruction"):
            history = sweep.client.get_metric_history(run.info.run_id, name)
            assert [point.step for point in history] == list(range(1, 201))
        for name in CONTRACT - {*IN_TRAINING} - {f"{name}_std_error" for name in IN_TRAINING}:
            (point,) = sweep.client.get_metric_history(run.info.run_id, name)
            assert point.step == 0  # MLflow draws a bar


def test_the_numbers_make_sense(sweep: Sweep) -> None:
    for run in sweep.children.values():
        m = run.data.metrics
        bounds = [m[f"test/{name}"] for name in ("elbo", "iwae_5", "iwae_50", "log_px")]
        assert bounds == sorted(bounds)
        assert m["test/iwae_1"] == m["test/elbo"]
        assert m["test/log_px"] - m["test/elbo"] > 10 * m["test/log_px_std_error"]
        assert m["test/gap"] == pytest.approx(m["test/log_px"] - m["test/elbo"])
        assert m["test/bits_per_dim"] == pytest.approx(-m["test/log_px"] / 64 / np.log(2))
        assert m["valid/elbo"] == pytest.approx(m["valid/reconstruction"] - m["valid/kl"])
        assert 1 <= m["test/effective_sample_size"] <= 5000
        assert 0 < m["test/log_px_std_error"] < 0.1
    two, ten = sweep.children[2].data.metrics, sweep.children[10].data.metrics
    error = np.hypot(two["test/log_px_std_error"], ten["test/log_px_std_error"])
    assert ten["test/log_px"] - two["test/log_px"] > 10 * error
    assert two["test/active_units"] == 2


def test_params_and_tags_follow_the_contract(sweep: Sweep) -> None:
    fingerprints = set()
    for latent_dim, run in sweep.children.items():
        params, tags = run.data.params, run.data.tags
        assert params["latent_dim"] == str(latent_dim)
        assert params["likelihood"] == "bernoulli"
        assert params["training.epochs"] == "200"
        assert len(params) <= 11  # MLflow prints all of them above each picture
        assert "recipe" not in params  # none was chosen
        assert run.info.run_name == f"d={latent_dim}"
        assert re.fullmatch("[0-9a-f]{64}", tags["fingerprint"])
        fingerprints.add(tags["fingerprint"])
    assert len(fingerprints) == 3


def test_the_images_are_an_input_of_each_run(sweep: Sweep, digits: Dataset) -> None:
    for run in sweep.children.values():
        (found,) = run.inputs.dataset_inputs
        assert found.dataset.name == "digits"
        assert found.dataset.digest == digits.checksum[:36]
        profile = json.loads(found.dataset.profile)
        assert profile["test"] == len(digits.test)
        assert profile["image_shape"] == [1, 8, 8]


def test_the_parent_has_the_bounds_against_the_latent_dimension(sweep: Sweep) -> None:
    assert sweep.parent.info.run_name == "sweep d=2,10,20"
    for name in ("elbo", "iwae_5", "iwae_50", "log_px"):
        history = sweep.client.get_metric_history(sweep.parent.info.run_id, f"sweep/{name}")
        assert {point.step: point.value for point in history} == {
            latent_dim: pytest.approx(run.data.metrics[f"test/{name}"], rel=1e-12)
            for latent_dim, run in sweep.children.items()
        }


def test_artifacts_follow_the_contract(sweep: Sweep, tmp_path: Path) -> None:
    for latent_dim, run in sweep.children.items():
        own = tmp_path / str(latent_dim)
        own.mkdir()
        folder = Path(sweep.client.download_artifacts(run.info.run_id, "", str(own)))
        config = yaml.safe_load((folder / "config.yaml").read_text())
        assert config["latent_dim"] == latent_dim
        assert config["likelihood"] == {"_target_": "vae_pyro.likelihoods.Bernoulli"}
        assert load_file(folder / "model" / "weights.safetensors")
        assert Image.open(folder / "elbo_vs_iwae.png").size[0] >= 600
        images = [path.name for path in (folder / "images").glob("*.png")]
        for key in ("samples", "reconstructions", "latent_space"):
            steps = {int(re.search(r"step[+%](\d+)", n)[1]) for n in images if n.startswith(key)}
            assert steps == snapshot_epochs(200, 8)
            (final,) = [name for name in images if re.match(f"final[#~]{key}", name)]
            assert re.search(r"step[+%]0[+%]", final)
        assert np.asarray(Image.open(folder / "training.png")).std() > 10


def test_the_parent_holds_table_and_chart(sweep: Sweep, tmp_path: Path) -> None:
    folder = Path(sweep.client.download_artifacts(sweep.parent.info.run_id, "sweep", str(tmp_path)))
    rows = list(csv.DictReader((folder / "runs.csv").open()))
    assert [int(row["latent_dim"]) for row in rows] == [2, 10, 20]
    for row in rows:
        metrics = sweep.children[int(row["latent_dim"])].data.metrics
        for name in ("test/elbo", "test/log_px", "test/log_px_std_error", "test/gap"):
            assert float(row[name]) == pytest.approx(metrics[name], rel=1e-6)
    rows = list(csv.DictReader((folder / "summary.csv").open()))
    assert [(int(row["latent_dim"]), row["seeds"]) for row in rows] == [
        (2, "1"),
        (10, "1"),
        (20, "1"),
    ]
    pairs = list(csv.DictReader((folder / "comparison.csv").open()))
    assert len(pairs) == 3
    for pair in pairs:
        first, second = (
            sweep.children[int(pair[name].removeprefix("latent_dim="))].data.metrics["test/log_px"]
            for name in ("first", "second")
        )
        assert float(pair["difference"]) == pytest.approx(first - second, rel=1e-4)
        assert float(pair["std_error"]) > float(pair["monte_carlo_std_error"]) > 0
        assert pair["is_about"] == "weights"
    assert np.asarray(Image.open(folder / "elbo_vs_iwae.png")).std() > 10
    assert (folder / "report.html").stat().st_size > 10**6
    description = sweep.parent.data.tags["mlflow.note.content"]
    assert description.startswith("| latent_dim | ELBO | IWAE-50 | log p(x) | rank |")
    assert "`python run.py latent_dim=2,10,20 -m`" in description


def last_table(output: str) -> str:
    return output[output.rindex("\n", 0, output.rindex("  log p(x)")) :]


def test_the_terminal_ends_with_the_table(sweep: Sweep) -> None:
    table = last_table(sweep.output)
    for heading in ("ELBO", "IWAE-5", "IWAE-50", "log p(x)", "gap", "units", "seconds", "rank"):
        assert heading in table
    for run in sweep.children.values():
        m = run.data.metrics
        sign = "" if m["test/untrusted"] <= 0.05 else "≥ "
        assert f" {sign}{m['test/log_px']:.2f} " in table
    assert "these trained weights" in sweep.output
    assert "training 200/200  valid ELBO" in sweep.output  # plain lines, no bar
    assert "evaluating log_px 300/300  log p(x)" in sweep.output


def test_the_saved_model_is_the_one_that_was_tested(
    sweep: Sweep, binary_test_digits: torch.Tensor, tmp_path: Path
) -> None:
    run = sweep.children[10]
    vae = load_model(sweep.client.download_artifacts(run.info.run_id, "model", str(tmp_path)))
    estimate = ELBOBound(500)(vae, binary_test_digits)
    error = np.hypot(estimate.mean_std_error(), run.data.metrics["test/elbo_std_error"])
    assert estimate.mean() == pytest.approx(run.data.metrics["test/elbo"], abs=4.5 * error)


def test_the_kept_weights_are_those_of_the_best_epoch(
    sweep: Sweep, digits: Dataset, tmp_path: Path
) -> None:
    run = sweep.children[20]
    history = sweep.client.get_metric_history(run.info.run_id, "valid/elbo")
    best = max(history, key=lambda point: point.value)
    assert run.data.metrics["train/kept_epoch"] == best.step
    vae = load_model(sweep.client.download_artifacts(run.info.run_id, "model", str(tmp_path)))
    generator = digits.held_out_stream("valid").generator
    x = vae.model.likelihood.prepare(digits.valid.images, generator)
    with RandomStream("validation", 0).active():  # the draws of the run itself
        assert validate(vae, x, 5)["valid/elbo"] == pytest.approx(best.value, abs=1e-4)


@pytest.fixture(scope="module")
def page(sweep: Sweep) -> Iterator[str]:
    """The page that ``make ui`` names, on a free port."""
    log = sweep.folder / "ui.log"
    with log.open("w") as output:
        server = subprocess.Popen(
            ["make", "-o", ".venv/installed", "ui", f"PORT={free_port()}"],
            cwd=sweep.folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"^open (http://127\.0\.0\.1:\S+)$", log.read_text(), re.M)):
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.25)
        yield found[1]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


@pytest.fixture
def browser(tmp_path: Path) -> "Iterator[webdriver.Chrome]":
    from selenium import webdriver

    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1600,2400",
        f"--user-data-dir={tmp_path}",
    ):
        options.add_argument(argument)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    yield browser
    browser.quit()


def wait(browser: "webdriver.Chrome", condition: Callable[[], Any], seconds: float = 90) -> Any:
    """What the condition is once it is true; until then pages are drawn anew under one's hands."""
    from selenium.common.exceptions import WebDriverException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, seconds, ignored_exceptions=[WebDriverException])
    return waiting.until(lambda _: condition())


def text(browser: "webdriver.Chrome") -> str:
    return browser.find_element("tag name", "body").text


def test_the_link_opens_the_bounds_against_the_latent_dimension(
    sweep: Sweep, page: str, browser: "webdriver.Chrome"
) -> None:
    """No click: the curves of the sweep, and a point for each job."""
    names = ("elbo", "iwae_50", "log_px")
    wanted = {f"{place}/{name}" for place in ("sweep", "test") for name in names}
    browser.get(page)
    drawn = wait(
        browser, lambda: (found := browser.execute_script(_CHARTS)).keys() >= wanted and found
    )
    for name in names:
        expected = {d: run.data.metrics[f"test/{name}"] for d, run in sweep.children.items()}
        assert dict(drawn[f"sweep/{name}"]) == pytest.approx(expected)
        assert dict(drawn[f"test/{name}"]) == pytest.approx(expected)


_CHARTS = """
const found = {};
for (const chart of document.querySelectorAll('.js-plotly-plot'))
  for (const trace of chart.data) {
    const title = (chart.layout.yaxis || {}).title || {};
    const name = trace.metricKey || title.text || title;
    if (trace.x && trace.y)
      found[name] = (found[name] || []).concat(
        [...trace.x].map((x, i) => [Number(x), trace.y[i]]));
  }
return found;
"""


def test_pictures_of_all_jobs_stand_side_by_side(page: str, browser: "webdriver.Chrome") -> None:
    """One click: the samples of the three jobs, none of which has to be scrolled to."""
    browser.get(page)
    wait(browser, lambda: browser.execute_script(_ENLARGE, "final/samples"))
    pictures = wait(browser, lambda: len(found := browser.execute_script(_PICTURES)) >= 3 and found)
    assert len({(left, top) for left, top, *_ in pictures}) == 3
    assert all(top >= 0 and left >= 0 for left, top, *_ in pictures)
    assert all(top + height <= 2400 for _, top, _, height in pictures)
    dialog = browser.find_element("css selector", '[role="dialog"]').text
    assert "d=10" in dialog
    assert "training.epochs" not in dialog  # no parameters above the pictures


_ENLARGE = """
for (const e of document.querySelectorAll('*'))
  if (e.scrollHeight > e.clientHeight + 100 && getComputedStyle(e).overflowY !== 'visible')
    e.scrollTop = e.scrollHeight;
const title = [...document.querySelectorAll('h4')].find(
  e => e.textContent.includes(arguments[0]));
if (!title) return false;
title.closest('[data-testid="experiment-view-compare-runs-card"]').querySelector(
  'button[data-component-id="fullscreen_button_chartcard"]').click();
return true;
"""
_PICTURES = """
const dialog = document.querySelector('[role="dialog"]');
if (!dialog) return [];
return [...dialog.querySelectorAll('img')].filter(i => i.naturalWidth > 0).map(i => {
  const box = i.getBoundingClientRect();
  return [box.left, box.top, box.width, box.height];
}).filter(([left, top, width]) => width > 200);  // the others do not have their place yet
"""


def test_the_pages_of_runs_show_table_and_pictures(
    sweep: Sweep, page: str, browser: "webdriver.Chrome"
) -> None:
    runs = page.partition("?")[0]
    browser.get(f"{runs}/{sweep.parent.info.run_id}")
    wait(browser, lambda: all(f"d={d}" in text(browser) for d in (2, 10, 20)))
    wait(browser, lambda: "IWAE-50" in text(browser))  # the table
    browser.get(f"{runs}/{sweep.children[2].info.run_id}/model-metrics")
    wait(browser, lambda: "active_units" in text(browser))
    wait(browser, lambda: browser.execute_script(_SCROLL_AND_COUNT_PICTURES) >= 3)


def test_the_report_is_written_again(sweep: Sweep) -> None:
    """Of the last sweep; of a run in MLflow with the same pictures; as a table."""

    def printed(*command: str) -> str:
        return subprocess.run(
            command, cwd=sweep.folder, capture_output=True, text=True, check=True
        ).stdout

    def pictures(name: str) -> list[str]:
        page = (sweep.folder / name).read_text()
        return re.findall(r'<img src="data:image/png;base64,([^"]+)"', page)

    assert printed("make", "-s", "-o", ".venv/installed", "report") == "report.html\n"
    (own,) = sweep.folder.glob("multirun/*/*/report.html")
    assert len(pictures("report.html")) == 15
    assert pictures("report.html") == pictures(str(own))
    report = (sys.executable, "run.py", "report")
    assert printed(*report, sweep.parent.info.run_id, "--out", "a.html") == "a.html\n"
    assert pictures("a.html") == pictures("report.html")
    latex = printed(*report, str(own.parent), "--format", "latex")
    assert latex.startswith(r"\begin{tabular}")
    (row,) = [line for line in latex.splitlines() if line.startswith("10 & 1 &")]
    assert f"{sweep.children[10].data.metrics['test/log_px']:.2f}" in row
    table = printed(*report, str(own.parent), "--format", "csv")
    assert [row["latent_dim"] for row in csv.DictReader(table.splitlines())] == ["2", "10", "20"]


def test_the_report_needs_no_network(
    sweep: Sweep, browser: "webdriver.Chrome", tmp_path: Path
) -> None:
    """The charts are drawn, from the numbers of the runs; nothing is loaded; it fits a phone."""
    folder = sweep.client.download_artifacts(sweep.parent.info.run_id, "sweep", str(tmp_path))
    browser.get(f"file://{folder}/report.html")
    drawn = wait(browser, lambda: browser.execute_script(_DRAWN))
    for name, metric in (("ELBO", "elbo"), ("IWAE-50", "iwae_50"), ("log p(x)", "log_px")):
        expected = {d: run.data.metrics[f"test/{metric}"] for d, run in sweep.children.items()}
        assert {int(d): y for d, y in drawn[name]} == pytest.approx(expected)
    assert drawn["points"] >= 12
    # Samples, reconstructions, latent space, training and bounds of three jobs.
    assert len(drawn["pictures"]) == 15
    assert all(width > 200 for width in drawn["pictures"])
    assert drawn["loaded"] == []
    browser.set_window_size(500, 900)  # the narrowest that Chromium opens
    assert wait(browser, lambda: browser.execute_script(_WIDTHS))


_DRAWN = """
const [chart] = document.querySelectorAll('.js-plotly-plot');
if (!chart || !chart.querySelectorAll('path.point').length) return null;
const found = {
  points: chart.querySelectorAll('path.point').length,
  pictures: [...document.images].map(i => i.naturalWidth),
  loaded: performance.getEntriesByType('resource').map(e => e.name),
};
for (const trace of chart.data)
  if (trace.name) found[trace.name] = [...trace.x].map((x, i) => [x, trace.y[i]]);
return found;
"""
_WIDTHS = "return document.documentElement.scrollWidth <= window.innerWidth;"


_SCROLL_AND_COUNT_PICTURES = """
for (const e of document.querySelectorAll('*'))
  if (e.scrollHeight > e.clientHeight + 1000 && getComputedStyle(e).overflowY !== 'visible')
    e.scrollTop = e.scrollHeight;
return [...document.images].filter(
  i => i.src.includes('get-artifact') && i.naturalWidth > 0).length;
"""


def runs_in(folder: Path) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("vae-pyro")
    return client.search_runs([experiment.experiment_id])


Command = Callable[..., subprocess.CompletedProcess[str]]


def test_one_failed_job_does_not_stop_the_others(run_py: Command, tmp_path: Path) -> None:
    done = run_py("latent_dim=2,0,3", *QUICK, "-m")
    assert done.returncode == 1
    assert "error: 1 of 3 jobs failed\n  latent_dim=0" in done.stderr
    assert "latent_dim=0: input should be greater than or equal to 1" in done.stderr
    assert "Traceback" not in done.stderr
    statuses = {run.info.run_name: run.info.status for run in runs_in(tmp_path)}
    assert statuses.pop("d=2") == statuses.pop("d=3") == "FINISHED"
    assert list(statuses.values()) == ["FAILED"]  # the parent; the refused job opened no run
    (summary,) = tmp_path.glob("multirun/*/*/summary.csv")
    assert len(summary.read_text().splitlines()) == 3


def test_a_parallel_launcher_shares_parent_and_database(run_py: Command, tmp_path: Path) -> None:
    """Three processes start at once on a database that did not exist when the sweep began."""
    done = run_py(
        "latent_dim=2,3,4",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=3",
        *QUICK,
        "-m",
        OMP_NUM_THREADS="1",
    )
    assert done.returncode == 0, done.stderr
    runs = runs_in(tmp_path)
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert len(children) == 3
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_jobs_with_different_bounds_share_a_table(run_py: Command, tmp_path: Path) -> None:
    done = run_py("evaluation.iwae_samples=[1,5],[1,10]", *QUICK, "-m")
    assert done.returncode == 0, done.stderr
    table = last_table(done.stdout)
    assert "IWAE-5" in table
    assert "IWAE-10" in table
    assert list(tmp_path.glob("multirun/*/*/elbo_vs_iwae.png"))


def test_failures_are_told_without_hydras_own_records(run_py: Command) -> None:
    done = run_py("latent_dim=0,-1", "hydra.output_subdir=null", "tracking=none", "-m")
    assert done.returncode == 1
    assert "2 of 2 jobs failed" in done.stderr


def test_a_folder_used_again_does_not_mix_two_sweeps(run_py: Command, tmp_path: Path) -> None:
    for sizes in ("2,3,4", "5,6"):
        arguments = (f"latent_dim={sizes}", "hydra.sweep.dir=here", "tracking=none", *QUICK, "-m")
        assert run_py(*arguments).returncode == 0
        time.sleep(2)
    rows = list(csv.DictReader((tmp_path / "here" / "summary.csv").open()))
    assert [row["latent_dim"] for row in rows] == ["5", "6"]


def test_runs_are_named_after_what_differs(run_py: Command, tmp_path: Path) -> None:
    """And overrides may stand behind -m."""
    done = run_py(
        "latent_dim=2,3",
        "-m",
        *QUICK,
        "tracking.uri=sqlite:///mlflow.db",
        "training.checkpoint_seconds=5",
        "tracking.experiment=vae-pyro",
        "seed=1",
    )
    assert done.returncode == 0, done.stderr
    names = {run.info.run_name for run in runs_in(tmp_path)}
    assert names == {"d=2", "d=3", "sweep d=2,3"}


def test_a_report_of_nothing_is_refused(run_py: Command, tmp_path: Path) -> None:
    for arguments, message in (
        (("report",), "there is no sweep in multirun/ and no job in outputs/ here"),
        (("report", "nowhere"), "there is no folder nowhere"),
        (("report", "f" * 32), "there is no"),
    ):
        done = run_py(*arguments)
        assert done.returncode == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


def test_a_refused_sweep_leaves_no_run(run_py: Command, tmp_path: Path) -> None:
    """The parent run is open when Hydra's sweeper reads the values; it takes no interval."""
    done = run_py("latent_dim=interval(2,20)", "-m")
    assert done.returncode == 1
    assert "INTERVAL_SWEEP" in done.stderr
    assert runs_in(tmp_path) == []


def test_a_sweep_with_an_unknown_option_leaves_nothing(run_py: Command, tmp_path: Path) -> None:
    done = run_py("likelihood=bernoulli,nope", "-m")
    assert done.returncode == 1
    assert "likelihood=nope" in done.stderr
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_a_sweep_over_choices_names_them(run_py: Command, tmp_path: Path) -> None:
    varied = ("network.activation=relu,tanh", "data.binarisation=static")
    done = run_py(*varied, "name=my sweep", *QUICK, "-m")
    assert done.returncode == 0, done.stderr
    assert {run.info.run_name for run in runs_in(tmp_path)} == {
        "my sweep",
        "activation=relu",
        "activation=tanh",
    }
    assert "activation=tanh: training" in done.stdout
    table = last_table(done.stdout)
    assert "network.activation" in table
    assert "relu" in table
    assert "tanh" in table


LIKELIHOODS = (
    "bernoulli",
    "continuous_bernoulli",
    "normal",
    "normal_learned_scale",
    "normal_heteroscedastic",
    "beta",
    "categorical",
    "discretized_logistic_mixture",
)


def test_a_sweep_over_likelihoods_compares_what_may_be_compared(
    run_py: Command, tmp_path: Path
) -> None:
    done = run_py(f"likelihood={','.join(LIKELIHOODS)}", "latent_dim=2", *QUICK, "-m")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("digits: binary pixels") == 1
    assert done.stdout.count("digits: 17 levels") == 1
    assert "not to be compared" in done.stdout
    (summary,) = tmp_path.glob("multirun/*/*/summary.csv")
    rows = {row["likelihood"]: row for row in csv.DictReader(summary.open())}
    assert set(rows) == set(LIKELIHOODS)
    for name, row in rows.items():
        assert row["x"] == f"digits: {'binary pixels' if name == 'bernoulli' else '17 levels'}"
        density = name.startswith(("normal", "beta", "continuous"))
        log_prob = float(row["test/log_px"]) - density * 64 * np.log(17)
        assert float(row["log_cell_volume"]) == pytest.approx(-density * 64 * np.log(17))
        assert float(row["test/bits_per_dim"]) == pytest.approx(-log_prob / 64 / np.log(2))
        assert float(row["test/bits_per_dim"]) > 0
    (parent,) = [run for run in runs_in(tmp_path) if "mlflow.parentRunId" not in run.data.tags]
    note = parent.data.tags["mlflow.note.content"]
    tags = {
        run.data.params["likelihood"]: run.data.tags
        for run in runs_in(tmp_path)
        if run.info.run_id != parent.info.run_id
    }
    assert (tags["beta"]["x"], tags["beta"]["log_px"]) == ("digits: 17 levels", "density")
    assert tags["categorical"]["log_px"] == "probability"
    assert note.index("**digits: binary pixels**") < note.index("**digits: 17 levels**")
    assert "not to be compared" in note


@pytest.mark.parametrize(
    "overrides",
    [
        ["likelihood=categorical", "guide=flow", "objective=dreg", "network=conv"],
        ["likelihood=beta", "guide=full_rank_normal", "objective=elbo_analytic_kl"],
        ["likelihood=normal_heteroscedastic", "objective=iwae", "network=linear"],
        ["objective=beta_elbo", "objective.warmup_epochs=2", "objective.free_bits=0.1"],
        ["data=linear_gaussian", "guide=flow"],
        ["likelihood=categorical", "network.output_bias=data"],
    ],
    ids=" ".join,
)
def test_any_choice_goes_with_any_other(
    run_py: Command, tmp_path: Path, overrides: list[str]
) -> None:
    done = run_py(*overrides, *QUICK)
    assert done.returncode == 0, done.stderr
    (run,) = runs_in(tmp_path)
    for override in overrides:
        key, _, value = override.partition("=")
        assert run.data.params[key] == value
    is_elbo = run.data.params["objective"] in ("elbo", "elbo_analytic_kl")
    assert ("train/objective" in run.data.metrics) != is_elbo
    known = "data=linear_gaussian" in overrides
    assert ("test/bits_per_dim" in run.data.metrics) != known
    assert ("test/log_px_true" in run.data.metrics) == known
    assert np.isfinite(list(run.data.metrics.values())).all()


def test_the_output_bias_starts_where_it_is_told(run_py: Command, tmp_path: Path) -> None:
    """A step too small to see leaves it at the log frequencies of the training levels."""
    options = (
        "likelihood=categorical",
        "network.output_bias=data",
        "tracking=none",
        "training.learning_rate=1e-9",
    )
    assert run_py(*options, *QUICK).returncode == 0
    (weights,) = tmp_path.rglob("weights.safetensors")
    bias = load_file(weights)["model.decoder.4.bias"].reshape(17, 64)
    torch.testing.assert_close(bias.exp().sum(0), torch.ones(64), atol=1e-4, rtol=0)
    assert bias[0, 0].exp() == pytest.approx((1197 + 1) / (1197 + 17))  # a corner that is black


def test_epochs_of_the_warm_up_are_not_kept(run_py: Command, tmp_path: Path) -> None:
    """Its early epochs have the higher ELBO, and another objective than was asked for."""
    options = ("objective=beta_elbo", "objective.beta=50", "objective.warmup_epochs=6")
    done = run_py(*options, "training.epochs=10", "training.snapshots=1", *QUICK[2:])
    assert done.returncode == 0, done.stderr
    (run,) = runs_in(tmp_path)
    assert run.data.metrics["train/kept_epoch"] > 6


def test_training_ends_when_it_no_longer_helps(run_py: Command, tmp_path: Path) -> None:
    options = ("likelihood=categorical", "training.patience=4", "training.learning_rate=0.02")
    done = run_py(*options, "training.snapshots=1", *QUICK[2:])
    assert done.returncode == 0, done.stderr
    (run,) = runs_in(tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    elbos = [point.value for point in client.get_metric_history(run.info.run_id, "valid/elbo")]
    kept = int(run.data.metrics["train/kept_epoch"])
    assert len(elbos) == kept + 4 < 200
    assert np.argmax(elbos) == kept - 1
    assert f"training ended with epoch {kept + 4}: no better valid ELBO since {kept}" in done.stdout


def test_static_binarisation_is_for_binary_pixels_only(run_py: Command, tmp_path: Path) -> None:
    done = run_py("likelihood=bernoulli,categorical", "data.binarisation=static", *QUICK, "-m")
    assert done.returncode == 0, done.stderr
    assert "digits: binary pixels (static)" in done.stdout
    assert "digits: 17 levels (static)" not in done.stdout
    assert "digits: 17 levels" in done.stdout


@pytest.mark.slow
def test_ctrl_c_ends_within_seconds_and_marks_the_runs(tmp_path: Path) -> None:
    sweep = forkserver.Popen(
        [sys.executable, str(ROOT / "run.py"), "latent_dim=2,3", "training.epochs=5000", "-m"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("multirun/*/*/0/samples.png")):
        assert time.monotonic() < deadline
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.2)
    sweep.send_signal(signal.SIGINT)
    start = time.monotonic()
    _, errors = sweep.communicate(timeout=60)
    assert time.monotonic() - start < 15
    assert sweep.returncode == 130
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert {run.info.status for run in runs_in(tmp_path)} == {"KILLED"}


def test_one_seed_gives_the_same_numbers(run_py: Command, tmp_path: Path) -> None:
    for number, seed in enumerate((1, 1, 2)):
        command = ("tracking=none", f"seed={seed}", *QUICK, f"hydra.run.dir={number}")
        assert run_py(*command).returncode == 0
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("result.json"))]
    numbers = [
        {k: v for k, v in result["metrics"].items() if not k.startswith("time/")}
        for result in results
    ]
    assert numbers[0] == numbers[1]
    assert numbers[0] != numbers[2]


def test_more_samples_leave_the_training_alone(run_py: Command, tmp_path: Path) -> None:
    for number, more in enumerate(((), ("evaluation.num_samples=70",))):
        command = ("tracking=none", *QUICK, *more, f"hydra.run.dir={number}")
        assert run_py(*command).returncode == 0
    first, second = (path.read_bytes() for path in sorted(tmp_path.rglob("weights.safetensors")))
    assert first == second


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["latent_dms=3"], "latent_dms"),
        (["+latent_dms=3"], "latent_dms: no such key; did you mean latent_dim?"),
        (["likelihood=gaussian"], "likelihood=gaussian: there is no such option"),
        (["latent_dim=two"], "latent_dim=two: input should be a valid integer"),
        (["latent_dim=0"], "latent_dim=0: input should be greater than or equal to 1"),
        (
            ["training.learning_rate=-1"],
            "training.learning_rate=-1: input should be greater than 0",
        ),
        (["training.learning_rate=1e30", *QUICK], "try a smaller training.learning_rate"),
        (["latent_dim=", "-m"], "latent_dim=: input should be a valid integer"),
        (["latent_dim=2,,3", "-m"], "latent_dim=2,,3"),
        (["device=cuda"], "no CUDA GPU"),
        (["data=linear_gaussian", "likelihood=bernoulli"], "use likelihood=normal"),
        (["likelihood=normal", "likelihood.scale=0"], "likelihood.scale: must be positive, got 0"),
        (["likelihood=normal", "+likelihood.num_levels=3"], "likelihood.num_levels: no such key"),
        (["guide=flow", "guide.hidden=0"], "guide.hidden: must be at least 1, got 0"),
        (["network=conv", "network.channels=[]"], "network.channels: needs one or more"),
        (["guide=flow", "guide.hidden=1180591620717411303424"], "guide.hidden: must be at most 1,"),
        (["latent_dim=1000000000"], "of memory are available. Reduce latent_dim"),
        (["network.hidden=[1000000000]"], "the VAE would have 160,000,000,084 weights"),
        (["guide=full_rank_normal", "latent_dim=1000000000"], "choose smaller numbers"),
        (["objective=elbo_analytic_kl", "guide=flow"], "no closed form; use objective=elbo"),
        (
            ["objective=beta_elbo", "objective.free_bits=1.0", "guide=flow"],
            "use guide=diag_normal, or objective.free_bits=0",
        ),
        (["training.keep=first"], "training.keep=first: input should be 'best' or 'last'"),
        (["tracking.uri=http://127.0.0.1:9"], "no server responds there"),
        (["tracking.uri=http://127.0.0.1:9", "latent_dim=2,3", "-m"], "no server responds there"),
        (["tracking.uri=sqlite:////no/such/folder/x.db"], "/no/such/folder is not a folder"),
        (["data=mnist"], "data=digits"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_clear_message(
    run_py: Command, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if arguments == ["device=cuda"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if arguments == ["data=mnist"]:  # a damaged file, so that no network is asked
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        ):
            (raw / f"{part}-ubyte").write_bytes(b"\0\0")
        arguments = ["data=mnist", f"data.root={tmp_path}"]
    done = run_py(*arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    finished = [
        path for path in tmp_path.rglob("result.json") if '"error": null' in path.read_text()
    ]
    assert finished == []
    assert list(tmp_path.rglob("weights.safetensors")) == []


def test_a_traceback_is_there_for_who_asks(run_py: Command) -> None:
    done = run_py("latent_dim=0", HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "latent_dim=0: input should be" in done.stderr


def test_help_is_a_page(run_py: Command) -> None:
    page = run_py("--help").stdout
    assert len(page.splitlines()) <= 95
    for part in ("latent_dim=2,10,20 -m", "data: cifar10", "learning_rate: 0.001", "run.py ui"):
        assert part in page


def test_help_and_refusals_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run.py"), "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "pyro", "mlflow", "matplotlib", "sklearn", "torchvision"}


def test_the_fingerprint_knows_data_from_destination(run_py: Command, tmp_path: Path) -> None:
    """It changes with the data, not with where results go."""
    tags = []
    for arguments in ([], ["tracking.experiment=other"], ["data.binarisation=static"]):
        assert run_py(*arguments, *QUICK).returncode == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]):
            tags.append((experiment.name, run.data.tags["fingerprint"]))
    by_experiment = {name: {f for n, f in tags if n == name} for name, _ in tags}
    assert len(by_experiment["vae-pyro"]) == 2
    assert by_experiment["other"] < by_experiment["vae-pyro"]
