"""Pixel distributions against scipy and quadrature, in the centre and at the edges."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor

from vae_pyro.likelihoods.distributions import (
    PixelBeta,
    PixelCategorical,
    PixelContinuousBernoulli,
    PixelDistribution,
    PixelLevels,
    PixelLogisticMixture,
)

ETAS = [-1e4, -50.0, -16.7, -3.0, -0.2, -0.1999, -1e-3, 0.0, 1e-9, 0.05, 0.2001, 1.0, 20.0, 50.0]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("eta", ETAS)
def test_continuous_bernoulli_is_a_truncated_exponential(eta: float) -> None:
    """exp(eta x) on [0, 1] is scipy's truncexpon, mirrored for positive eta."""
    x = np.linspace(0, 1, 41)
    if abs(eta) < 1e-6:
        expected = np.zeros_like(x) + eta * (x - 0.5)
    else:
        rate = abs(eta)
        distance = x if eta < 0 else 1 - x
        expected = stats.truncexpon.logpdf(distance, rate, scale=1 / rate)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 2e-6)):
        p = PixelContinuousBernoulli(torch.tensor(eta, dtype=dtype))
        found = p.log_prob(torch.from_numpy(x).to(dtype)).double().numpy()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("eta", ETAS)
def test_continuous_bernoulli_moments_are_integrals(eta: float) -> None:
    p = PixelContinuousBernoulli(double(eta))
    # In units of the density's width, so that the quadrature sees it wherever it stands.
    width = min(1.0, 40 / abs(eta)) if eta else 1.0
    x = torch.linspace(0, width, 200_001, dtype=torch.float64)
    x = 1 - x if eta > 0 else x
    density = p.log_prob(x).exp()
    mass, mean, square = (
        integrate.simpson((density * x**k).numpy(), dx=width / 200_000) for k in range(3)
    )
    assert mass == pytest.approx(1, abs=1e-8)
    assert p.mean.item() == pytest.approx(mean, abs=1e-8)
    assert p.variance.item() == pytest.approx(square - mean**2, abs=1e-8)


def test_continuous_bernoulli_agrees_with_torch_where_torch_is_exact() -> None:
    eta, x = torch.linspace(-9, 9, 37).double(), torch.rand(200, 37).double()
    expected = torch.distributions.ContinuousBernoulli(logits=eta).log_prob(x)
    # PyTorch's own Taylor series about 1/2 is the less exact of the two.
    torch.testing.assert_close(
        PixelContinuousBernoulli(eta).log_prob(x), expected, atol=2e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("a", "b"), [(1e-3, 1e-3), (0.5, 2.0), (1.0, 1.0), (30.0, 0.7), (1e5, 1e5), (1e6, 1e-3)]
)
def test_beta_is_scipys_even_in_float32(a: float, b: float) -> None:
    x = torch.tensor([2**-30, 0.01, 0.3, 0.5, 0.7, 0.99, 1 - 2**-24])
    p = PixelBeta(torch.tensor(a), torch.tensor(b))
    # In float32 as in the VAE: the parameters that scipy sees are the rounded ones.
    expected = stats.beta.logpdf(
        x.double().numpy(), p.concentration1.double().item(), p.concentration0.double().item()
    )
    np.testing.assert_allclose(p.log_prob(x).double().numpy(), expected, rtol=3e-7, atol=1e-6)
    exact = stats.beta(a, b)
    assert p.mean.item() == pytest.approx(exact.mean(), rel=1e-6)
    assert p.variance.item() == pytest.approx(exact.var(), rel=1e-5)


def test_no_draw_of_a_continuous_bernoulli_reaches_the_ends() -> None:
    """Where 0 and 1 are not of its support, though float32 would round to them."""
    draws = PixelContinuousBernoulli(torch.tensor([-1e4, -60.0, 60.0, 1e4])).sample((200_000,))
    assert draws.min() > 0
    assert draws.max() < 1


def levels(num_levels: int) -> Tensor:
    return torch.arange(num_levels, dtype=torch.float64) / (num_levels - 1)


def mixture(num_levels: int, seed: int, spread: float = 1.0) -> PixelLogisticMixture:
    generator = torch.Generator().manual_seed(seed)
    logits, loc, raw = (
        spread * torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return PixelLogisticMixture(num_levels, logits, loc, raw.exp() * 0.2 + 1e-3)


@given(st.integers(2, 40), st.integers(0, 1000), st.sampled_from([0.1, 1.0, 5.0]))
def test_a_mixtures_levels_sum_to_one(num_levels: int, seed: int, spread: float) -> None:
    p = mixture(num_levels, seed, spread)
    total = p.log_prob(levels(num_levels)[:, None]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones(3, dtype=torch.float64))


def test_a_mixtures_mass_is_a_difference_of_scipys_distribution_functions() -> None:
    p = mixture(17, 0)
    x = levels(17)
    upper, lower = x + 1 / 32, x - 1 / 32
    upper[-1], lower[0] = math.inf, -math.inf
    logistic = stats.logistic(p.loc.numpy(), p.scale.numpy())
    mass = logistic.cdf(upper[:, None, None]) - logistic.cdf(lower[:, None, None])
    expected = np.log((mass * p.logits.softmax(-1).numpy()).sum(-1))
    np.testing.assert_allclose(p.log_prob(x[:, None]).numpy(), expected, rtol=1e-9)


def test_a_mixtures_far_tail_keeps_its_digits() -> None:
    """Fifty scales away, where a difference of two sigmoids in float32 is 0."""
    p = PixelLogisticMixture(256, torch.zeros(1), torch.tensor([0.1]), torch.tensor([0.01]))
    x = torch.tensor(153 / 255)
    exact = stats.logistic.logcdf((0.1 - (153 - 0.5) / 255) / 0.01)
    exact += math.log1p(-math.exp(-1 / 2.55))
    assert p.log_prob(x).item() == pytest.approx(exact, rel=1e-6)


def test_categorical_levels_are_a_softmax() -> None:
    logits = torch.randn(3, 6, dtype=torch.float64)
    log_p = PixelCategorical(logits).log_prob(levels(6)[:, None])
    torch.testing.assert_close(log_p, logits.log_softmax(-1).T)


def moments(p: PixelDistribution) -> tuple[Tensor, Tensor]:
    """Mean and variance, of levels by adding up all of them."""
    if not isinstance(p, PixelLevels):
        return p.mean, p.variance
    x = levels(p.num_levels)[:, None]
    mass = p.log_prob(x).exp()
    mean = (mass * x).sum(0)
    return mean, (mass * (x - mean).square()).sum(0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: PixelContinuousBernoulli(double(-40, -2, 0, 1e-5, 3, 90)),
        lambda: PixelBeta(double(0.3, 2, 50), double(0.3, 5, 900)),
        lambda: PixelCategorical(torch.randn(4, 9, dtype=torch.float64)),
        lambda: mixture(17, 1),
        lambda: mixture(256, 2, 0.3),
    ],
)
def test_draws_have_the_moments_and_stay_where_they_belong(
    build: Callable[[], PixelDistribution],
) -> None:
    p, n = build(), 40_000
    draws = p.sample((n,))
    assert draws.shape == (n, *p.batch_shape)
    assert ((draws >= 0) & (draws <= 1)).all()
    assert p.log_prob(draws).isfinite().all()
    mean, variance = moments(p)
    torch.testing.assert_close(p.mean, mean)
    assert ((draws.mean(0) - mean).abs() < 4.5 * variance.sqrt() / n**0.5).all()
    squares = (draws - mean).square()
    assert ((squares.mean(0) - variance).abs() < 4.5 * squares.std(0) / n**0.5).all()


@pytest.mark.parametrize(
    "p",
    [
        PixelContinuousBernoulli(torch.randn(3)),
        PixelBeta(torch.rand(3) + 0.1, torch.rand(3) + 0.1),
        PixelCategorical(torch.randn(3, 5)),
        mixture(5, 3),
    ],
)
def test_expanding_repeats_the_same_distribution(p: PixelDistribution) -> None:
    wide = p.expand(torch.Size((2, 4, 3)))
    x = p.sample()
    assert type(wide) is type(p)
    assert wide.batch_shape == (2, 4, 3)
    assert wide.sample((6,)).shape == (6, 2, 4, 3)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x).expand(2, 4, 3))
    torch.testing.assert_close(wide.mean, p.mean.expand(2, 4, 3))
