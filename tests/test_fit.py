"""``fit``: what it keeps, when it stops, what it refuses, and that notebooks get the same bits."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from vae_pyro.data import Dataset
from vae_pyro.data.dataset import Split
from vae_pyro.errors import CheckpointError, ConfigError, DataError
from vae_pyro.evaluation import validate
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.objectives import ELBO, BetaELBO, Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training import (
    SGD,
    Adam,
    AdamW,
    Burda,
    Cosine,
    Epoch,
    History,
    MultiStep,
    fit,
)
from vae_pyro.training.checkpoints import Checkpoints
from vae_pyro.training.early_stopping import EarlyStopping
from vae_pyro.training.state import TrainingState
from vae_pyro.training.updates import Updates
from vae_pyro.vae import VAE, build_vae


def new_vae(num_levels: int = 17) -> VAE:
    with RandomStream("initial weights", 0).active():
        return build_vae(2, (1, 8, 8), MLP((20,)), Bernoulli(num_levels), DiagNormal)


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    def first(split: Split) -> Split:
        return Split(split.images[:120], split.labels[:120])

    return digits.map(first)


def train(
    vae: VAE, data: Dataset, objective: Objective | None = None, epochs: int = 6, **options: object
) -> History:
    options.setdefault("progress", False)
    return fit(vae, data, objective, epochs=epochs, **options)  # type: ignore[arg-type]


def test_the_vae_has_the_weights_of_the_best_epoch(few: Dataset) -> None:
    """Training again for just so many epochs ends with the same weights."""
    vae, again = new_vae(), new_vae()
    history = train(vae, few, learning_rate=0.05, epochs=12)
    elbos = history["valid/elbo"]
    assert history.kept_epoch == 1 + elbos.index(max(elbos))
    assert history.kept_epoch < 12, "the learning rate is too small to overshoot"
    train(again, few, learning_rate=0.05, epochs=history.kept_epoch, keep="last")
    for (name, mine), theirs in zip(
        vae.state_dict().items(), again.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name
    assert not vae.training


def test_the_seed_decides_and_nothing_else(few: Dataset) -> None:
    torch.manual_seed(5)
    first = train(new_vae(), few, seed=3)
    before = torch.get_rng_state()
    second = train(new_vae(), few, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert [e.metrics for e in first.epochs] == [e.metrics for e in second.epochs]
    assert first["train/elbo"] != train(new_vae(), few, seed=4)["train/elbo"]


def test_a_stopped_training_continues_to_the_same_bits(few: Dataset, tmp_path: Path) -> None:
    undisturbed, stopped = new_vae(), new_vae()
    whole = train(undisturbed, few)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.number == 4:
            raise Stop

    with pytest.raises(Stop):
        train(stopped, few, checkpoints=Checkpoints(tmp_path, 0), on_epoch=stop)
    seen: list[Epoch] = []
    fresh = new_vae()
    history = train(fresh, few, checkpoints=Checkpoints(tmp_path, 0), on_epoch=seen.append)
    restored = [e.number for e in seen if e.is_restored]
    assert restored in ([1], [1, 2], [1, 2, 3])  # checkpoints take at most 5% of the time
    assert [e.number for e in seen] == [1, 2, 3, 4, 5, 6]
    assert [e.number for e in seen if e.is_last] == [6]
    assert [e.metrics for e in history.epochs] == [e.metrics for e in whole.epochs]
    for mine, theirs in zip(fresh.parameters(), undisturbed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_new_training_reports_epoch_0_first(few: Dataset) -> None:
    seen: list[Epoch] = []
    train(new_vae(), few, epochs=2, on_epoch=seen.append)
    assert [epoch.number for epoch in seen] == [0, 1, 2]
    assert seen[0].metrics == {}


def state_after(epoch: int) -> TrainingState:
    vae = new_vae()
    return TrainingState(vae, Updates(vae.parameters()), {}, epoch=epoch)


@pytest.mark.parametrize(
    ("keep", "elbos", "kept", "last"),
    [
        ("best", [-3, -1, -2, -2, -2, 0], 2, 5),  # three epochs without a better one
        ("best", [-3, -1, -2, -0.5, -2, -2, -2, 0], 4, 7),
        ("best", [-3, -2, -1], 3, 3),
        ("best", [-3, math.nan, -1], 3, 3),  # NaN is kept until a number is better than it
        ("last", [-3, -1, -2, -2, -2, -2], 6, 6),
    ],
)
def test_early_stopping(keep: str, elbos: list[float], kept: int, last: int) -> None:
    stopping = EarlyStopping(len(elbos), keep, patience=3)  # type: ignore[arg-type]
    state = state_after(0)
    for elbo in elbos:
        state.epoch += 1
        stopping.update(state, elbo, is_settled=True)
        if state.is_done:
            break
    assert (state.kept_epoch, state.epoch) == (kept, last)


def test_a_high_elbo_of_a_warm_up_is_not_kept(few: Dataset) -> None:
    """With beta near 0 the latent code is free; the ELBO of these epochs is another objective's."""
    objective = BetaELBO(1, beta=1.0, warmup_epochs=4)
    history = train(new_vae(), few, objective, epochs=6, learning_rate=0.02)
    assert history.kept_epoch >= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs: must be a whole number from 1 up, got 0"),
        ({"batch_size": 0}, "batch_size: must be a whole number from 1 up"),
        ({"learning_rate": 0.0}, "learning_rate: must be a positive number, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate: must be a positive number"),
        ({"valid_samples": 1}, "valid_samples: must be a whole number from 2 up"),
        ({"epochs": 2.5}, "epochs: must be a whole number from 1 up, got 2.5"),
        ({"epochs": "2"}, "epochs: must be a whole number from 1 up, got '2'"),
        ({"keep": "first"}, "keep: must be 'best' or 'last', got 'first'"),
        ({"fraction": 0.0}, "fraction: must be above 0 and at most 1, got 0.0"),
        ({"fraction": 1.5}, "fraction: must be above 0 and at most 1"),
        ({"ema_decay": 1.0}, "ema_decay: must be between 0 and 1, or None, got 1.0"),
        ({"optimizer": "adam"}, "optimizer: must be of class Optimizer, such as .*Adam"),
        ({"schedule": 0.1}, "schedule: must be of class Schedule, such as .*Cosine"),
    ],
)
def test_impossible_options_are_errors_in_words(
    options: dict[str, object], message: str, few: Dataset
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(new_vae(), few, **options)  # type: ignore[arg-type]


def test_what_is_no_vae_data_or_objective_is_refused_in_words(few: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"data: .* class Dataset, such as .*, got Tensor"):
        train(new_vae(), few.train.images)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"vae: must be of class VAE, such as .*, got function"):
        train(lambda x: x, few)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match=r"objective: .* class Objective, such as .*, got str"):
        train(new_vae(), few, "elbo")  # type: ignore[arg-type]


def test_more_epochs_continue_a_training_that_ended(few: Dataset, tmp_path: Path) -> None:
    vae, whole = new_vae(), new_vae()
    train(vae, few, epochs=2, checkpoints=Checkpoints(tmp_path, 0))
    again = train(new_vae(), few, epochs=2, checkpoints=Checkpoints(tmp_path, 0))
    assert [epoch.number for epoch in again.epochs] == [1, 2]
    reported: list[int] = []

    def progress(_label: str, _total: int) -> AbstractContextManager[Callable[[int, str], None]]:
        return nullcontext(lambda done, _state: reported.append(done))

    history = train(
        vae := new_vae(), few, epochs=5, checkpoints=Checkpoints(tmp_path, 0), progress=progress
    )
    assert [epoch.number for epoch in history.epochs] == [1, 2, 3, 4, 5]
    assert reported == [2, 3, 4, 5]  # first what was done before
    train(whole, few, epochs=5)
    for mine, theirs in zip(vae.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not vae.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "its seed was 0, not 1"),
        ({"batch_size": 32}, "its batch_size was 64, not 32"),
        ({"objective": BetaELBO(1, beta=2.0)}, "its objective was ELBO"),
        ({"optimizer": SGD()}, r"its optimizer was Adam\(.*, not SGD\("),
        ({"optimizer": Adam(eps=1e-4)}, "its optimizer was Adam"),
        ({"schedule": Cosine()}, r"its schedule was Constant\("),
        ({"fraction": 0.5}, "its fraction was 1.0, not 0.5"),
        ({"ema_decay": 0.9}, "its ema_decay was None, not 0.9"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    options: dict[str, object], message: str, few: Dataset, tmp_path: Path
) -> None:
    train(new_vae(), few, epochs=2, checkpoints=Checkpoints(tmp_path, 0))
    with pytest.raises(CheckpointError, match=message):
        train(new_vae(), few, epochs=3, checkpoints=Checkpoints(tmp_path, 0), **options)  # type: ignore[arg-type]


def test_an_interrupted_training_leaves_evaluation_mode(few: Dataset) -> None:
    def stop(epoch: Epoch) -> None:
        if epoch.number == 1:
            raise KeyboardInterrupt

    vae = new_vae()
    with pytest.raises(KeyboardInterrupt):
        train(vae, few, on_epoch=stop)
    assert not vae.training


def test_data_of_other_levels_are_refused(few: Dataset) -> None:
    """Binarised as if they had 256 levels, nearly all pixels would be black."""
    with pytest.raises(DataError, match="256"):
        train(new_vae(256), few)


def test_a_history_is_a_table_and_one_line(few: Dataset) -> None:
    history = train(new_vae(), few, ELBO(), epochs=3)
    table = history.to_dataframe()
    assert list(table.index) == [1, 2, 3]
    assert table["valid/elbo"].tolist() == history["valid/elbo"]
    assert f"kept epoch {history.kept_epoch}" in repr(history)
    with pytest.raises(KeyError, match="there are train/elbo"):
        history["elbo"]


@dataclass(frozen=True)
class Recording(SGD):
    """Notes the learning rate of every step."""

    rates: list[float] = field(default_factory=list, compare=False, repr=False)

    def step(self, *arguments: Any) -> None:
        self.rates.append(arguments[-1])
        super().step(*arguments)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_step_has_the_rate_of_the_schedule(few: Dataset, compiled: bool) -> None:
    """120 images are four batches of 32, the last one short; a half of 6 epochs are 3."""
    schedule = Cosine(0.1, warmup_epochs=2)
    optimizer = Recording()
    train(
        new_vae(),
        few,
        optimizer=optimizer,
        schedule=schedule,
        learning_rate=1e-3,
        fraction=0.5,
        batch_size=32,
        compile_training=compiled,
    )
    at = [(epoch + step / 4) * 2 for epoch in range(3) for step in range(4)]
    expected = [1e-3 * schedule.factor(t, 6) * min(1.0, (t + 0.5) / 2) for t in at]
    assert optimizer.rates == pytest.approx(expected, rel=1e-9)


def test_a_fraction_of_the_epochs_has_that_fraction_of_the_warm_up(few: Dataset) -> None:
    whole = BetaELBO(beta=2.0, warmup_epochs=4)
    half = BetaELBO(beta=2.0, warmup_epochs=2)
    first, second, third = new_vae(), new_vae(), new_vae()
    history = train(first, few, whole, epochs=8, fraction=0.5)
    assert history.kept_epoch > 2
    train(second, few, half, epochs=4)
    train(third, few, whole, epochs=4)
    a, b, c = (torch.nn.utils.parameters_to_vector(v.parameters()) for v in (first, second, third))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [30, 50])
def test_a_compiled_step_is_as_long_as_another(few: Dataset, batch_size: int) -> None:
    """SGD shows the size of a gradient, which Adam divides out."""
    options: dict[str, Any] = {"optimizer": SGD(), "epochs": 2, "batch_size": batch_size}
    compiled, plain = new_vae(), new_vae()
    train(compiled, few, compile_training=True, **options)
    train(plain, few, compile_training=False, **options)
    for mine, theirs, start in zip(
        compiled.parameters(), plain.parameters(), new_vae().parameters(), strict=True
    ):
        moved = (theirs - start).norm()
        assert moved > 0
        assert (mine - theirs).norm() < 1e-2 * moved


def test_the_average_is_evaluated_and_changes_no_step(few: Dataset) -> None:
    plain, averaged = new_vae(), new_vae()
    raw: list[list[torch.Tensor]] = []
    train(plain, few, epochs=5, on_epoch=lambda _: raw.append([*map(copied, plain.parameters())]))
    seen: list[list[torch.Tensor]] = []
    history = train(
        averaged,
        few,
        epochs=5,
        ema_decay=0.5,
        on_epoch=lambda _: seen.append([*map(copied, averaged.parameters())]),
    )
    assert history["train/elbo"] == train(new_vae(), few, epochs=5)["train/elbo"]
    for epoch in range(1, 6):
        assert all(not torch.equal(a, b) for a, b in zip(raw[epoch], seen[epoch], strict=True))
    kept = seen[history.kept_epoch]
    assert all(map(torch.equal, map(copied, averaged.parameters()), kept))
    x = few.prepared("valid", averaged)
    with RandomStream("validation", 0).active():
        valid = validate(averaged, x, 5)
    assert valid["valid/elbo"] == history["valid/elbo"][history.kept_epoch - 1]


def copied(weight: torch.Tensor) -> torch.Tensor:
    return weight.detach().clone()


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": AdamW(max_grad_norm=5.0), "schedule": Cosine(warmup_epochs=3)},
        {"optimizer": SGD(0.9, nesterov=True), "schedule": Burda(), "learning_rate": 1e-4},
        {"ema_decay": 0.99, "schedule": MultiStep((2.0, 4.0), 0.5), "fraction": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_schedule_continues_to_the_same_bits(
    options: dict[str, Any], compiled: bool, few: Dataset, tmp_path: Path
) -> None:
    options |= {"epochs": 8, "batch_size": 32, "compile_training": compiled}
    whole = train(undisturbed := new_vae(), few, **options)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(epoch: Epoch) -> None:
        if epoch.number == 4:
            raise Stop

    checkpoints = Checkpoints(tmp_path, 0)
    with pytest.raises(Stop):
        train(new_vae(), few, checkpoints=checkpoints, on_epoch=stop, **options)
    checkpoints.flush()
    seen: list[Epoch] = []
    fresh = new_vae()
    history = train(
        fresh, few, checkpoints=Checkpoints(tmp_path, 0), on_epoch=seen.append, **options
    )
    assert [epoch.number for epoch in seen if epoch.is_restored] == [1, 2, 3]
    assert [e.metrics for e in history.epochs] == [e.metrics for e in whole.epochs]
    assert all(map(torch.equal, map(copied, fresh.parameters()), undisturbed.parameters()))


def test_other_epochs_are_another_training_where_the_schedule_depends_on_them(
    few: Dataset, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"schedule": Cosine(), "checkpoints": Checkpoints(tmp_path, 0)}
    train(new_vae(), few, epochs=2, **options)
    with pytest.raises(CheckpointError, match="its epochs was 2, not 3"):
        train(new_vae(), few, epochs=3, **options)
