"""Estimators that share nothing but the decoder agree, whatever p(x | z) is."""

import pytest
import torch

from tests.likelihoods.test_likelihoods import build, every_likelihood
from vae_pyro.errors import DataError
from vae_pyro.guide import DiagNormal
from vae_pyro.log_marginal import (
    AIS,
    ELBOBound,
    Estimator,
    Exact,
    ImportanceSampling,
    LocalELBO,
    Quadrature,
    ReverseAIS,
    bidirectional,
)
from vae_pyro.networks import MLP, Linear
from vae_pyro.vae import VAE, build_vae


@pytest.fixture
def vae(name: str) -> VAE:
    vae = build_vae(2, (1, 3, 4), MLP((16,), "tanh"), build(name), DiagNormal, seed=None).eval()
    with torch.no_grad():
        vae.guide.encoder[-1].bias[2:] = 2.0  # wider than the prior: weights of finite variance
    return vae


@pytest.mark.slow
@every_likelihood
def test_importance_sampling_and_ais_agree_with_quadrature(name: str, vae: VAE) -> None:
    images = torch.randint(0, 5, (100, 1, 3, 4), dtype=torch.uint8)
    x = vae.model.likelihood.prepare(images, torch.Generator().manual_seed(0))
    truth = Quadrature()(vae, x)
    assert truth.std_error.max() < 1e-2
    for estimator in (ImportanceSampling(10_000, prior_share=0.2), AIS(60, 32, 4)):
        estimate = estimator(vae, x)
        z_scores = (estimate.value - truth.value) / estimate.std_error
        assert z_scores.abs().max() < 5
        assert 0.68 < z_scores.std() < 1.4  # 1 - 4.5 standard errors: 1 / sqrt(200) of 100 scores
    best = LocalELBO(300)(vae, x)
    assert ((best.value - truth.value) / best.std_error).max() < 4.5


@pytest.mark.long
@pytest.mark.slow
@every_likelihood
def test_simulated_images_can_be_weighed(name: str, vae: VAE) -> None:
    lower, upper = bidirectional(AIS(40, 16, 4), vae, 200, seed=0)
    gap = upper.estimate.value - lower.estimate.value
    assert gap.isfinite().all()
    assert gap.mean() > -4.5 * gap.std() / 200**0.5
    assert gap.mean() < 0.5


@pytest.mark.parametrize(
    "estimator", [ELBOBound(5), AIS(2, 2, 1), ReverseAIS(2, 2, 1), LocalELBO(1, 1, 2), Quadrature()]
)
def test_x_outside_the_support_is_refused_by_all(estimator: Estimator) -> None:
    grey = torch.full((2, 1, 3, 4), 0.5)
    binary = build_vae(2, (1, 3, 4), MLP((4,)), build("bernoulli"), DiagNormal, seed=None).eval()
    with pytest.raises(DataError):
        estimator(binary, grey)


def test_x_outside_the_support_is_refused_by_the_closed_form() -> None:
    linear = build_vae(2, (1, 3, 4), Linear(), build("normal"), DiagNormal, seed=None).eval()
    with pytest.raises(DataError):
        Exact()(linear, torch.full((2, 1, 3, 4), torch.nan))


def test_chains_and_particles_in_blocks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = build_vae(2, (1, 3, 4), MLP((4,)), build("bernoulli"), DiagNormal, seed=None).eval()
    x = torch.bernoulli(torch.full((1, 1, 3, 4), 0.5))
    estimates = []
    for rows in (1000, 7):
        for module in ("hamiltonian", "local"):
            monkeypatch.setattr(
                f"vae_pyro.log_marginal.{module}.rows_per_chunk", lambda *_, rows=rows: rows
            )
        torch.manual_seed(0)
        estimates.append((AIS(5, 10, 2)(vae, x), LocalELBO(20, 10, 500)(vae, x)))
    (ais, local), (ais_in_blocks, local_in_blocks) = estimates
    torch.testing.assert_close(ais.value, ais_in_blocks.value, atol=1e-4, rtol=0)
    difference = local.value - local_in_blocks.value  # its final samples are others
    assert difference.abs() < 4.5 * torch.hypot(local.std_error, local_in_blocks.std_error)
