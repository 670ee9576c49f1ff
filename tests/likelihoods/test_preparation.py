"""Binarisation has the probability of its level; dequantisation is uniform over its cell."""

import math

import pytest
import torch
from scipy import stats

from vae_pyro.likelihoods.preparation import _below, binarise, dequantise


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


def test_dequantisation_is_uniform_over_each_cell() -> None:
    for num_levels in (17, 256):
        levels = torch.arange(num_levels, dtype=torch.uint8).repeat(4_000, 1)
        x = dequantise(levels, num_levels, torch.Generator().manual_seed(1)).double()
        u = x * num_levels - levels
        assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-4
        assert stats.kstest(u[:, -1].numpy(), "uniform").pvalue > 1e-4
        assert (x > 0).all()
        assert (x < 1).all()
