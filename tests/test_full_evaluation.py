"""``evaluation=full`` as a user asks for it: from the command line, and again from Python."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

import vae_pyro
from tests import forkserver
from tests.conftest import QUICK, ROOT
from tests.test_tracking import mlflow_server
from vae_pyro.data import Digits
from vae_pyro.errors import CheckpointError, TrackingError
from vae_pyro.files import read_tensors, write_tensors
from vae_pyro.log_marginal import Quadrature

RunPy = Callable[..., subprocess.CompletedProcess[str]]
SMALL = (
    *QUICK,
    "evaluation.iwae_samples=[5]",
    "evaluation.num_images=8",
    "evaluation.estimators.log_px_ais.num_temperatures=20",
)
SMALL_FULL = (
    *SMALL,
    "evaluation=full",
    "evaluation.simulated_images=6",
    "evaluation.estimators.log_px_upper.num_temperatures=20",
    "evaluation.num_evaluations=500",
    "evaluation.estimators.log_px_guide.num_samples=50",
    "evaluation.estimators.log_px_prior.num_samples=50",
    "evaluation.estimators.log_px_defensive.num_samples=50",
    "evaluation.estimators.elbo_local.num_steps=20",
)


def test_full_asks_everything_that_applies(run_py: RunPy, tmp_path: Path) -> None:
    done = run_py("latent_dim=2", *SMALL_FULL, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/m.db")
    assert done.returncode == 0, done.stdout + done.stderr
    for label in (
        "adaptive",
        "guide",
        "defensive",
        "prior",
        "ais",
        "upper",
        "quadrature",
        "ELBO, local",
    ):
        assert re.search(rf"^ +{label} +(lower|upper|numeric) ", done.stdout, re.MULTILINE)
    assert "note: log_px_exact was left out: exact log p(x) is known for linear" in done.stdout
    assert "note: on images simulated from the model, the lower and the upper bound" in done.stdout

    client = MlflowClient(f"sqlite:///{tmp_path}/m.db")
    (run,) = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    m = run.data.metrics
    for name in ("ais", "upper", "quadrature", "prior", "defensive"):
        for section, suffix in (("", ""), ("", "_std_error"), ("_se", "_image_std_error")):
            assert f"compared{section}/log_px_{name}{suffix}" in m
            assert (f"test{section}/log_px_{name}{suffix}" in m) == (name == "quadrature")
    for name in ("approximation_gap", "amortisation_gap", "kl_to_posterior", "log_px"):
        assert f"compared/{name}_std_error" in m
    assert {"test/mutual_information", "test_se/marginal_kl_image_std_error"} <= m.keys()
    assert m["compared/num_images"] == 8
    assert "simulated/gap" in m
    assert "compared/log_px_exact" not in m
    assert m["compared/log_px"] == pytest.approx(
        m["compared/log_px_quadrature"], abs=5 * m["compared/log_px_std_error"]
    )
    assert m["test/log_px"] == pytest.approx(
        m["test/log_px_quadrature"], abs=5 * m["test/log_px_std_error"]
    )
    params = run.data.params
    assert params["evaluation.estimators.log_px_ais.num_temperatures"] == "20"
    assert params["evaluation.num_images"] == "8"
    assert "| quadrature | numeric |" in run.data.tags["mlflow.note.content"]
    folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
    with (folder / "estimators.csv").open() as file:
        table = {row["estimator"]: row for row in csv.DictReader(file)}
    assert float(table["log_px_ais"]["nats_per_image"]) == m["compared/log_px_ais"]
    with (folder / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(row["log_px_quadrature"] != "" for row in rows) == len(rows) == 300
    assert sum(row["log_px_ais"] != "" for row in rows) == 8
    with (folder / "latent.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2
    (output,) = tmp_path.glob("outputs/*/*")
    assert not (output / "evaluation").exists()  # its chunks are in the tables

    # The same question in Python, of the run and of the folder, gives the same answer.
    digits = Digits().load()
    run_uri = f"runs:/{run.info.run_id}"
    for source in (run_uri, f"{run_uri}/model", output, output / "model"):
        vae = vae_pyro.load(source, tracking_uri=f"sqlite:///{tmp_path}/m.db")
        x = vae.model.likelihood.prepare(
            digits.test.images, digits.held_out_stream("test").generator
        )
        assert Quadrature()(vae, x[:8]).mean() == pytest.approx(
            m["compared/log_px_quadrature"], abs=1e-6
        )


def test_load_asks_a_server_too(
    run_py: RunPy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with mlflow_server(tmp_path) as uri:
        assert run_py(*QUICK, "latent_dim=2", MLFLOW_TRACKING_URI=uri).returncode == 0
        client = MlflowClient(uri)
        (run,) = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert vae_pyro.load(f"runs:/{run.info.run_id}").model.latent_dim == 2
        with pytest.raises(TrackingError, match=r"runs:/nobody in http.* has no 'model'"):
            vae_pyro.load("runs:/nobody")


def test_load_tells_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no trained model can be read from"):
        vae_pyro.load(tmp_path)
    with pytest.raises(TrackingError, match=r"there is no .*none\.db"):
        vae_pyro.load("runs:/abc", tracking_uri=f"sqlite:///{tmp_path}/none.db")
    assert not list(tmp_path.iterdir())


def test_the_exact_answer_stands_beside_the_others(run_py: RunPy, tmp_path: Path) -> None:
    done = run_py(
        "data=linear_gaussian",
        "latent_dim=3",
        "tracking=none",
        "hydra.run.dir=job",
        "evaluation.estimators.log_px_quadrature.tolerance=1e-2",
        *SMALL_FULL,
        "data.num_train=500",
        "data.num_test=50",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "- exact" in done.stdout
    m = json.loads((tmp_path / "job" / "result.json").read_text())["metrics"]
    exact = m["compared/log_px_exact"]
    assert m["compared/log_px_quadrature"] == pytest.approx(exact, abs=0.01)
    assert m["compared/log_px_ais"] < exact + 5 * m["compared/log_px_ais_std_error"]
    assert m["compared/log_px_upper"] > exact - 5 * m["compared/log_px_upper_std_error"]
    assert m["compared/log_px_exact_std_error"] == 0
    # Those two have all 50 images, where the others have 8.
    with (tmp_path / "job" / "per_image.csv").open() as file:
        values = [float(row["log_px_exact"]) for row in csv.DictReader(file)]
    assert len(values) == 50
    exact = m["test/log_px_exact"]
    assert exact == pytest.approx(sum(values) / 50)
    assert m["test/log_px_quadrature"] == pytest.approx(exact, abs=0.01)
    assert m["test/log_px"] < exact + 5 * m["test/log_px_std_error"]


@pytest.mark.long
def test_densities_are_asked_of_every_draw(run_py: RunPy, tmp_path: Path) -> None:
    done = run_py(
        "likelihood=normal_learned_scale",
        "latent_dim=2",
        "tracking=none",
        "hydra.run.dir=job",
        "evaluation/estimators=[quadrature,ais]",
        *SMALL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"quadrature +numeric +≥ ", done.stdout)
    with (tmp_path / "job" / "per_image.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 300
    assert sum(row["log_px_quadrature"] != "" for row in rows) == 2 * 300
    assert sum(row["log_px_ais"] != "" for row in rows) == 2 * 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluation/estimators=[exact]",), "log_px_exact: exact log p(x) is known for linear"),
        (("evaluation/estimators=[quadrature]", "latent_dim=4"), "latent_dim of at most 3"),
        (("evaluation/estimators=[local]", "guide=flow"), "sought among normals"),
        (
            ("evaluation/estimators=[ais]", "evaluation.estimators.log_px_ais.num_chains=1"),
            "evaluation.estimators.log_px_ais.num_chains: must be at least 2, got 1",
        ),
        (
            ("evaluation/estimators=[ais]", "evaluation.estimators.log_px_ais.start=middle"),
            "evaluation.estimators.log_px_ais.start=middle",
        ),
        (("evaluation/estimators=[ias]",), "ias"),
        (("evaluation.num_images=1",), "evaluation.num_images=1"),
        (("evaluation.simulated_images=5",), "evaluation.simulated_images: they are for AIS"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_run_is_opened(
    run_py: RunPy, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = run_py(*arguments, MLFLOW_TRACKING_URI=f"sqlite:///{tmp_path}/m.db")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "m.db").exists()


def test_an_evaluation_that_was_killed_goes_on(run_py: RunPy, tmp_path: Path) -> None:
    """Killed at once after a chunk was kept; then the same command: what was kept is not redone."""
    command = ["latent_dim=2", "tracking=none", "evaluation/estimators=[prior,ais]", *SMALL]
    command += ["evaluation.estimators.log_px_ais.num_temperatures=300"]
    folder = tmp_path / "job"
    process = forkserver.Popen(
        [sys.executable, str(ROOT / "run.py"), *command, "hydra.run.dir=job"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 200
    while len(list(folder.glob("evaluation/*.safetensors"))) < 25 and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()  # type: ignore[union-attr]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    # 12 chunks of the guide's weights, 12 of log p(x), one of the prior; perhaps that of AIS
    assert len(list(folder.glob("evaluation/*.safetensors"))) in (25, 26)

    shutil.copytree(folder, tmp_path / "marked")
    for path in (tmp_path / "marked").glob("evaluation/*.safetensors"):
        add_to_log_px(path, 1000.0)

    runs = [
        run_py(*command, "resume=true", f"hydra.run.dir={name}")
        for name in ("job", "other", "marked")
    ]
    assert [run.returncode for run in runs] == [0, 0, 0], runs[0].stderr
    continued, undisturbed, marked = (
        {key: value for key, value in metrics.items() if not key.startswith("time/")}
        for metrics in (
            json.loads((tmp_path / name / "result.json").read_text())["metrics"]
            for name in ("job", "other", "marked")
        )
    )
    assert continued == undisturbed
    tables = [(tmp_path / name / "per_image.csv").read_bytes() for name in ("job", "other")]
    assert tables[0] == tables[1]
    # What was kept is what was taken: a mark in it is seen in the result.
    assert marked["test/log_px"] == pytest.approx(continued["test/log_px"] + 1000)
    assert not list(folder.glob("evaluation/*"))


def add_to_log_px(path: Path, nats: float) -> None:
    """Change a kept answer as if it had been computed so."""
    tensors, about = read_tensors(path)
    if "log_px/value" in tensors:
        tensors["log_px/value"] += nats
    write_tensors(path, tensors, about)


MEMORY = """
import resource, sys, torch
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.evaluation.latent import information
from vae_pyro.log_marginal import *
from vae_pyro.networks import MLP
from vae_pyro.vae import build_vae
torch.set_num_threads(1)
vae = build_vae(2, (1, 28, 28), MLP((50,)), Bernoulli(256), DiagNormal, seed=None).eval()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
def ask(size, budget):
    x = torch.bernoulli(torch.full((size, 1, 28, 28), 0.3))
    AIS(2, 8 * budget, 1)(vae, x)
    ReverseAIS(2, 8 * budget, 1)(vae, x)
    ImportanceSampling(20 * budget, prior_share=0.1)(vae, x)
    LocalELBO(2, 8 * budget, 20 * budget)(vae, x)
    Quadrature(tolerance=10.0)(vae, x[: size // 4])
    information(vae, x, 2)
ask(10, 1)
before = peak()
ask(300, 20)
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_is_bounded_whatever_is_asked() -> None:
    """30 times the images and 20 times the samples: at most 300 MB more."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300
