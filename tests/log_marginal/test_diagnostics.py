"""Diagnostics against their definitions, an independent library, and known distributions."""

import math

import numpy as np
import pytest
import torch
from pyro.ops.stats import fit_generalized_pareto
from scipy.stats import genpareto

from vae_pyro.log_marginal.diagnostics import (
    effective_sample_size,
    high_pareto_k,
    log_mean_std_error,
    pareto_k,
    pareto_smoothed,
    tail_size,
)


def sums(log_w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return log_w.logsumexp(0), (2 * log_w).logsumexp(0)


def test_effective_sample_size_counts_equal_weights() -> None:
    log_w = torch.tensor([[0.0, 3.0], [0.0, -math.inf], [0.0, 3.0], [0.0, -math.inf]])
    torch.testing.assert_close(effective_sample_size(*sums(log_w)), torch.tensor([4.0, 2.0]))


def test_standard_error_is_the_spread_of_repeated_estimates() -> None:
    num_samples, repeats = 400, 4000
    log_w = 0.7 * torch.randn(num_samples, repeats).double()
    estimates = log_w.logsumexp(0) - math.log(num_samples)
    predicted = log_mean_std_error(effective_sample_size(*sums(log_w)), num_samples)
    # The spread of `repeats` estimates is known to 1 / sqrt(2 repeats), about 1.1 %; 4 of those,
    # and 1 % for the delta method's own second-order term at this K.
    assert estimates.std().item() == pytest.approx(predicted.mean().item(), rel=0.055)


def test_a_single_weight_has_no_standard_error() -> None:
    assert log_mean_std_error(torch.ones(2), 1).isnan().all()


def shrunk(k: float, size: int) -> float:
    return (size * k + 10 * 0.5) / (size + 10)


@pytest.mark.parametrize("size", [5, 20, 67, 213])
def test_pareto_k_is_pyros_fit_image_by_image(size: int) -> None:
    log_w = 1.5 * torch.randn(size + 1, 6).double()
    ours = pareto_k(log_w)
    for image in range(6):
        weights = log_w[:, image].exp().sort().values
        k, _ = fit_generalized_pareto(weights[1:] - weights[0])
        assert ours[image].item() == pytest.approx(k, abs=1e-6)


@pytest.mark.parametrize("k", [-0.3, 0.2, 0.7, 1.2])
def test_pareto_k_recovers_the_shape_of_a_pareto_tail(k: float) -> None:
    size, images = 1000, 100
    rng = np.random.default_rng(0)
    excess = genpareto(k).rvs((size, images), random_state=rng)
    log_w = torch.from_numpy(np.log(np.vstack([np.ones(images), 1 + excess])))
    estimates = pareto_k(log_w)
    std_error = estimates.std().item() / math.sqrt(images)
    # The fit's own bias is of order 1 / size; the shrinkage is undone.
    assert estimates.mean().item() == pytest.approx(shrunk(k, size), abs=4 * std_error + 3 / size)


def test_pareto_k_does_not_move_with_the_scale_or_order_of_the_weights() -> None:
    log_w = torch.randn(51, 4).double()
    torch.testing.assert_close(pareto_k(log_w - 5000), pareto_k(log_w))
    torch.testing.assert_close(pareto_k(log_w[torch.randperm(51)]), pareto_k(log_w))


def test_equal_weights_have_no_tail() -> None:
    log_w = torch.cat([torch.zeros(31, 1), torch.randn(31, 1)], 1).double()
    k = pareto_k(log_w)
    assert k[0] == -math.inf
    assert k[1].isfinite()


def test_ties_at_the_threshold_stay_finite() -> None:
    log_w = torch.zeros(31, 1).double()
    log_w[:3] = torch.tensor([[1.0], [2.0], [3.0]])
    assert pareto_k(log_w).isfinite().all()


def test_a_tail_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="tail of 5"):
        pareto_k(torch.zeros(5, 2))


@pytest.mark.parametrize(("num_samples", "size"), [(25, 5), (500, 68), (5000, 213)])
def test_tail_size(num_samples: int, size: int) -> None:
    assert tail_size(num_samples) == size


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_a_pareto_tail_is_smoothed_to_its_own_quantiles(shape: float) -> None:
    """Weights at the quantiles of a Pareto distribution are left nearly where they are."""
    size = 400
    rank = (torch.arange(1, size + 1).double() - 0.5) / size
    excess = ((1 - rank) ** -shape - 1) / shape
    weights = torch.cat([torch.ones(1).double(), 1 + excess])
    smoothed = pareto_smoothed(weights.log()[:, None])[:, 0]
    assert (smoothed.diff() >= 0).all()
    assert smoothed[-1] <= weights[-1].log() + 1e-12
    # The fit is off by its pull towards 0.5, most at the end of the tail.
    middle = slice(size // 10, 9 * size // 10)
    torch.testing.assert_close(smoothed[middle], weights[1:].log()[middle], atol=0.02, rtol=0)


def test_one_extreme_weight_is_smoothed_away() -> None:
    log_w = torch.linspace(0, 1, 101).double()[:, None]
    log_w[-1] = 10.0
    smoothed = pareto_smoothed(log_w)
    assert smoothed[-1] < 9.0
    assert smoothed.logsumexp(0) < log_w.logsumexp(0)


def test_equal_weights_are_not_smoothed() -> None:
    log_w = torch.full((21, 2), 3.0).double()
    torch.testing.assert_close(pareto_smoothed(log_w), log_w[1:])


def test_the_threshold_of_k_hat_rises_with_the_number_of_weights_up_to_its_limit() -> None:
    assert [high_pareto_k(size) for size in (10, 100, 1000, 2200, 10**6)] == pytest.approx(
        [0.0, 0.5, 2 / 3, 0.7, 0.7], abs=1e-3
    )
