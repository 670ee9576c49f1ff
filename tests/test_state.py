"""A training that is stopped between any two epochs and goes on ends with the same bits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vae_pyro.data import Dataset, batches
from vae_pyro.errors import CheckpointError, UserError
from vae_pyro.files import read_tensors, write_tensors
from vae_pyro.guide import DiagNormal, Flow
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.objectives import ELBO, BetaELBO, DReG, Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training.checkpoints import Checkpoint, Checkpoints
from vae_pyro.training.state import TrainingState
from vae_pyro.training.svi import EpochRecord, train
from vae_pyro.training.updates import Updates
from vae_pyro.vae import build_vae

EPOCHS = 4


def start(seed: int = 0, guide: type = DiagNormal, width: int = 8) -> TrainingState:
    vae = build_vae(2, (1, 8, 8), MLP((width,)), Bernoulli(17), guide, seed=seed)
    streams = {name: RandomStream(name, seed) for name in ("batches", "training")}
    return TrainingState(vae, Updates(vae.parameters()), streams)


def go_on(
    state: TrainingState, digits: Dataset, objective: Objective, compiled: bool
) -> Iterator[EpochRecord]:
    order = state.streams["batches"].generator
    for record in train(
        state.vae,
        objective,
        lambda: batches(
            digits.train.images[:330],  # a short last batch
            lambda images: state.vae.model.likelihood.prepare(images, order),
            100,
            order,
        ),
        epochs=EPOCHS,
        learning_rate=1e-2,
        noise=state.streams["training"],
        compiled=compiled,
        updates=state.updates,
        done=state.epoch,
    ):
        state.epoch = record.epoch
        state.history.append({"step": record.epoch, "elbo": record.elbo})
        state.keep_weights(record.elbo)
        yield record


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("objective", "guide"),
    [(ELBO(), DiagNormal), (DReG(3), Flow), (BetaELBO(1, beta=2.0, warmup_epochs=2), DiagNormal)],
)
def test_stopped_after_any_epoch_it_ends_with_the_same_bits(
    objective: Objective, guide: type, compiled: bool, digits: Dataset, tmp_path: Path
) -> None:
    undisturbed = start(guide=guide)
    for _ in go_on(undisturbed, digits, objective, compiled):
        pass
    checkpoints = Checkpoints(tmp_path, seconds=0)
    stops = [1, 3] if compiled else range(EPOCHS)
    state = start(guide=guide)
    for stop in stops:
        records = go_on(state, digits, objective, compiled)
        while state.epoch < stop:
            next(records)
        checkpoints.keep(state.checkpoint())
        checkpoints.flush()
        state = start(seed=5, guide=guide)  # what is not restored would differ
        found = Checkpoints(tmp_path, seconds=0).read()
        assert found is not None
        state.restore(found)
    for _ in go_on(state, digits, objective, compiled):
        pass
    mine, theirs = state.checkpoint(), undisturbed.checkpoint()
    assert mine.about == theirs.about
    assert mine.tensors.keys() == theirs.tensors.keys()
    for name, tensor in mine.tensors.items():
        assert torch.equal(tensor, theirs.tensors[name]), name


def test_a_checkpoint_is_a_copy() -> None:
    state = start()
    state.keep_weights(1.0)
    checkpoint = state.checkpoint()
    before = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    state.history.append({"step": 1})
    for tensor in (*state.vae.state_dict().values(), *state.updates.state().values()):
        tensor.add_(1)
    assert checkpoint.about["history"] == []
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(tensor, before[name])


def test_copies_are_taken_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("vae_pyro.training.checkpoints.time.monotonic", lambda: now[0])
    for seconds, after in ((10, 0.25), (0.1, 0.1), (0, 0.0)):
        checkpoints = Checkpoints(tmp_path / str(seconds), seconds)
        assert checkpoints.are_due()
        checkpoints.keep(Checkpoint(1, {"x": torch.tensor(1)}, {}))
        if after:
            now[0] += 0.9 * after
            assert not checkpoints.are_due()
            now[0] += 0.2 * after
        assert checkpoints.are_due()


def test_they_are_removed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    checkpoints = Checkpoints(folder, seconds=0)
    for notes in (None, folder / "notes.txt"):
        for epoch in range(3):
            checkpoints.keep(Checkpoint(epoch, {"x": torch.tensor(epoch)}, {}))
            checkpoints.flush()
        if notes is not None:
            notes.write_text("mine")
        checkpoints.remove()
        assert list(tmp_path.rglob("*")) == ([] if notes is None else [folder, notes])
        checkpoints.remove()


def test_a_checkpoint_of_another_vae_is_refused() -> None:
    with pytest.raises(CheckpointError, match="belongs to another training"):
        start().restore(start(width=9).checkpoint())


def test_only_the_last_two_are_kept_and_written_when_due(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, seconds=1000)
    for epoch in range(1, 6):
        checkpoints.keep(Checkpoint(epoch, {"x": torch.tensor(epoch)}, {}))
    assert [path.stem for path in tmp_path.iterdir()] == ["epoch-000001"]
    for epoch in (6, 7, 8):
        checkpoints.keep(Checkpoint(epoch, {"x": torch.tensor(epoch)}, {}))
        checkpoints.flush()
        checkpoints.flush()
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["epoch-000007", "epoch-000008"]


DTYPES = (torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool, torch.bfloat16)


@given(
    shapes=st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.tuples(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(DTYPES)),
        max_size=4,
    ),
    about=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5) | st.none()),
    damage=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_tensors_come_back_whole_or_not_at_all(
    tmp_path: Path, shapes: dict, about: dict, damage: st.DataObject
) -> None:
    path = tmp_path / "some.safetensors"
    tensors = {
        name: torch.randint(0, 2, shape).to(dtype) for name, (shape, dtype) in shapes.items()
    }
    write_tensors(path, tensors, about)
    found, words = read_tensors(path)
    assert words == about
    # In the order given, which tables of these numbers show.
    assert list(words) == list(about)
    assert list(found) == list(tensors)
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)

    content = bytearray(path.read_bytes())
    position = damage.draw(st.integers(0, len(content) - 1))
    if damage.draw(st.booleans()):
        path.write_bytes(content[:position])
    else:
        content[position] ^= 1 << damage.draw(st.integers(0, 7))
        path.write_bytes(content)
    try:
        found, words = read_tensors(path)
    except UserError as error:
        assert str(path) in str(error)
    else:  # a bit of the header's padding, say
        assert words == about
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@given(st.binary(max_size=300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "some.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.safetensors"):
        read_tensors(path)
