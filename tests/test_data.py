"""Splits, binarisation, batches; and data files that are missing or damaged."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MNIST_ROOT, needs_mnist
from vae_pyro.data import MNIST, Dataset, Digits, batches, binarise
from vae_pyro.errors import DataError


def rows(levels: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in levels}


def test_digits_are_all_there_once_and_stratified(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    splits = (digits.train, digits.valid, digits.test)
    assert [len(split) for split in splits] == [1197, 300, 300]
    together = torch.cat([split.levels for split in splits])
    everything = torch.from_numpy(load_digits().images.astype("uint8"))
    assert sorted(rows(together)) == sorted(rows(everything))
    assert digits.image_shape == (1, 8, 8)
    assert together.max() == digits.max_level == 16
    for split in splits:
        counts = torch.bincount(split.labels, minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.01


def test_loading_twice_gives_the_same_data(digits: Dataset) -> None:
    assert Digits().load().checksum == digits.checksum
    assert Digits(binarisation="static").load().checksum != digits.checksum


def test_binarisation_has_exactly_the_probability_of_its_level() -> None:
    """Each level's share against value / max; a chi-square over all levels at once."""
    for max_level in (16, 255):
        levels = torch.arange(max_level + 1, dtype=torch.uint8).repeat(40_000, 1)
        ones = binarise(levels, max_level, torch.Generator().manual_seed(1)).double().mean(0)
        p = torch.arange(max_level + 1).double() / max_level
        assert ones[0] == 0
        assert ones[-1] == 1
        inner = slice(1, -1)
        z = (ones - p)[inner] / (p * (1 - p) / 40_000).sqrt()[inner]
        freedom = max_level - 1
        assert abs(z.square().sum() - freedom) < 4.5 * math.sqrt(2 * freedom)
        assert z.abs().max() < 4.5
        assert abs(z.sum() / math.sqrt(freedom)) < 4.5  # no drift of all levels together


def test_dynamic_binarisation_draws_anew_and_static_does_not(digits: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (binarise(digits.train.levels, 16, generator) for _ in range(2))
    assert not torch.equal(first, second)
    fixed = Digits(binarisation="static").load()
    assert set(fixed.train.levels.unique().tolist()) == {0, 16}
    first, second = (binarise(fixed.train.levels, 16, generator) for _ in range(2))
    assert torch.equal(first, second)
    other = Digits(binarisation="static", binarisation_seed=1).load()
    assert not torch.equal(other.train.levels, fixed.train.levels)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 100))
def test_an_epoch_holds_every_image_once(num_images: int, batch_size: int, seed: int) -> None:
    levels = torch.arange(num_images).reshape(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(levels, lambda part: part, batch_size, generator))
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(num_images))


@needs_mnist
def test_mnist_is_read_whole_and_unchanged() -> None:
    data = MNIST(root=str(MNIST_ROOT)).load()
    assert [len(split) for split in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    assert data.image_shape == (1, 28, 28)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]  # the first five of the original file
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = torch.cat([data.train.levels, data.valid.levels]).double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)  # the figures everyone quotes
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)


@pytest.fixture
def mnist_copy(tmp_path: Path) -> Path:
    shutil.copytree(
        MNIST_ROOT / "MNIST" / "raw",
        tmp_path / "MNIST" / "raw",
        ignore=shutil.ignore_patterns("*.gz"),
    )
    return tmp_path


@needs_mnist
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named(mnist_copy: Path, damage: str) -> None:
    path = mnist_copy / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[1234] ^= 1
    path.write_bytes({"truncate": content[:-7], "flip": content, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is truncated or damaged.*delete"):
        MNIST(root=str(mnist_copy)).load()


@needs_mnist
def test_a_compressed_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(MNIST_ROOT / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*ubyte"))
    assert len(MNIST(root=str(tmp_path)).load().test) == 10_000


def test_missing_files_are_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    # A port where nobody listens: the download really fails, also where there is a network.
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError) as caught:
        MNIST(root=str(tmp_path)).load()
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "t10k-labels-idx1-ubyte" in message
    assert "data=digits" in message
