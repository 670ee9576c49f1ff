"""A normal is matched to gradients: exactly where they are those of a normal."""

import math

import pytest
import torch
from torch import Tensor

from vae_pyro.log_marginal.match import match

CONDITION = 100.0  # of the target's covariance


def correlated(batch: int, dims: int) -> tuple[Tensor, Tensor]:
    """Means and covariances of normals, whose axes lie in random directions."""
    axes = torch.linalg.qr(torch.randn(batch, dims, dims, dtype=torch.float64)).Q
    half = math.log10(CONDITION) / 2
    variance = torch.logspace(-half, half, dims, dtype=torch.float64)
    return torch.randn(batch, dims, dtype=torch.float64), (axes * variance) @ axes.mT


def score(z: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    return -torch.linalg.solve(covariance, (z - loc[:, None]).mT).mT


def samples(loc: Tensor, covariance: Tensor, number: int) -> Tensor:
    noise = torch.randn(len(loc), number, loc.shape[1], dtype=loc.dtype)
    return loc[:, None] + noise @ torch.linalg.cholesky(covariance).mT


@pytest.mark.parametrize("distance", [0.0, 20.0])
@pytest.mark.parametrize("dims", [1, 2, 10, 30])
def test_one_step_with_a_large_rate_finds_a_correlated_normal(dims: int, distance: float) -> None:
    loc, covariance = correlated(20, dims)
    # So many of its own standard deviations away, in a random direction.
    direction = torch.nn.functional.normalize(torch.randn(20, dims, 1, dtype=torch.float64), dim=1)
    start = loc + distance * (torch.linalg.cholesky(covariance) @ direction)[..., 0]
    width = torch.eye(dims, dtype=torch.float64).expand(20, -1, -1)
    z = samples(start, width, 2 * dims + 2)
    # What is left of the start is of the order of 1 / rate, times the condition of the two sums
    # over samples, each at most that of the samples times 1 + distance^2, times the target's.
    condition = torch.linalg.cond(z - z.mean(1, keepdim=True)).square().max().item()
    worst = CONDITION * condition * (1 + distance**2)
    tolerance = 1e-4
    rate = 10 * worst / tolerance
    assert rate < 1e-3 / torch.finfo(torch.float64).eps
    new_loc, new = match(start, width, z, score(z, loc, covariance), rate)
    # In the target's own metric the covariance is I and the mean 0.
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve(factor, torch.linalg.solve(factor, new).mT)
    assert (whitened - torch.eye(dims)).flatten(1).norm(dim=1).max() < tolerance
    off = torch.linalg.solve(factor, (new_loc - loc)[..., None])[..., 0]
    assert off.norm(dim=1).max() < tolerance


@pytest.mark.parametrize("rate", [0.1, 3.0, 1000.0])
def test_the_target_itself_stays_where_it_is(rate: float) -> None:
    loc, covariance = correlated(10, 4)
    z = samples(loc, covariance, 3)  # fewer than dimensions
    new_loc, new = match(loc, covariance, z, score(z, loc, covariance), rate)
    torch.testing.assert_close(new_loc, loc)
    torch.testing.assert_close(new, covariance)


def test_moderate_rates_lead_there_in_many_steps() -> None:
    loc, covariance = correlated(5, 3)
    now, width = torch.zeros_like(loc) + 5, torch.eye(3, dtype=torch.float64).expand(5, -1, -1)
    for _ in range(200):
        z = samples(now, width, 8)
        now, width = match(now, width, z, score(z, loc, covariance), 10.0)
    torch.testing.assert_close(now, loc, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(width, covariance, rtol=1e-4, atol=1e-4)


def test_the_covariance_solves_the_equation_of_the_source() -> None:
    """C U C + C = V with U and V written out; Cai et al. (2024), algorithm 1."""
    loc, covariance = correlated(1, 3)
    z = samples(loc, covariance, 5)
    gradient = torch.randn_like(z)  # of no normal
    rate = 2.5
    _, new = match(loc, covariance, z, gradient, rate)
    mean_z, mean_g = z[0].mean(0), gradient[0].mean(0)
    shrink = rate / (1 + rate)
    shift = loc[0] - mean_z
    u = rate * torch.cov(gradient[0].T, correction=0) + shrink * torch.outer(mean_g, mean_g)
    v = rate * torch.cov(z[0].T, correction=0) + shrink * torch.outer(shift, shift) + covariance[0]
    torch.testing.assert_close(new[0] @ u @ new[0] + new[0], v)
    assert torch.linalg.eigvalsh(new[0]).min() > 0
