"""The latent space against closed forms of a linear-Gaussian model."""

import csv
import io
import math

import pytest
import torch

from tests.linear_gaussian import LATENT_DIM, SCALE, LinearGaussian
from vae_pyro.errors import EstimatorError
from vae_pyro.evaluation import (
    active_units,
    active_units_std_error,
    information,
    kl_per_dimension,
    posterior_means,
)
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.reporting.estimators import latent_csv
from vae_pyro.vae import build_vae


def test_active_units_are_those_whose_mean_varies() -> None:
    means = torch.randn(5000, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + 3
    assert active_units(means) == 2  # variances 1, 0.04, 0.0025, 0
    assert active_units_std_error(means) < 1e-6


def test_the_count_of_active_units_has_an_honest_error_bar() -> None:
    """Near the threshold the count moves from sample to sample as much as its error says."""
    scales = torch.tensor([1.0, 0.1, 0.105, 0.01])
    counts, errors = [], []
    for _ in range(1000):
        means = torch.randn(200, 4) * scales
        counts.append(float(active_units(means)))
        errors.append(active_units_std_error(means))
    spread = torch.tensor(counts).std().item()
    assert 0.5 < spread < 0.8
    # The error is estimated at the sample's own variance, which narrows it somewhat.
    assert sum(errors) / 1000 == pytest.approx(spread, rel=0.25)


def test_posterior_means_are_the_closed_form() -> None:
    truth = LinearGaussian()
    x = truth.sample(25)
    torch.testing.assert_close(posterior_means(truth.vae, x, batch_size=7), truth.posterior_mean(x))


def test_kl_per_dimension_is_the_closed_form() -> None:
    truth = LinearGaussian(shift=0.3, stretch=1.4)
    x = truth.sample(40)
    kl = kl_per_dimension(truth.vae, x, batch_size=7)
    torch.testing.assert_close(kl, truth.kl(x).detach())


def test_kl_of_a_full_rank_guides_dimensions_is_that_of_their_marginals() -> None:
    vae = build_vae(3, (1, 2, 3), MLP((8,), "tanh"), Bernoulli(17), FullRankNormal, seed=None)
    x = torch.rand(5, 1, 2, 3)
    kl = kl_per_dimension(vae, x)
    q = vae.guide.posterior(x)
    marginal = torch.distributions.Normal(
        q.mean, q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    )
    expected = torch.distributions.kl_divergence(marginal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl, expected.double().detach(), atol=1e-6, rtol=1e-5)
    whole = torch.distributions.kl_divergence(q, vae.model.prior())
    assert (kl.sum(-1) <= whole + 1e-6).all()


def test_flows_have_no_kl_per_dimension() -> None:
    vae = build_vae(2, (1, 2, 3), MLP((8,)), Bernoulli(17), Flow, seed=None)
    with pytest.raises(EstimatorError, match="for normal guides, not for Transformed"):
        kl_per_dimension(vae, torch.zeros(2, 1, 2, 3))
    rows = list(csv.DictReader(io.StringIO(latent_csv(vae, torch.rand(20, 1, 2, 3)))))
    assert [row["kl"] for row in rows] == ["nan", "nan"]
    assert all(float(row["variance_of_means"]) >= 0 for row in rows)


def test_information_is_the_closed_form() -> None:
    """With x from the model itself the aggregated posterior is a normal, and all is known."""
    truth = LinearGaussian(shift=0.2, stretch=1.3)
    x = truth.sample(2000)
    measures = information(truth.vae, x)
    gain = truth.covariance @ truth.weight.T / SCALE**2
    of_x = truth.weight @ truth.weight.T + SCALE**2 * torch.eye(6)
    within = torch.diag(1.3**2 * truth.covariance.diagonal())
    total = gain @ of_x @ gain.T + within
    mutual = 0.5 * (torch.logdet(total) - torch.logdet(within)).item()
    mean = torch.full((LATENT_DIM,), 0.2, dtype=torch.float64)
    marginal = 0.5 * (total.trace() + mean @ mean - LATENT_DIM - torch.logdet(total)).item()
    for number, exact in (
        (measures.mutual_information, mutual),
        (measures.mutual_information_upper, mutual),
        (measures.marginal_kl, marginal),
        (measures.kl, mutual + marginal),
    ):
        error = math.hypot(number.mean_std_error(), number.image_std_error())
        assert number.mean() == pytest.approx(exact, abs=4.5 * error)
        assert error < 0.03
    assert measures.mutual_information.mean() < measures.mutual_information_upper.mean()
    kl = truth.kl(x).sum(-1).mean().item()
    assert measures.kl.mean() == pytest.approx(kl, abs=4.5 * measures.kl.mean_std_error())


def test_the_kl_divides_into_information_and_marginal_kl() -> None:
    truth = LinearGaussian(shift=0.2)
    measures = information(truth.vae, truth.sample(300), num_samples=3)
    torch.testing.assert_close(
        measures.kl.value, measures.mutual_information.value + measures.marginal_kl.value
    )


def test_few_images_cannot_tell_much_information() -> None:
    """Posteriors that do not overlap: log N from below, and far more from above."""
    narrow = LinearGaussian(stretch=1e-3)
    measures = information(narrow.vae, narrow.sample(20))
    assert measures.mutual_information.mean() == pytest.approx(math.log(20), abs=1e-3)
    assert measures.mutual_information_upper.mean() > 100


@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal, Flow])
def test_every_guide_can_be_measured(guide: type[Guide]) -> None:
    vae = build_vae(3, (1, 2, 3), MLP((8,), "tanh"), Bernoulli(17), guide, seed=None)
    x = torch.bernoulli(torch.full((30, 1, 2, 3), 0.5))
    measures = information(vae, x, num_samples=200)
    if guide is not Flow:
        exact = torch.distributions.kl_divergence(vae.guide.posterior(x), vae.model.prior())
        kl = measures.kl
        z_scores = (kl.value - exact.detach()) / kl.std_error
        assert z_scores.abs().max() < 4.5
    low, high = measures.mutual_information, measures.mutual_information_upper
    assert -4 * low.mean_std_error() < low.mean() <= high.mean()


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = LinearGaussian()
    x = truth.sample(9)
    torch.manual_seed(1)
    whole = information(truth.vae, x)
    monkeypatch.setattr("vae_pyro.evaluation.latent._NUMBERS_AT_ONCE", 1)
    torch.manual_seed(1)
    parts = information(truth.vae, x)
    torch.testing.assert_close(parts.marginal_kl.value, whole.marginal_kl.value)
