"""The model is an ordinary Pyro program: Predictive, poutine, SVI and NUTS take it as it is."""

import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from scipy import stats

from tests.likelihoods.test_likelihoods import build, every_likelihood
from tests.linear_gaussian import LinearGaussian
from vae_pyro.errors import DataError
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import log_weights
from vae_pyro.networks import MLP, Conv, Linear, Network
from vae_pyro.vae import VAE, build_vae


@pytest.fixture
def vae() -> VAE:
    return build_vae(3, (1, 4, 5), MLP((16,)), Bernoulli(17), DiagNormal)


def test_trace_has_one_z_and_one_x_per_image(vae: VAE) -> None:
    x = torch.bernoulli(torch.full((7, 1, 4, 5), 0.5))
    trace = poutine.trace(vae.model).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (7, 3)
    assert trace.nodes["z"]["log_prob"].shape == (7,)
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["log_prob"].shape == (7,)


def test_log_density_is_scipys(vae: VAE) -> None:
    x = torch.bernoulli(torch.full((5, 1, 4, 5), 0.5))
    z = torch.randn(5, 3)
    trace = poutine.trace(poutine.condition(vae.model, {"z": z})).get_trace(x)
    p = torch.sigmoid(vae.model.decoder(z)).detach().double().squeeze(1).numpy()
    expected = stats.norm.logpdf(z.double().numpy()).sum() + stats.bernoulli.logpmf(x, p).sum()
    assert trace.log_prob_sum().item() == pytest.approx(expected, rel=1e-5)


def test_predictive_draws_from_the_prior_and_from_the_posterior(vae: VAE) -> None:
    drawn = Predictive(vae.model, num_samples=11)(num_images=6)
    assert drawn["x"].shape == (11, 6, 1, 4, 5)
    assert set(drawn["x"].unique().tolist()) == {0.0, 1.0}
    x = drawn["x"][0]
    parallel = Predictive(vae.model, guide=vae.guide, num_samples=9, parallel=True)(x)
    assert parallel["z"].squeeze().shape == (9, 6, 3)


def test_prior_draws_have_the_priors_moments() -> None:
    truth = LinearGaussian()
    x = truth.vae.model(num_images=20_000).detach().flatten(1)
    covariance = truth.weight @ truth.weight.T + 0.49 * torch.eye(6)
    mean_error = (covariance.diagonal() / 20_000).sqrt()
    assert ((x.mean(0) - truth.bias).abs() < 4.5 * mean_error).all()
    # Var(sample covariance) = (C_ii C_jj + C_ij^2) / n for a normal distribution.
    diagonal = covariance.diagonal()
    spread = ((diagonal[:, None] * diagonal + covariance**2) / 20_000).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < 4.5 * spread).all()


@pytest.mark.slow
def test_nuts_finds_the_closed_form_posterior() -> None:
    truth = LinearGaussian()
    x = truth.sample(3)
    mcmc = MCMC(NUTS(truth.vae.model), num_samples=1500, warmup_steps=300, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"].double()
    effective = mcmc.diagnostics()["z"]["n_eff"]
    scale = truth.covariance.diagonal().sqrt()
    std_error = scale / effective.sqrt()
    assert ((z.mean(0) - truth.posterior_mean(x)).abs() < 4.5 * std_error).all()
    # A spread's standard error is 1 / sqrt(2 n), and squares may have half the effective draws.
    assert ((z.std(0) / scale - 1).abs() < 4.5 / effective.clamp(max=1500).sqrt()).all()


def test_plain_svi_trains_it(vae: VAE) -> None:
    """A user who knows Pyro and not this package writes this."""
    with pyro.get_param_store().scope():
        before = {name: value.clone() for name, value in vae.named_parameters()}
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        loss = svi.step(torch.bernoulli(torch.full((8, 1, 4, 5), 0.5)))
        assert math.isfinite(loss)
        assert len(pyro.get_param_store()) == len(before)
        for name, value in vae.named_parameters():
            assert not torch.equal(value, before[name]), f"{name} did not move"


def test_grey_pixels_are_refused_with_the_way_out(vae: VAE) -> None:
    with pytest.raises(DataError, match=r"20 of 40 pixel values.*Binarise"):
        vae.model(torch.tensor([0.5, 1.0]).repeat(20).reshape(2, 1, 4, 5))


@every_likelihood
@pytest.mark.parametrize("network", [Linear(), MLP((8,)), Conv((3, 4))])
def test_every_likelihood_tells_the_story_in_colour(name: str, network: Network) -> None:
    """Drawn images have their shape and support, and every axis of the particles is kept."""
    vae = build_vae(2, (3, 5, 4), network, build(name, 7), DiagNormal)
    drawn = vae.model(num_images=6)
    assert drawn.shape == (6, 3, 5, 4)
    vae.model.likelihood.check(drawn)
    log_w = log_weights(vae, drawn.detach(), 9)
    assert log_w.log_likelihood.shape == (9, 6)
    trace = poutine.trace(vae.model).get_trace(drawn.detach())
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    pixels = vae.model.decode(z).base_dist.log_prob(drawn)
    assert pixels.shape == (6, 3, 5, 4)
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], pixels.sum((1, 2, 3)))
