"""The closed form against scipy's multivariate normal, and where there is none."""

import pytest
import torch

from tests.linear_gaussian import LinearGaussian
from vae_pyro.errors import EstimatorError
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, NormalHeteroscedastic, NormalLearnedScale
from vae_pyro.likelihoods.base import Likelihood
from vae_pyro.log_marginal import Bound, Exact, ImportanceSampling
from vae_pyro.networks import MLP, Linear, Network
from vae_pyro.vae import build_vae


def test_exact_is_scipys_multivariate_normal() -> None:
    truth = LinearGaussian()
    x = truth.sample(500)
    estimate = Exact()(truth.vae, x)
    assert estimate.bound is Bound.EXACT
    assert estimate.value.dtype == torch.float64
    torch.testing.assert_close(estimate.value, truth.log_marginal(x), atol=1e-5, rtol=0)
    assert estimate.std_error.eq(0).all()
    assert estimate.mean_std_error() == 0
    assert estimate.image_std_error() > 0


def test_exact_knows_the_learned_scale() -> None:
    vae = build_vae(2, (1, 2, 3), Linear(), NormalLearnedScale(None, 0.4), DiagNormal, seed=None)
    with torch.no_grad():
        vae.guide.encoder[-1].bias[2:] = 2.0  # wider than the prior: weights of finite variance
    x = torch.randn(200, 1, 2, 3)
    exact = Exact()(vae, x)
    sampled = ImportanceSampling(4000)(vae, x)
    trusted = sampled.diagnostics["pareto_k"] < 0.5
    z_scores = ((sampled.value - exact.value) / sampled.std_error)[trusted]
    assert len(z_scores) > 100
    assert z_scores.abs().max() < 4.5


@pytest.mark.parametrize(
    ("network", "likelihood", "why"),
    [
        (MLP((4,)), NormalLearnedScale(None), "a nonlinear decoder and NormalLearnedScale"),
        (Linear(), Bernoulli(17), "a linear decoder and Bernoulli"),
        (Linear(), NormalHeteroscedastic(None), "a linear decoder and NormalHeteroscedastic"),
    ],
)
def test_exact_refuses_other_models(network: Network, likelihood: Likelihood, why: str) -> None:
    vae = build_vae(2, (1, 2, 3), network, likelihood, DiagNormal, seed=None)
    with pytest.raises(EstimatorError, match=f"{why}: use quadrature"):
        Exact()(vae, torch.zeros(1, 1, 2, 3))
