"""What several tests share: a clean process, a trained model, and the command line."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hypothesis import settings
from omegaconf import OmegaConf

# Before vae_pyro: the shapes in the annotations of what is imported later are checked.
from tests import database, forkserver, shape_checks  # noqa: F401
from vae_pyro.data import Dataset, Digits, batches
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.objectives import ELBO
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import train
from vae_pyro.vae import VAE, build_vae

ROOT = Path(__file__).parents[1]

settings.register_profile("default", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("default")

MNIST_ROOT = Path(os.environ.get("VAE_PYRO_DATA", ROOT / "data"))
needs_mnist = pytest.mark.skipif(
    not (MNIST_ROOT / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file(),
    reason="MNIST is not at hand: set VAE_PYRO_DATA to a folder that holds MNIST/raw",
)


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of a command line."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        tree: Any = OmegaConf.to_container(compose("config", list(overrides)), resolve=True)
    return dict(tree)


_SHARED = (
    "sweep",
    "sweeps",
    "undisturbed",
    "slurm",
    "server",
    "served",
)  # served is made of the sweep
_SLOW = {*_SHARED, "run_py", "postgres"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Where tests run in several processes, what takes long to set up is set up in one of them.

    A test that runs the program or a server is slow.
    """
    fixtures = set(getattr(item, "fixturenames", ()))
    if shared := [name for name in _SHARED if name in fixtures]:
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {shared[0]}"))
    if _SLOW & fixtures:
        item.add_marker(pytest.mark.slow)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first, so that none of it is left alone at the end."""

    def order(item: pytest.Item) -> tuple[bool, bool]:
        marks = {mark.name for mark in item.iter_markers()}
        return "xdist_group" not in marks, "slow" not in marks

    items.sort(key=order)


@pytest.fixture(scope="session", autouse=True)
def _mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    # With several processes of tests, each has a folder of its own in the one of this run.
    tables = database.tables(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
    database.use(tables)
    forkserver.use_tables(tables)


@pytest.fixture(scope="session", autouse=True)
def _graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Compiled graphs of this run alone; its processes share them."""
    folder = tmp_path_factory.getbasetemp()
    shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_PYRO_GRAPHS", str(shared / "graphs"))
        yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_signal_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a signal a process has 2.5 seconds for its records; another test has its own time."""
    monkeypatch.setattr("vae_pyro.interruption._Pending.since", None)
    monkeypatch.setattr("vae_pyro.interruption._Pending.status", None)


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """A command that ran in this process printed the notes; the next test reads them in caplog."""
    yield
    logger = logging.getLogger("vae_pyro")
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return Digits().load()


@pytest.fixture(scope="session")
def binary_test_digits(digits: Dataset) -> torch.Tensor:
    generator = digits.held_out_stream("test").generator
    return Bernoulli(17).prepare(digits.test.images, generator)


@pytest.fixture(scope="session")
def digits_vae(digits: Dataset) -> VAE:
    """A VAE with two latent dimensions, trained on digits for a few seconds."""
    with RandomStream("initial weights", 0).active():
        vae = build_vae(2, digits.image_shape, MLP((100,), "tanh"), Bernoulli(17), DiagNormal)
    stream = RandomStream("batches", 0).generator
    likelihood = vae.model.likelihood
    records = train(
        vae,
        ELBO(),
        lambda: batches(
            digits.train.images,
            lambda images: likelihood.prepare(images, stream),
            64,
            stream,
        ),
        epochs=60,
        learning_rate=2e-3,
        noise=RandomStream("training", 0),
    )
    for _ in records:
        pass
    return vae


@pytest.fixture
def run_py(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run_py("latent_dim=2", ...)``: the real command, in an empty folder."""

    def run(
        *arguments: str, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return forkserver.run(
            [sys.executable, str(ROOT / "run.py"), *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


QUICK = ("training.epochs=2", "training.snapshots=1", "evaluation.num_samples=50")
"""Overrides that make a job take a few seconds."""
