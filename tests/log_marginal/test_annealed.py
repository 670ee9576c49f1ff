"""AIS and its reverse against exact answers; transitions against what they must leave alone."""

import math

import pytest
import torch

from tests.linear_gaussian import LATENT_DIM, LinearGaussian
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    Exact,
    ImportanceSampling,
    Quadrature,
    ReverseAIS,
    bidirectional,
)
from vae_pyro.log_marginal.hamiltonian import AnnealingPath
from vae_pyro.log_marginal.pair import Start
from vae_pyro.networks import MLP
from vae_pyro.vae import VAE, build_vae

BUDGET = {"num_temperatures": 60, "num_chains": 32, "num_leapfrog": 4}


@pytest.mark.slow
@pytest.mark.parametrize("start", ["prior", "guide"])
def test_ais_is_exact_within_its_own_honest_error_bars(start: Start) -> None:
    truth = LinearGaussian(shift=0.2, stretch=0.8)
    x = truth.sample(1000)
    estimate = AIS(**BUDGET, start=start)(truth.vae, x)
    z_scores = (estimate.value - Exact()(truth.vae, x).value) / estimate.std_error
    assert estimate.bound is Bound.LOWER
    # Student's t with 31 degrees of freedom is beyond 6.1 once in a million; of 1,000 images,
    # one is beyond 4.8 in every 27th such experiment.
    assert z_scores.abs().max() < 6.1
    assert (z_scores.abs() > 3).double().mean() < 0.015  # 0.5% of them are expected
    # Jensen: below by half a variance; and no more than that.
    jensen = (estimate.std_error / 2).mean()
    assert abs(z_scores.mean() + jensen) < 4.5 / math.sqrt(1000)
    assert 0.9 < z_scores.std() < 1.15
    acceptance = estimate.diagnostics["acceptance"]
    assert 0.55 < acceptance.mean() < 0.95
    assert (estimate.diagnostics["pareto_k"] < 0.7).double().mean() > 0.9


@pytest.mark.slow
def test_ais_needs_no_good_guide() -> None:
    """From the prior it does not see the guide; from a guide ten times too narrow it recovers."""
    narrow = LinearGaussian(stretch=0.1)
    x = narrow.sample(200)
    exact = Exact()(narrow.vae, x)
    plain = ImportanceSampling(500)(narrow.vae, x)
    from_prior = AIS(**BUDGET)(narrow.vae, x)
    assert abs(from_prior.mean() - exact.mean()) < 4.5 * from_prior.mean_std_error() + 0.02
    for estimate in (from_prior, AIS(**BUDGET, start="guide")(narrow.vae, x)):
        assert (estimate.value - exact.value).abs().mean() < (
            0.3 * (plain.value - exact.value).abs().mean()
        )


def test_simulated_images_have_the_truth_between_the_bounds() -> None:
    """With so few temperatures that the two are visibly apart."""
    truth = LinearGaussian()
    estimator = AIS(num_temperatures=6, num_chains=4, num_leapfrog=3)
    lower, upper = bidirectional(estimator, truth.vae, 500, seed=0)
    # The images are not returned; their true mean log p(x) is that of any from this model.
    exact = Exact()(truth.vae, truth.sample(20_000))
    spread = math.hypot(lower.estimate.image_std_error(), exact.image_std_error())
    assert (lower.estimate.bound, upper.estimate.bound) == (Bound.LOWER, Bound.UPPER)
    gap = upper.estimate.value - lower.estimate.value
    gap_std_error = (gap.std() / math.sqrt(500)).item()
    assert gap.mean() > 8 * gap_std_error
    assert lower.estimate.mean() < exact.mean() + 4.5 * spread
    assert upper.estimate.mean() > exact.mean() - 4.5 * spread


@pytest.mark.long
@pytest.mark.slow
def test_more_temperatures_close_the_bracket() -> None:
    truth = LinearGaussian()
    gaps = []
    for temperatures in (5, 80):
        lower, upper = bidirectional(AIS(temperatures, 8, 4), truth.vae, 1000, seed=1)
        gap = upper.estimate.value - lower.estimate.value
        gaps.append((gap.mean().item(), (gap.std() / math.sqrt(1000)).item()))
    assert gaps[0][0] > 0.05 + 4 * gaps[0][1]
    assert abs(gaps[1][0]) < 0.02 + 4.5 * gaps[1][1]


def test_reverse_from_posterior_draws_is_an_upper_bound_image_by_image() -> None:
    truth = LinearGaussian()
    x = truth.sample(1000)
    exact = Exact()(truth.vae, x)
    scale = truth.covariance.diagonal().sqrt()
    z = truth.posterior_mean(x) + scale * torch.randn(1000, LATENT_DIM, dtype=torch.float64)
    short = AIS(num_temperatures=6, num_chains=4, num_leapfrog=3)
    upper = short.upper_bound(truth.vae, x, z)
    above = upper.value - exact.value
    assert above.mean() > 4.5 * above.std() / math.sqrt(1000)
    lower = short(truth.vae, x)
    below = exact.value - lower.value
    assert below.mean() > 4.5 * below.std() / math.sqrt(1000)


@pytest.mark.slow
def test_reverse_ais_meets_the_truth_from_where_forward_chains_ended() -> None:
    truth = LinearGaussian(shift=0.3)
    x = truth.sample(500)
    upper = ReverseAIS(**BUDGET)(truth.vae, x)
    exact = Exact()(truth.vae, x)
    assert upper.bound is Bound.UPPER
    assert upper.mean() == pytest.approx(exact.mean(), abs=4.5 * upper.mean_std_error() + 0.02)
    assert upper.evaluations > 1.5 * AIS(**BUDGET)(truth.vae, x[:2]).evaluations


@pytest.mark.slow
def test_ais_agrees_with_quadrature_on_trained_digits(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    x = binary_test_digits[:60]
    exact = Quadrature()(digits_vae, x)
    estimate = AIS(num_temperatures=150, num_chains=32, num_leapfrog=5)(digits_vae, x)
    z_scores = (estimate.value - exact.value) / estimate.std_error
    assert z_scores.abs().max() < 5
    assert abs(estimate.mean() - exact.mean()) < 4.5 * estimate.mean_std_error() + 0.02


@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal, Flow])
def test_every_guide_can_be_where_the_chains_start(guide: type[Guide]) -> None:
    vae = build_vae(2, (1, 2, 3), MLP((8,), "tanh"), Bernoulli(17), guide, seed=None)
    x = torch.bernoulli(torch.full((40, 1, 2, 3), 0.5))
    exact = Quadrature()(vae, x)
    estimate = AIS(20, 30, 3, start="guide")(vae, x)
    z_scores = (estimate.value - exact.value) / estimate.std_error
    assert z_scores.abs().max() < 4.8


@pytest.mark.parametrize("b", [0.0, 0.3, 1.0])
def test_transitions_leave_the_tempered_posterior_as_it_is(b: float) -> None:
    """In closed form f_b is normal here: precision I + b W'W / s^2, mean along b."""
    truth = LinearGaussian()
    x = truth.sample(1)
    path = AnnealingPath(truth.vae, x, "prior")
    precision = torch.eye(LATENT_DIM) + b * truth.weight.T @ truth.weight / 0.7**2
    covariance = torch.linalg.inv(precision.double())
    mean = covariance @ (b * truth.weight.T @ (x.flatten() - truth.bias) / 0.7**2)
    target = torch.distributions.MultivariateNormal(mean, covariance)
    num_chains = 20_000
    point = path.at(target.sample((num_chains, 1)))
    for _ in range(3):
        point, acceptance = path.transition(point, b, torch.tensor([0.5]), 3)
    assert 0.3 < acceptance.mean() < 0.999
    z = point.z[:, 0]
    for power in (1, 2):
        values = (z - mean) ** power
        expected = torch.zeros(LATENT_DIM) if power == 1 else covariance.diagonal()
        std_error = values.std(0) / math.sqrt(num_chains)
        assert ((values.mean(0) - expected) / std_error).abs().max() < 4.5
    cross = (z - mean).prod(-1)
    assert abs(cross.mean()) < 4.5 * cross.std() / math.sqrt(num_chains)


def test_transitions_move() -> None:
    truth = LinearGaussian()
    path = AnnealingPath(truth.vae, truth.sample(5), "guide")
    start = path.draw(100)
    end, acceptance = path.transition(start, 1.0, torch.full((5,), 0.5), 5)
    moved = (end.z != start.z).all(-1)
    assert moved.double().mean() == pytest.approx(acceptance.mean().item(), abs=0.1)


def test_a_diverged_step_is_rejected() -> None:
    truth = LinearGaussian()
    path = AnnealingPath(truth.vae, truth.sample(3), "prior")
    start = path.draw(10)
    end, acceptance = path.transition(start, 1.0, torch.full((3,), 1e200, dtype=torch.float64), 10)
    assert acceptance.max() == 0
    assert torch.equal(end.z, start.z)
    assert end.log_joint.isfinite().all()


def test_log_density_and_gradient_interpolate() -> None:
    truth = LinearGaussian(shift=0.4)
    x = truth.sample(4)
    path = AnnealingPath(truth.vae, x, "guide")
    z = torch.randn(6, 4, LATENT_DIM, dtype=torch.float64, requires_grad=True)
    point = path.at(z)
    log_p = truth.vae.model.decode(z).log_prob(x) + truth.vae.model.prior().log_prob(z)
    log_q = truth.vae.guide.posterior(x).log_prob(z)
    log_f = 0.4 * log_q + 0.6 * log_p
    torch.testing.assert_close(point.log_density(0.6), log_f.detach())
    (gradient,) = torch.autograd.grad(log_f.sum(), z)
    torch.testing.assert_close(point.gradient(0.6), gradient)


def test_small_chunks_and_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = LinearGaussian()
    monkeypatch.setattr("vae_pyro.log_marginal.annealed.rows_per_chunk", lambda *_: 20)
    shares: list[float] = []
    estimate = AIS(5, 8, 2)(truth.vae, truth.sample(7), lambda share, _: shares.append(share))
    assert estimate.value.shape == (7,)
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


@pytest.mark.parametrize(
    "options",
    [
        {"num_temperatures": 0},
        {"num_chains": 1},
        {"num_leapfrog": 0},
        {"target_acceptance": 1.0},
    ],
)
def test_impossible_budgets_are_refused(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        AIS(**options)  # type: ignore[arg-type]
