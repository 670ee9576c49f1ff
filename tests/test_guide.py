"""q(z | x) is a distribution: it integrates to one, and its density is that of its draws."""

import math

import numpy as np
import pytest
import torch
from pyro.distributions import TorchDistribution
from scipy import stats
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.distributions import kl_divergence
from torch.func import functional_call

from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.model import Model

FAMILY = {"diag_normal": DiagNormal, "full_rank_normal": FullRankNormal, "flow": Flow}
every_guide = pytest.mark.parametrize("name", FAMILY)


def linear_encoder(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(-3), nn.Linear(6, num_outputs))


def build(name: str, latent_dim: int) -> Guide:
    options = {"hidden": 8, "context": 4} if name == "flow" else {}
    guide: Guide = FAMILY[name](latent_dim, linear_encoder, **options).double()
    with torch.no_grad():  # away from the start, where a flow is nearly a diagonal normal
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return guide


def images(number: int) -> Tensor:
    return torch.randn(number, 1, 2, 3, dtype=torch.float64)


def quadrature(q: TorchDistribution, per_axis: int) -> tuple[Tensor, Tensor]:
    """A grid over where the density of one image is, ``(N, D)``, and its mass in each cell."""
    draws = q.sample((5000,))[:, 0]
    axes = [
        torch.linspace(-14, 14, per_axis, dtype=torch.float64) * column.std() + column.mean()
        for column in draws.T
    ]
    grid = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    cell = math.prod((axis[1] - axis[0]).item() for axis in axes)
    return grid, q.log_prob(grid.unsqueeze(1)).detach()[:, 0].exp() * cell


@every_guide
@pytest.mark.parametrize(("latent_dim", "per_axis"), [(1, 2001), (2, 1001)])
def test_density_integrates_to_one(name: str, latent_dim: int, per_axis: int) -> None:
    guide = build(name, latent_dim)
    for x in images(3).split(1):
        _, mass = quadrature(guide.posterior(x), per_axis)
        assert mass.sum().item() == pytest.approx(1, abs=1e-5)


def test_diagonal_density_is_scipys() -> None:
    q, z = build("diag_normal", 4).posterior(images(5)), torch.randn(5, 4).double()
    loc, scale = (part.detach().numpy() for part in (q.base_dist.loc, q.base_dist.scale))
    expected = stats.norm.logpdf(z.numpy(), loc, scale).sum(-1)
    torch.testing.assert_close(q.log_prob(z).detach(), torch.from_numpy(expected))


def test_full_rank_density_is_scipys_and_reads_its_factor_off_the_encoder() -> None:
    guide, x = build("full_rank_normal", 3), images(1)
    outputs = guide.encoder(x)[0].detach().numpy()
    factor = np.diag(np.logaddexp(0, outputs[3:6]) + 1e-4)
    factor[1, 0], factor[2, 0], factor[2, 1] = outputs[6:]
    expected = stats.multivariate_normal(outputs[:3], factor @ factor.T)
    z = torch.randn(7, 1, 3).double()
    found = guide.posterior(x).log_prob(z).detach()
    torch.testing.assert_close(found[:, 0], torch.from_numpy(expected.logpdf(z[:, 0].numpy())))


def test_full_rank_kl_is_the_closed_form() -> None:
    q = build("full_rank_normal", 3).posterior(images(4))
    prior = Model(3, nn.Identity(), None).double().prior()
    zero, one = torch.zeros(3).double(), torch.eye(3).double()
    standard = torch.distributions.MultivariateNormal(zero, one)
    plain = torch.distributions.MultivariateNormal(q.loc, scale_tril=q.scale_tril)
    torch.testing.assert_close(kl_divergence(q, prior), kl_divergence(plain, standard))


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_a_flow_weighs_a_draw_as_it_weighs_any_other_z(latent_dim: int) -> None:
    """The cached density of a draw is the one found by inverting every step."""
    guide, x = build("flow", latent_dim), images(4)
    q = guide.posterior(x)
    z = q.rsample((6,))
    torch.testing.assert_close(guide.posterior(x).log_prob(z.clone()), q.log_prob(z))


def test_a_flow_is_no_normal_and_correlates() -> None:
    torch.manual_seed(1)
    q = build("flow", 2).posterior(images(1))
    z = q.sample((50_000,))[:, 0]
    assert abs(torch.corrcoef(z.T)[0, 1]) > 4.5 / 50_000**0.5
    assert min(stats.normaltest(z.numpy()).pvalue) < 1e-6


@every_guide
def test_draws_have_the_moments_of_the_density(name: str) -> None:
    """First and second moments by quadrature of the density itself."""
    q, n = build(name, 2).posterior(images(1)), 40_000
    grid, mass = quadrature(q, 801)
    z = q.sample((n,))[:, 0]
    for moment in (lambda z: z, lambda z: z.square(), lambda z: z[:, :1] * z[:, 1:]):
        draws = moment(z)
        exact = (mass[:, None] * moment(grid)).sum(0)
        assert ((draws.mean(0) - exact).abs() < 4.5 * draws.std(0) / n**0.5 + 1e-4).all()


@every_guide
def test_gradient_is_the_finite_difference(name: str) -> None:
    guide, x, z = build(name, 2), images(2), torch.randn(2, 2).double()
    values = {key: value.detach().clone() for key, value in guide.named_parameters()}

    class Density(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.guide = guide

        def forward(self, x: Tensor) -> Tensor:
            return self.guide.posterior(x).log_prob(z)

    def log_prob(*parameters: Tensor) -> Tensor:
        named = {f"guide.{k}": p for k, p in zip(values, parameters, strict=True)}
        return functional_call(Density(), named, (x,))

    assert gradcheck(log_prob, tuple(value.requires_grad_() for value in values.values()))


@every_guide
def test_extreme_encoder_outputs_stay_finite(name: str) -> None:
    guide = FAMILY[name](2, linear_encoder)
    torch.nn.init.zeros_(guide.encoder[1].weight)
    for value in (-1e4, -50.0, 50.0, 1e4):
        # The means stay where they are: what is extreme is scales, correlations and context.
        guide.encoder[1].bias.data.fill_(value)
        guide.encoder[1].bias.data[:2] = 0
        q = guide.posterior(torch.zeros(1, 1, 2, 3))
        assert q.log_prob(q.rsample()).isfinite().all()


@every_guide
def test_posterior_means_are_the_means_of_draws(name: str) -> None:
    guide, x = build(name, 3), images(5)
    z = guide.posterior(x).sample((20_000,))
    found = guide.posterior_mean(x)
    assert found.shape == (5, 3)
    # A flow's mean is itself one of 256 draws.
    own = z.std(0) / math.sqrt(256) if name == "flow" else 0
    assert ((z.mean(0) - found).abs() < 4.5 * (z.std(0) / 20_000**0.5 + own)).all()


def test_a_flows_unused_dimension_does_not_look_active() -> None:
    """With an encoder that says nothing, all images have one and the same mean."""
    guide = Flow(2, linear_encoder)
    torch.nn.init.zeros_(guide.encoder[1].weight)
    means = guide.posterior_mean(torch.randn(50, 1, 2, 3))
    assert means.var(0).max() < 1e-10


@pytest.mark.parametrize("option", ["num_transforms", "hidden", "context"])
def test_a_flows_options_out_of_range_are_named(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: must be at least 1"):
        Flow(2, linear_encoder, **{option: 0})


@every_guide
def test_particles_and_images_keep_their_axes(name: str) -> None:
    guide = build(name, 3)
    q = guide.posterior(images(4))
    assert q.batch_shape == (4,)
    assert q.event_shape == (3,)
    z = q.expand((6, 4)).rsample()
    assert z.shape == (6, 4, 3)
    assert q.expand((6, 4)).log_prob(z).shape == (6, 4)
