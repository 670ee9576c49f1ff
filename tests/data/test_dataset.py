"""Splits, binarisation, dequantisation, batches."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vae_pyro.data import Dataset, Digits, batches, binarise, dequantise
from vae_pyro.data.dataset import _below
from vae_pyro.errors import DataError


def rows(levels: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in levels}


def test_digits_are_all_there_once_and_stratified(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    splits = (digits.train, digits.valid, digits.test)
    assert [len(split) for split in splits] == [1197, 300, 300]
    together = torch.cat([split.images for split in splits])
    everything = torch.from_numpy(load_digits().images.astype("uint8"))
    assert sorted(rows(together)) == sorted(rows(everything))
    assert digits.image_shape == (1, 8, 8)
    assert together.max() == digits.num_levels - 1 == 16
    for split in splits:
        counts = torch.bincount(split.labels, minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.01


def test_loading_twice_gives_the_same_data(digits: Dataset) -> None:
    assert Digits().load().checksum == digits.checksum
    assert digits.binarised_once().checksum != digits.checksum


def test_binarisation_has_exactly_the_probability_of_its_level() -> None:
    """Each level's share against value / max; a chi-square over all levels at once."""
    for num_levels in (17, 256):
        levels = torch.arange(num_levels, dtype=torch.uint8).repeat(40_000, 1)
        ones = binarise(levels, num_levels, torch.Generator().manual_seed(1)).double().mean(0)
        p = torch.arange(num_levels).double() / (num_levels - 1)
        assert ones[0] == 0
        assert ones[-1] == 1
        inner = slice(1, -1)
        z = (ones - p)[inner] / (p * (1 - p) / 40_000).sqrt()[inner]
        freedom = num_levels - 2
        assert abs(z.square().sum() - freedom) < 4.5 * math.sqrt(2 * freedom)
        assert z.abs().max() < 4.5
        assert abs(z.sum() / math.sqrt(freedom)) < 4.5  # no drift of all levels together


@pytest.mark.parametrize("num_levels", [2, 4, 17, 57, 129, 256])
def test_binarisation_favours_no_draw(num_levels: int) -> None:
    """What is compared with the levels: 0 .. L - 2, each equally often and all of them."""
    high = num_levels - 1
    like = torch.empty(400_003, dtype=torch.uint8)
    draws = _below(high, like, torch.Generator().manual_seed(0))
    counts = torch.bincount(draws.long(), minlength=high)
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts).pvalue > 1e-5


def test_dynamic_binarisation_draws_anew_and_static_does_not(digits: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (binarise(digits.train.images, 17, generator) for _ in range(2))
    assert not torch.equal(first, second)
    fixed = digits.binarised_once()
    assert set(fixed.train.images.unique().tolist()) == {0, 16}
    first, second = (binarise(fixed.train.images, 17, generator) for _ in range(2))
    assert torch.equal(first, second)
    other = Digits(preparation_seed=1).load().binarised_once()
    assert not torch.equal(other.train.images, fixed.train.images)


def test_dequantisation_is_uniform_over_each_cell() -> None:
    for num_levels in (17, 256):
        levels = torch.arange(num_levels, dtype=torch.uint8).repeat(4_000, 1)
        x = dequantise(levels, num_levels, torch.Generator().manual_seed(1)).double()
        u = x * num_levels - levels
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
        assert stats.kstest(u[:, -1].numpy(), "uniform").pvalue > 1e-4
        assert (x > 0).all()
        assert (x < 1).all()


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 100))
def test_an_epoch_holds_every_image_once(num_images: int, batch_size: int, seed: int) -> None:
    levels = torch.arange(num_images).reshape(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(levels, lambda part: part, batch_size, generator))
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(num_images))


@given(st.sets(st.integers(0, 9), min_size=1))
def test_only_the_classes_asked_for_are_kept(classes: set[int]) -> None:
    whole, part = Digits().load(), Digits(classes=tuple(sorted(classes))).load()
    for name in ("train", "valid", "test"):
        before, after = getattr(whole, name), getattr(part, name)
        assert set(after.labels.tolist()) == classes
        kept = [label in classes for label in before.labels.tolist()]
        assert torch.equal(after.images, before.images[kept])
        assert torch.equal(after.labels, before.labels[kept])
    assert (part.checksum == whole.checksum) == (len(classes) == 10)


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no image has a label of \[12\].*choose among these"):
        Digits(classes=(12,)).load()
