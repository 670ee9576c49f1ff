"""``vae-pyro score``, ``encode``, ``reconstruct`` and ``sample``, as a user types them."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

import vae_pyro as vp
from tests import forkserver
from tests.conftest import ROOT
from vae_pyro.data import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("test_trained")]  # which share a job

NUM = 12


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return forkserver.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=folder,
        timeout=300,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Path:
    """A finished run of 17 levels, and its first test images as 8-bit files."""
    folder = tmp_path_factory.mktemp("trained")
    options = ("training.epochs=5", "training.snapshots=1", "evaluation.num_samples=200")
    done = command(folder, "likelihood=categorical", "latent_dim=2", *options, "hydra.run.dir=job")
    assert done.returncode == 0, done.stderr
    (folder / "images").mkdir()
    for number, levels in enumerate(digits.test.images[:NUM, 0].double()):
        pixels = (levels * 255 / 16).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"images/{number:02}.png")
    return folder


def scored(folder: Path, *arguments: str) -> list[dict[str, str]]:
    done = command(folder, "score", *arguments, "--format", "csv")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, str]]:
    return scored(folder, "job", "images")


def test_the_run_s_own_images_get_their_own_scores(
    folder: Path, rows: list[dict[str, str]]
) -> None:
    """17 levels are the same x each time, so two evaluations differ by their errors alone."""
    assert [row["file"] for row in rows] == [f"images/{number:02}.png" for number in range(NUM)]
    with (folder / "job/per_image.csv").open() as file:
        recorded = list(csv.DictReader(file))
    every = [float(row["log_px"]) for row in recorded]
    assert sum(row["trusted"] == "True" for row in rows) > NUM / 2
    for row, known in zip(rows, recorded, strict=False):
        for name in ("elbo", "log_px") if row["trusted"] == "True" else ():
            error = float(known[f"{name}_std_error"])
            assert abs(float(row[name]) - float(known[name])) < 7 * error + 0.01, name
        log_px = float(row["log_px"])
        assert float(row["bits_per_dim"]) == pytest.approx(-log_px / 64 / math.log(2))
        lower = sum(value < log_px for value in every)
        assert float(row["percentile"]) == 100 * lower / len(every)


def test_a_score_does_not_depend_on_the_form_or_on_the_store(
    folder: Path, rows: list[dict[str, str]]
) -> None:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    assert scored(folder, run.info.run_id, "images") == rows
    done = command(folder, "score", "job", "images", "--format", "json")
    as_json = json.loads(done.stdout)
    assert [str(row["log_px"]) for row in as_json] == [row["log_px"] for row in rows]
    table = command(folder, "score", "job", "images/00.png").stdout
    assert "digits: 17 levels" in table
    (shown,) = re.findall(r"images/00\.png +(-\d+\.\d+)", table)
    with (folder / "job/per_image.csv").open() as file:
        error = float(next(csv.DictReader(file))["elbo_std_error"])
    assert abs(float(shown) - float(rows[0]["elbo"])) < 7 * error + 0.05  # other samples; rounded
    assert "share of the run's 300 test images" in table


def test_binary_pixels_do_not_depend_on_the_other_images(folder: Path) -> None:
    options = ("training.epochs=1", "training.snapshots=1", "evaluation.num_samples=50")
    done = command(folder, "latent_dim=2", *options, "tracking=none", "hydra.run.dir=binary")
    assert done.returncode == 0, done.stderr
    alone = scored(folder, "binary", "images/03.png")
    among = scored(folder, "binary", "images")[3]
    error = float(among["log_px_std_error"])
    assert abs(float(alone[0]["log_px"]) - float(among["log_px"])) < 10 * error


def test_codes_are_the_posterior_means(folder: Path, digits: Dataset) -> None:
    done = command(folder, "encode", "job", "images")
    assert done.returncode == 0, done.stderr
    header, *lines = csv.reader(io.StringIO(done.stdout))
    assert header == ["file", "z0", "z1"]
    vae = vp.load(folder / "job")
    with torch.no_grad():
        means = vae.guide.posterior_mean(digits.prepared("test", vae)[:NUM])
    found = torch.tensor([[float(number) for number in line[1:]] for line in lines])
    torch.testing.assert_close(found, means, rtol=1e-5, atol=1e-5)


def test_pictures_are_drawn(folder: Path) -> None:
    """Sixteen samples in four rows; with another seed, others."""
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed=1",)), ("d", ("--mean",))):
        done = command(folder, "sample", "job", "-n", "16", f"{name}.png", *more)
        assert (done.returncode, done.stdout) == (0, f"{name}.png\n"), done.stderr
    first, again, other, means = (
        np.asarray(Image.open(folder / f"{name}.png")).astype(float) for name in "abcd"
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.shape[0] == first.shape[1] > 400
    assert means.std() < first.std()  # a mean has no noise
    done = command(folder, "reconstruct", "job", "images", "--out", "r.png")
    assert done.returncode == 0, done.stderr
    assert np.asarray(Image.open(folder / "r.png")).std() > 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "nowhere", "images"), "there is no folder nowhere"),
        (("score", "job", "nothing.png"), "there is no file or folder nothing.png"),
        (("score", "job", "job/config.yaml"), "neither PNG nor JPEG"),
        (("score", "job", "large.png"), "images of 8x8 (height x width), but large.png (9x9)"),
        (("encode", "f" * 32, "images"), "f" * 32),
        (("sample", "images"), "has no finished run"),
        (("sample", "job", "nowhere/a.png"), "nowhere"),
    ],
)
def test_what_cannot_be_done_is_said(
    arguments: tuple[str, ...], message: str, folder: Path
) -> None:
    Image.new("L", (9, 9)).save(folder / "large.png")
    done = command(folder, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (folder / "nowhere").exists()


def test_other_sizes_are_resized_on_request(folder: Path) -> None:
    Image.new("RGB", (90, 40), (200, 10, 10)).save(folder / "colour.jpg")
    (row,) = scored(folder, "job", "colour.jpg", "--resize")
    assert math.isfinite(float(row["log_px"]))
    assert float(row["percentile"]) == 0  # no digit is a plain square


def metrics(job: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((job / "result.json").read_text())["metrics"]
    return found


def test_a_run_is_evaluated_anew_without_training(folder: Path) -> None:
    """The same weights with four times the samples, as a run of its own."""
    before = {path: path.read_bytes() for path in (folder / "job").rglob("*") if path.is_file()}
    done = command(folder, "evaluate", "job", "evaluation.num_samples=800", "hydra.run.dir=anew")
    assert done.returncode == 0, done.stderr
    assert "training" not in done.stdout
    assert {path: path.read_bytes() for path in before} == before
    weights = [folder / name / "model/weights.safetensors" for name in ("job", "anew")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    first, second = metrics(folder / "job"), metrics(folder / "anew")
    assert first["time/train_seconds"] == second["time/train_seconds"]
    assert first["train/kept_epoch"] == second["train/kept_epoch"]
    for name in ("test/elbo", "test/log_px"):
        errors = first[f"{name}_std_error"], second[f"{name}_std_error"]
        assert first[name] != second[name]
        assert abs(first[name] - second[name]) < 6 * math.hypot(*errors)
        assert errors[1] < errors[0]
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("vae-pyro").experiment_id])
    assert {run.info.run_name for run in runs if "weights" in run.data.params} == {
        "d=2 categorical epochs=5 snapshots=1 num_samples=800 (evaluated anew)"
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "nowhere"), "there is no such folder"),
        (("evaluate", "job", "latent_dim=3"), "do not fit this configuration"),
        (("evaluate", "job", "evaluation=ful"), "did you mean full?"),
        (("weights=images",), "no trained model can be read from images"),
    ],
)
def test_what_cannot_be_evaluated(arguments: tuple[str, ...], message: str, folder: Path) -> None:
    done = command(folder, *arguments, "tracking=none")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
