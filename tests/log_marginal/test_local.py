"""The best normal for each image, where it is known: the posterior itself, or its projections."""

import math

import pytest
import torch

from tests.linear_gaussian import LinearGaussian
from vae_pyro.errors import EstimatorError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli, Normal
from vae_pyro.log_marginal import Bound, ELBOBound, Exact, LocalELBO, Quadrature
from vae_pyro.networks import MLP, Linear
from vae_pyro.vae import VAE, build_vae


def test_a_spoilt_encoder_is_made_good_image_by_image() -> None:
    """The posterior is in the family: the best ELBO is log p(x), whatever the encoder says."""
    spoilt = LinearGaussian(shift=0.5, stretch=1.8)
    x = spoilt.sample(300)
    exact = Exact()(spoilt.vae, x)
    best = LocalELBO()(spoilt.vae, x)
    assert best.bound is Bound.LOWER
    assert exact.mean() - ELBOBound(500)(spoilt.vae, x).mean() > 0
    assert abs(exact.mean() - best.mean()) < 0.003
    assert (exact.value - best.value).max() < 0.05


@pytest.mark.parametrize(
    ("guide", "correlation_costs"), [(DiagNormal, True), (FullRankNormal, False)]
)
def test_the_family_decides_what_is_left(guide: type[Guide], correlation_costs: bool) -> None:
    """Posterior N(m, P^-1): the best independent normal has precisions P_dd, and KL in closed form.

    KL = (sum_d log P_dd - log det P) / 2; a full-rank normal has no such gap.
    """
    vae = build_vae(2, (1, 2, 3), Linear(), Normal(None, 0.5), guide, seed=None).double()
    with torch.no_grad():
        vae.model.decoder[0].weight.copy_(
            torch.tensor([[1.0, 1, 1, 0, 0, 0], [1.0, 1, 0, 1, 0, 0]]).T
        )
    x = torch.randn(50, 1, 2, 3, dtype=torch.float64)
    weight = vae.model.decoder[0].weight.detach()
    precision = torch.eye(2) + weight.T @ weight / 0.5**2
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert gap > 0.2
    found = Exact()(vae, x).mean() - LocalELBO(800)(vae, x).mean()
    assert found == pytest.approx(gap if correlation_costs else 0.0, abs=0.01)


@pytest.mark.slow
def test_the_best_lies_between_the_encoders_elbo_and_log_px(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    x = binary_test_digits[:60]
    elbo, best, exact = (e(digits_vae, x) for e in (ELBOBound(500), LocalELBO(), Quadrature()))
    below = (exact.value - best.value) / best.std_error
    assert below.min() > -4.5
    assert best.mean() - elbo.mean() > 4 * math.hypot(best.mean_std_error(), elbo.mean_std_error())


def test_the_encoder_is_left_as_it_was() -> None:
    truth = LinearGaussian()
    before = {name: tensor.clone() for name, tensor in truth.vae.state_dict().items()}
    LocalELBO(3, 2, 2)(truth.vae, truth.sample(2))
    for name, tensor in truth.vae.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(parameter.grad is None for parameter in truth.vae.parameters())


def test_flows_have_no_best_normal() -> None:
    vae = build_vae(2, (1, 2, 3), MLP((8,)), Bernoulli(17), Flow, seed=None)
    with pytest.raises(EstimatorError, match="guide=diag_normal or guide=full_rank_normal"):
        LocalELBO().check(vae)


@pytest.mark.parametrize(
    "options",
    [{"num_steps": 0}, {"num_particles": 0}, {"num_samples": 1}, {"learning_rate": 0.0}],
)
def test_impossible_budgets_are_refused(options: dict[str, float]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        LocalELBO(**options)  # type: ignore[arg-type]


def test_small_chunks_give_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = LinearGaussian(shift=0.5)
    x = spoilt.sample(7)
    monkeypatch.setattr("vae_pyro.log_marginal.local.rows_per_chunk", lambda *_: 40)
    shares: list[float] = []
    best = LocalELBO(200)(spoilt.vae, x, lambda share, _: shares.append(share))
    assert (best.value - Exact()(spoilt.vae, x).value).abs().max() < 0.05
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_a_perfect_encoder_is_not_made_worse() -> None:
    perfect = LinearGaussian()
    x = perfect.sample(100)
    best = LocalELBO(50)(perfect.vae, x)
    lost = Exact()(perfect.vae, x).value - best.value
    assert lost.mean() < 4.5 * best.mean_std_error() + 1e-3
    assert (lost.abs() < 1e-6).double().mean() > 0.8  # the encoder's own q, exact, was kept
