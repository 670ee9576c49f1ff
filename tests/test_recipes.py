"""Recipes: each is the published setting, runs as its first comment says, and continues."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import MNIST_ROOT, ROOT, composed, needs_mnist
from vae_pyro.config import build, parse_config
from vae_pyro.networks import Network
from vae_pyro.training import Schedule
from vae_pyro.training.fit import shortened
from vae_pyro.vae import build_vae

RunPy = Callable[..., subprocess.CompletedProcess[str]]
RECIPES = sorted(path.stem for path in (ROOT / "conf/recipe").glob("*.yaml"))
FEW = (
    f"data.root={MNIST_ROOT}",
    "data.split=400/50",
    "data.classes=[1]",
    "evaluation.num_samples=30",
    "evaluation.num_evaluations=100",
    "evaluation.iwae_samples=[1,30]",
    "evaluation.num_images=2",
    "evaluation.repeated_images=0",
    "evaluation.estimators.log_px_ais.num_temperatures=5",
    "tracking=none",
    "hydra.run.dir=job",
)


def lines(recipe: str) -> list[str]:
    return (ROOT / f"conf/recipe/{recipe}.yaml").read_text().splitlines()


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_begins_with_its_command_and_what_was_published(recipe: str) -> None:
    first, command, *rest = lines(recipe)
    assert first == "# @package _global_"
    match = re.fullmatch(r"# python run\.py recipe=(\w+)(?: [\w.,=]+ -m)?", command)
    assert match
    assert match[1] == recipe
    comment = " ".join(line.removeprefix("# ") for line in rest if line.startswith("#"))
    assert re.search(r"\((20\d\d)\)", comment)[1] in recipe  # type: ignore[index]
    assert re.search(r"Published test negative log-likelihood: [\d. |]+ nats", comment)


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_sets_holds(recipe: str) -> None:
    """No group that it chooses comes later, and each key exists."""
    tree = composed(f"recipe={recipe}")
    config = parse_config(tree)
    build(config.schedule, Schedule, "schedule")
    written: Any = OmegaConf.to_container(OmegaConf.load(ROOT / f"conf/recipe/{recipe}.yaml"))
    for group, options in written.items():
        if isinstance(options, dict):
            for key, value in options.items():
                assert tree[group][key] == value


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # network's widths, z, images of a step, epochs, learning rates of the first and last epoch
        ("burda2016_vae", ([200, 200], 50, 20, 3280, 1e-3, 1e-4)),
        ("burda2016_iwae", ([200, 200], 50, 20, 3280, 1e-3, 1e-4)),
        ("tucker2019_dreg", ([200, 200], 50, 20, 3280, 1e-3, 1e-4)),
        ("rezende2015_vae", ([400, 400], 40, 100, 500, 1e-4, 1e-4 * 10**-0.4)),
        ("davidson2018", ([256, 128], 10, 64, 1000, 1e-3, 1e-3)),
    ],
)
def test_a_recipe_is_the_published_setting(recipe: str, expected: tuple[Any, ...]) -> None:
    widths, latent_dim, batch_size, epochs, first, last = expected
    config = parse_config(composed(f"recipe={recipe}"))
    network = build(config.network, Network, "network")
    weights = 0
    for before, after in zip([784, *widths], [*widths, 2 * latent_dim], strict=True):
        weights += (before + 1) * after
    for before, after in zip([latent_dim, *widths[::-1]], [*widths[::-1], 784], strict=True):
        weights += (before + 1) * after
    vae = build_vae(config.latent_dim, (1, 28, 28), network)
    assert sum(weight.numel() for weight in vae.parameters()) == weights
    assert (config.training.batch_size, config.training.epochs) == (batch_size, epochs)
    schedule = build(config.schedule, Schedule, "schedule")
    for epoch, rate in ((0, first), (epochs - 1, last)):
        found = schedule.learning_rate(
            config.training.learning_rate, epoch, steps=100, epochs=epochs
        )
        assert found == pytest.approx(rate, rel=1e-9)
    assert config.evaluation.num_samples == 5000
    assert config.recipe.fraction == 1


def test_k_is_an_override() -> None:
    tree = composed("recipe=burda2016_iwae", "objective.num_particles=5")
    assert tree["objective"] == {"_target_": "vae_pyro.objectives.IWAE", "num_particles": 5}
    assert composed("recipe=tucker2019_dreg")["objective"]["_target_"].endswith("DReG")


def test_what_the_user_sets_goes_before_the_recipe() -> None:
    tree = composed("recipe=burda2016_vae", "objective=iwae", "latent_dim=2", "schedule=cosine")
    assert tree["objective"]["_target_"].endswith("IWAE")
    assert tree["latent_dim"] == 2
    assert tree["schedule"]["_target_"].endswith("Cosine")
    assert tree["network"]["hidden"] == [200, 200]
    davidson = composed("recipe=davidson2018")["objective"]
    assert (davidson["beta"], davidson["warmup_epochs"]) == (1, 100)
    assert composed("recipe=davidson2018", "objective=iwae")["objective"] == tree["objective"]


def test_a_fraction_of_a_schedule_has_at_least_one_epoch() -> None:
    assert [shortened(3280, f) for f in (1.0, 0.1, 1e-3, 1e-9)] == [3280, 328, 3, 1]


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs(recipe: str, run_py: RunPy, tmp_path: Path) -> None:
    options = [f"recipe={recipe}", "recipe.fraction=0.001", *FEW]
    if recipe == "rezende2015_vae":
        options.append("data.binarisation=static")
    done = run_py(*options)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "job/result.json").read_text())["metrics"]
    assert {"test/iwae_30", "test/log_px", "compared/log_px_ais"} <= metrics.keys()
    epochs = composed(f"recipe={recipe}")["training"]["epochs"]
    assert metrics["train/kept_epoch"] <= shortened(epochs, 0.001)


@needs_mnist
@pytest.mark.slow
def test_a_recipe_killed_in_the_middle_of_its_schedule_ends_with_the_same_bits(
    run_py: RunPy, tmp_path: Path
) -> None:
    """Of 33 epochs, a hundredth of Burda's schedule, with the average of the weights."""
    options = (
        "recipe=burda2016_vae",
        "recipe.fraction=0.01",
        "training.ema_decay=0.99",
        "training.checkpoint_seconds=0",
        "training.compile=true",
        *FEW,
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run_py(*options, f"hydra.run.dir={whole}").returncode == 0
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *options, f"hydra.run.dir={killed}"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list(killed.glob("checkpoint/epoch-00000[2-9].safetensors")):
        assert time.monotonic() < deadline
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "result.json").exists()
    done = run_py(*options, f"hydra.run.dir={killed}", "resume=true")
    assert done.returncode == 0, done.stderr
    assert re.search(r"training continues after epoch \d", done.stdout + done.stderr)
    for name in ("model/weights.safetensors", "per_image.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["recipe=burda2016"], "did you mean burda2016_"),
        (["recipe=burda2016_vae", "recipe.fraction=0"], "recipe.fraction=0: input should be great"),
        (["recipe.fraction=2"], "recipe.fraction=2: input should be less than or equal to 1"),
        (["recipe.fractoin=0.5"], "recipe.fractoin (did you mean recipe.fraction?)"),
        (["recipe=rezende2015_vae", "data.root=."], "binarized_mnist_train.amat does not exist"),
        (["data=omniglot_burda", "data.root=."], "chardata.mat does not exist"),
        (["optimizer=adagrad"], "optimizer=adagrad: there is no such option"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas: must be two numbers"),
        (["optimizer=sgd", "optimizer.nesterov=true"], "optimizer.nesterov: must be false"),
        (["schedule=multi_step", "schedule.milestones=[3,2]"], "schedule.milestones: must be"),
        (["schedule.every=day"], "schedule.every=day: input should be 'step' or 'epoch'"),
        (["training.ema_decay=1"], "training.ema_decay=1: input should be less than 1"),
    ],
)
def test_a_mistake_gets_one_message(options: list[str], message: str, run_py: RunPy) -> None:
    done = run_py(*options)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in done.stderr
