"""Estimators against exact answers: closed form, quadrature, enumeration."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch

from tests.linear_gaussian import LinearGaussian
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import (
    Bound,
    ELBOBound,
    ImportanceSampling,
    IWAEBound,
    PriorSampling,
    elbo_parts,
)
from vae_pyro.log_marginal.importance import read_together
from vae_pyro.networks import MLP
from vae_pyro.vae import VAE, build_vae


def log_marginal_by_quadrature(vae: VAE, x: torch.Tensor, points: int = 401) -> torch.Tensor:
    """log of the integral of p(x | z) p(z) over a grid on [-6, 6]^2, by the trapezoidal rule."""
    axis = torch.linspace(-6, 6, points, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    log_area = 2 * math.log((axis[1] - axis[0]).item())
    terms = []
    with torch.no_grad():
        for part, prior in zip(z.float().split(5000), log_prior.split(5000), strict=True):
            log_x = vae.model.decode(part[:, None]).log_prob(x)  # (points, images)
            terms.append((log_x.double() + prior[:, None]).logsumexp(0))
    return torch.stack(terms).logsumexp(0) + log_area


def test_importance_sampling_is_exact_within_its_own_honest_error_bars() -> None:
    truth = LinearGaussian(shift=0.1, stretch=1.3)
    x = truth.sample(1000)
    estimate = ImportanceSampling(2000)(truth.vae, x)
    z_scores = (estimate.value - truth.log_marginal(x)) / estimate.std_error
    assert estimate.bound is Bound.LOWER
    assert z_scores.abs().max() < 4.5
    assert abs(z_scores.mean()) < 4 / math.sqrt(1000)
    assert 0.9 < z_scores.std() < 1.1  # 1 +- 4.5 / sqrt(2 * 1000)
    assert (estimate.diagnostics["pareto_k"] < 0.7).double().mean() > 0.99


def test_perfect_guide_has_no_variance() -> None:
    truth = LinearGaussian()
    x = truth.sample(30)
    for estimator in (ELBOBound(100), IWAEBound(100, 10), ImportanceSampling(100)):
        estimate = estimator(truth.vae, x)
        torch.testing.assert_close(estimate.value, truth.log_marginal(x))
        assert estimate.std_error.max() < 1e-7
        torch.testing.assert_close(
            estimate.diagnostics["effective_sample_size"], torch.full((30,), 100.0).double()
        )


def test_expected_bound_rises_with_k_to_the_marginal() -> None:
    truth = LinearGaussian(shift=0.5, stretch=1.5)
    x = truth.sample(300)
    ks = [1, 2, 5, 20, 100]
    estimates = read_together({str(k): IWAEBound(2000, k) for k in ks}, truth.vae, x)
    exact = truth.log_marginal(x).mean().item()
    means = [estimates[str(k)].mean() for k in ks]
    errors = [estimates[str(k)].mean_std_error() for k in ks]
    for i in range(len(ks) - 1):
        assert means[i + 1] - means[i] > 4 * math.hypot(errors[i], errors[i + 1])
    assert means[-1] < exact + 4 * errors[-1]
    assert exact - means[-1] < 0.02 * (exact - means[0])


def test_iwae_is_an_unbiased_mean_over_groups() -> None:
    truth = LinearGaussian(shift=0.5, stretch=1.5)
    x = truth.sample(100)
    few = IWAEBound(5, 5)(truth.vae, x.repeat(2000, 1, 1, 1)).value.reshape(2000, 100)
    many = IWAEBound(5000, 5)(truth.vae, x)
    std_error = (few.var(0) / 2000 + many.std_error**2).sqrt()
    assert ((few.mean(0) - many.value) / std_error).abs().max() < 4.5


@pytest.mark.slow
def test_two_dimensional_digits_agree_with_quadrature(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    x = binary_test_digits[:100]
    exact = log_marginal_by_quadrature(digits_vae, x)
    torch.testing.assert_close(  # the quadrature has converged
        log_marginal_by_quadrature(digits_vae, x, points=301), exact, atol=1e-4, rtol=0
    )
    estimate = ImportanceSampling(20_000)(digits_vae, x)
    trusted = estimate.diagnostics["pareto_k"] < 0.5
    z_scores = ((estimate.value - exact) / estimate.std_error)[trusted]
    assert trusted.double().mean() > 0.5
    assert z_scores.abs().max() < 4.5
    assert abs(z_scores.std() - 1) < 4.5 / math.sqrt(2 * len(z_scores))
    assert (ELBOBound(1000)(digits_vae, x).mean()) < exact.mean()


def test_probabilities_of_all_images_sum_to_one() -> None:
    vae = build_vae(2, (1, 2, 2), MLP((8,), "tanh"), Bernoulli(17), DiagNormal)
    for parameter in vae.model.parameters():  # away from a fresh network's near-uniform p(x)
        parameter.data.mul_(3)
    vae.guide.encoder[-1].bias.data[2:] = 1.5  # wider than the prior: weights of finite variance
    images = torch.tensor(list(product([0.0, 1.0], repeat=4))).reshape(16, 1, 2, 2)
    estimate = ImportanceSampling(20_000)(vae, images)
    probabilities = estimate.value.exp()
    std_error = (probabilities * estimate.std_error).square().sum().sqrt().item()
    assert probabilities.sum().item() == pytest.approx(1, abs=4 * std_error)
    assert std_error < 0.02
    assert probabilities.max() > 2 / 16  # some image is favoured


def test_reconstruction_minus_kl_is_the_elbo_in_closed_form() -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(200)
    parts = elbo_parts(truth.vae, x, 500)
    torch.testing.assert_close(
        parts["elbo"].value, parts["reconstruction"].value - parts["kl"].value
    )
    base = truth.vae.guide.posterior(x).base_dist
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(base.loc, base.scale), torch.distributions.Normal(0.0, 1.0)
    ).sum(-1)
    kl_scores = ((parts["kl"].value - kl) / parts["kl"].std_error).detach()
    elbo_scores = ((parts["elbo"].value - truth.elbo(x)) / parts["elbo"].std_error).detach()
    for z_scores in (kl_scores, elbo_scores):
        assert z_scores.abs().max() < 4.5
        assert 0.8 < z_scores.std() < 1.2


def test_dataset_error_is_monte_carlo_only() -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(50)
    repeats = [ELBOBound(20)(truth.vae, x) for _ in range(150)]
    spread = np.std([repeat.mean() for repeat in repeats], ddof=1)
    predicted = np.mean([repeat.mean_std_error() for repeat in repeats])
    assert spread == pytest.approx(predicted, rel=4.5 / math.sqrt(2 * 150))


@pytest.mark.parametrize(
    "build", [lambda: ELBOBound(0), lambda: IWAEBound(10, 11), lambda: IWAEBound(10, 0)]
)
def test_impossible_budgets_are_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"num_samples|k:"):
        build()


def test_different_budgets_cannot_share_one_pass() -> None:
    truth = LinearGaussian()
    with pytest.raises(ValueError, match="share num_samples"):
        read_together({"a": ELBOBound(5), "b": ELBOBound(6)}, truth.vae, truth.sample(2))
    with pytest.raises(ValueError, match="num_samples and proposal"):
        read_together({"a": ELBOBound(5), "b": PriorSampling(5)}, truth.vae, truth.sample(2))


def test_progress_ends_at_the_whole() -> None:
    truth = LinearGaussian(shift=0.1)
    shares: list[float] = []
    ELBOBound(2000)(truth.vae, truth.sample(130), lambda share, _: shares.append(share))
    assert shares == sorted(shares)
    assert len(shares) > 1
    assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    ("inflation", "prior_share"), [(1.5, 0.0), (0.7, 0.2), (1.0, 0.1), (2.0, 1.0)]
)
def test_other_proposals_have_honest_error_bars_too(inflation: float, prior_share: float) -> None:
    truth = LinearGaussian(shift=0.3)
    x = truth.sample(500)
    estimator = ImportanceSampling(2000, inflation=inflation, prior_share=prior_share)
    estimate = estimator(truth.vae, x)
    z_scores = (estimate.value - truth.log_marginal(x)) / estimate.std_error
    assert z_scores.abs().max() < 4.5
    assert 0.9 < z_scores.std() < 1.1


def test_prior_sampling_is_the_average_likelihood_and_falls_short() -> None:
    """Unbiased for p(x); at one budget its log p(x) is noisier than the guide's by far."""
    truth = LinearGaussian(shift=0.1, stretch=1.2)
    x = truth.sample(500)
    exact = truth.log_marginal(x)
    prior, guide = PriorSampling(1000)(truth.vae, x), ImportanceSampling(1000)(truth.vae, x)
    z_scores = (prior.value - exact) / prior.std_error
    assert z_scores.abs().max() < 4.5
    assert 0.9 < z_scores.std() < 1.1
    assert prior.std_error.mean() > 3 * guide.std_error.mean()
    few = PriorSampling(5)(truth.vae, x)
    assert exact.mean() - few.mean() > 4 * few.mean_std_error()


def test_inflation_mends_a_guide_that_is_too_narrow() -> None:
    narrow = LinearGaussian(stretch=0.1)
    x = narrow.sample(200)
    exact = narrow.log_marginal(x)
    plain = ImportanceSampling(1000)(narrow.vae, x)
    wide = ImportanceSampling(1000, inflation=12)(narrow.vae, x)
    mixed = ImportanceSampling(1000, prior_share=0.3)(narrow.vae, x)
    assert (plain.diagnostics["pareto_k"] > 0.7).double().mean() > 0.5
    assert plain.diagnostics["effective_sample_size"].mean() < 100
    assert (wide.diagnostics["pareto_k"] < 0.7).all()
    for mended in (wide, mixed):
        assert (mended.value - exact).abs().max() < 4.5 * mended.std_error.max()
        assert (mended.value - exact).abs().mean() < 0.2 * (plain.value - exact).abs().mean()
