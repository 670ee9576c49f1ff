"""Proposals draw from what they say, and their densities integrate to 1."""

import math

import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from tests.linear_gaussian import IMAGE_SHAPE, LinearGaussian
from vae_pyro.errors import EstimatorError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import ImportanceSampling, Quadrature, log_weights
from vae_pyro.log_marginal.proposals import Mixture, Proposal, inflate
from vae_pyro.networks import MLP
from vae_pyro.vae import VAE, build_vae

NORMAL = dist.Normal(torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 2.0]])).to_event(1)


def vae_with(guide: type[Guide]) -> VAE:
    return build_vae(2, IMAGE_SHAPE, MLP((8,), "tanh"), Bernoulli(17), guide, seed=None)


@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal])
def test_inflation_multiplies_the_standard_deviations(guide: type[Guide]) -> None:
    q = vae_with(guide).guide.posterior(torch.rand(3, *IMAGE_SHAPE))
    wide = inflate(q, 2.5)
    torch.testing.assert_close(wide.mean, q.mean)
    torch.testing.assert_close(wide.variance.sqrt(), 2.5 * q.variance.sqrt())


@pytest.mark.parametrize(
    "q",
    [
        dist.Laplace(torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4])),
        dist.StudentT(5.0, torch.tensor([1.0, 2.0]), torch.tensor([0.3, 0.4])),
        dist.Normal(torch.ones(3, 2), torch.tensor([0.3, 0.4])).to_event(2),
    ],
)
def test_every_location_and_scale_family_is_widened_around_its_mean(
    q: dist.TorchDistribution,
) -> None:
    wide = inflate(q, 2.5)
    assert (wide.batch_shape, wide.event_shape) == (q.batch_shape, q.event_shape)
    torch.testing.assert_close(wide.mean, q.mean)
    torch.testing.assert_close(wide.variance, 2.5**2 * q.variance)


@pytest.mark.parametrize("prior_share", [0.0, 0.1])
def test_an_inflated_flow_is_the_flow_of_a_wider_base(prior_share: float) -> None:
    """Its density is that of its draws: the weights' mean is p(x) by quadrature."""
    vae = vae_with(Flow)
    x = torch.bernoulli(torch.full((100, *IMAGE_SHAPE), 0.5))
    truth = Quadrature()(vae, x)
    wide = ImportanceSampling(4000, inflation=2.5, prior_share=prior_share)(vae, x)
    z_scores = (wide.value - truth.value) / wide.std_error
    assert z_scores.abs().max() < 4.5
    assert 0.7 < z_scores.std() < 1.3


def test_mixture_density_integrates_to_one_and_fits_its_draws() -> None:
    other = dist.Normal(torch.zeros(1, 2), 1.0).to_event(1)
    mixture = Mixture(NORMAL, other, 0.25)
    axis = torch.linspace(-12, 12, 1201, dtype=torch.float64)
    z = torch.cartesian_prod(axis, axis)[:, None]
    density = mixture.log_prob(z).exp()
    area = (axis[1] - axis[0]) ** 2
    assert density.sum() * area == pytest.approx(1, abs=1e-6)
    draws = mixture.sample(torch.Size([100_000]))
    assert draws.shape == (100_000, 1, 2)
    for power in (1, 2):
        moment = (density * z[..., 0] ** power).sum() * area
        values = draws[..., 0].double() ** power
        std_error = values.std() / math.sqrt(100_000)
        assert abs(values.mean() - moment) < 4.5 * std_error


def test_a_mixture_expands() -> None:
    mixture = Mixture(NORMAL, dist.Normal(torch.zeros(1, 2), 1.0).to_event(1), 0.5)
    expanded = mixture.expand(torch.Size([7, 1]))
    assert expanded.sample().shape == (7, 1, 2)
    assert expanded.log_prob(torch.zeros(7, 1, 2)).shape == (7, 1)


def test_a_defensive_mixture_bounds_the_weights() -> None:
    """w = p(x | z) p(z) / r(z) <= p(x | z) / a."""
    narrow = LinearGaussian(stretch=0.1)
    x = narrow.sample(50)
    log_w = log_weights(narrow.vae, x, 500, Proposal(prior_share=0.2))
    assert (log_w.total <= log_w.log_likelihood - math.log(0.2) + 1e-9).all()


class Box(DiagNormal):
    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        middle, width = self.encoder(x).chunk(2, -1)
        low, high = middle - width.exp(), middle + width.exp()
        return dist.Uniform(low, high, validate_args=False).to_event(1)


def test_what_cannot_be_widened_is_told_of() -> None:
    vae = vae_with(Box)
    with pytest.raises(EstimatorError, match="no scale to multiply"):
        ImportanceSampling(10, inflation=2).check(vae)
    ImportanceSampling(10, prior_share=0.5)(vae, torch.zeros(2, *IMAGE_SHAPE))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"inflation": 0.0}, "inflation: must be positive"),
        ({"prior_share": 1.1}, "prior_share: must lie between 0 and 1"),
        ({"prior_share": -0.1}, "prior_share"),
    ],
)
def test_impossible_proposals_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImportanceSampling(10, **options)
