"""Pictures that another process draws while the training goes on."""

import io
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from tests.conftest import QUICK
from tests.test_config import composed
from vae_pyro.compilation import precision
from vae_pyro.data import Dataset
from vae_pyro.errors import DataError
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.reporting import figures
from vae_pyro.runs.job import Job, run_job
from vae_pyro.runs.pictures import SERIES, Pictures
from vae_pyro.tracking import RECORD_FOLDER, SilentRun
from vae_pyro.tracking.outbox import read_journal
from vae_pyro.training.checkpoints import Checkpoint, Checkpoints
from vae_pyro.vae import VAE, build_vae


class Kept(SilentRun):
    """Keeps the pictures in memory."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, int], np.ndarray] = {}

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        self.images[key, step] = image


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    with precision.threads(request.param):
        yield request.param


@pytest.fixture
def vae() -> VAE:
    return build_vae(latent_dim=2, image_shape=(1, 8, 8), likelihood=Bernoulli(17), seed=0)


@pytest.fixture
def pictures(
    vae: VAE, binary_test_digits: torch.Tensor, digits: Dataset, tmp_path: Path
) -> Callable[[Kept], Pictures]:
    labels = digits.test.labels
    return lambda run: Pictures(vae, binary_test_digits, labels, seed=0, run=run, folder=tmp_path)


def test_pictures_show_the_weights_of_their_epoch(
    vae: VAE, pictures: Callable[[Kept], Pictures], tmp_path: Path, threads: int
) -> None:
    found, expected = Kept(), Kept()
    drawing = pictures(found)
    for epoch in (0, 4, 9):
        drawing.draw(epoch)
        assert drawing.are_awaited == (threads == 2 and epoch > 0)
        pictures(expected).draw(epoch)  # the first of its kind: here and now
        with torch.no_grad():
            for weight in vae.parameters():
                weight.mul_(1.2)
    drawing.record()
    assert not drawing.are_awaited
    assert found.images.keys() == expected.images.keys()
    assert found.images.keys() == {(key, epoch) for key in SERIES for epoch in (0, 4, 9)}
    for place, image in found.images.items():
        assert np.array_equal(image, expected.images[place])
    for key in SERIES:
        with Image.open(tmp_path / f"{key}.png") as picture:
            assert np.array_equal(np.asarray(picture), found.images[key, 9])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("threads", [2], indirect=True)
def test_a_process_that_is_killed_costs_its_pictures_alone(
    pictures: Callable[[Kept], Pictures],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = Kept()
    drawing = pictures(run)
    drawing.draw(0)
    with monkeypatch.context() as patch:
        patch.setattr(figures, "render", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        drawing.draw(3)
    with caplog.at_level(logging.WARNING):
        drawing.record()
    assert "no pictures of epoch 3: " in caplog.text
    drawing.draw(5)
    drawing.record()
    assert {step for _, step in run.images} == {0, 5}


def test_without_room_for_a_process_they_are_drawn_here(
    pictures: Callable[[Kept], Pictures], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    run = Kept()
    drawing = pictures(run)
    drawing.draw(0)
    monkeypatch.setattr(os, "fork", none_left)
    drawing.draw(3)
    assert not drawing.are_awaited
    assert {step for _, step in run.images} == {0, 3}
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("threads")
def test_what_is_wrong_with_a_picture_is_told(
    pictures: Callable[[Kept], Pictures], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_figure: Any) -> Any:
        raise DataError("cannot be drawn")

    drawing = pictures(Kept())
    drawing.draw(0)
    monkeypatch.setattr(figures, "render", broken)

    def draw() -> None:
        drawing.draw(1)
        drawing.record()

    with pytest.raises(DataError, match="cannot be drawn"):
        draw()
    assert not drawing.are_awaited


def test_a_checkpoint_waits_for_the_pictures_of_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A job that is killed continues from a checkpoint: pictures before it must be recorded."""
    folder = tmp_path / "job"
    keep, render = Checkpoints.keep, figures.render
    seen: list[tuple[int, set[int]]] = []

    def recorded() -> set[int]:
        entries = read_journal(folder / RECORD_FOLDER)
        return {entry["step"] for entry in entries if entry["op"] == "image"}

    def keep_and_look(self: Checkpoints, checkpoint: Checkpoint) -> None:
        seen.append((checkpoint.epoch, recorded()))
        keep(self, checkpoint)

    def slowly(figure: Any) -> Any:
        time.sleep(0.1)
        return render(figure)

    monkeypatch.setattr(Checkpoints, "keep", keep_and_look)
    monkeypatch.setattr(figures, "render", slowly)
    folder.mkdir()
    tree = composed(
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        *QUICK,
        "evaluation=quick",
        "training.epochs=24",
        "training.snapshots=5",
        "training.checkpoint_seconds=0",
    )
    run_job(tree, Job("job", {}, {}, folder, parent=None), Console(file=io.StringIO()))
    snapshots = {0, 1, 3, 5, 11, 24}
    drawn = recorded()
    assert drawn >= {0, 1, 24}
    assert len(drawn) == len(snapshots)
    for epoch, pictures in seen[:-1]:  # those of the last epoch follow the training
        assert {step for step in drawn if step <= epoch} == pictures
    assert seen[-1][0] == 24
    assert {step for step in drawn if step < 24} == seen[-1][1]
    assert len(seen) < 24 if threads == 2 else len(seen) == 24
