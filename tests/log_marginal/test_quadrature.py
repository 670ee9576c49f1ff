"""Quadrature against closed forms, and its own error estimate against its error."""

import math

import pytest
import torch
from torch import nn

from tests.linear_gaussian import LinearGaussian
from tests.log_marginal.test_importance import log_marginal_by_quadrature
from vae_pyro.errors import EstimatorError
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, Normal
from vae_pyro.log_marginal import Bound, Exact, Quadrature, chunking
from vae_pyro.model import Model
from vae_pyro.networks import MLP, Linear, Reshape
from vae_pyro.vae import VAE, build_vae


def linear(latent_dim: int, scale: float) -> VAE:
    vae = build_vae(latent_dim, (1, 2, 3), Linear(), Normal(None, scale), DiagNormal, seed=None)
    return vae.double()


def test_quadrature_is_exact_within_its_error_estimate() -> None:
    truth = LinearGaussian(stretch=0.1)  # a bad guide: nobody asks it
    x = truth.sample(300)
    estimate, exact = Quadrature()(truth.vae, x), Exact()(truth.vae, x)
    assert estimate.bound is Bound.NUMERIC
    assert ((estimate.value - exact.value).abs() <= estimate.std_error).all()
    assert estimate.std_error.max() < 1e-6
    assert abs(estimate.mean() - exact.mean()) <= estimate.mean_std_error()


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_wide_and_narrow_posteriors_in_every_dimension(latent_dim: int, scale: float) -> None:
    """From the prior itself to a posterior 50 times as narrow, far out in the prior's tail too."""
    vae = linear(latent_dim, scale)
    with torch.no_grad():
        z = torch.randn(20, latent_dim, dtype=torch.float64)
        z[0] = 4.0
        x = vae.model.decode(z).sample()
    estimate, exact = Quadrature()(vae, x), Exact()(vae, x)
    assert ((estimate.value - exact.value).abs() <= estimate.std_error).all()
    assert estimate.std_error.max() < 1e-3


class Folded(nn.Module):
    """x = |z| (1, .., 1): z and -z explain an image equally well."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.abs().expand(*z.shape[:-1], 6)


def test_two_modes_are_both_found() -> None:
    vae = VAE(
        Model(1, nn.Sequential(Folded(), Reshape((1, 1, 2, 3))), Normal(None, 0.05)),
        linear(1, 1.0).guide,
    ).double()
    level = 1.5
    x = torch.full((1, 1, 2, 3), level, dtype=torch.float64)
    # One of two equal modes: x_bar ~ N(|z|, s^2 / 6), the rest of x is pure noise.
    s2 = 0.05**2
    one_mode = (
        -0.5 * level**2 / (1 + s2 / 6)
        - 0.5 * math.log(2 * math.pi * (1 + s2 / 6))
        - 2.5 * math.log(2 * math.pi * s2)
        - 0.5 * math.log(6)
    )
    assert Quadrature()(vae, x).value.item() == pytest.approx(one_mode + math.log(2), abs=1e-5)


def log_joint_on_grid(
    vae: VAE, x: torch.Tensor, lower: torch.Tensor, upper: torch.Tensor, points: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nodes of a grid, and log p(x, z) there with one row per node."""
    ends = zip(lower.tolist(), upper.tolist(), strict=True)
    axes = [torch.linspace(a, b, points, dtype=torch.float64) for a, b in ends]
    z = torch.cartesian_prod(*axes).reshape(-1, len(axes))
    log_x = torch.cat([vae.model.decode(p[:, None]).log_prob(x) for p in z.split(20_000)])
    return z, log_x + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1, keepdim=True)


def log_marginal_by_dense_grid(vae: VAE, x: torch.Tensor) -> torch.Tensor:
    """A coarse grid over the prior finds each image's posterior, a dense one integrates it."""
    dims = vae.model.latent_dim
    around, dense = {1: (4001, 40_001), 2: (201, 701)}[dims]
    edge = torch.full((dims,), 8.0, dtype=torch.float64)
    nodes, coarse = log_joint_on_grid(vae, x, -edge, edge, around)
    values = []
    for one, log_f in zip(x.split(1), coarse.T, strict=True):
        kept = nodes[log_f > log_f.max() - 30]
        lower, upper = kept.amin(0) - 16 / (around - 1), kept.amax(0) + 16 / (around - 1)
        _, fine = log_joint_on_grid(vae, one, lower, upper, dense)
        values.append(fine[:, 0].logsumexp(0) + ((upper - lower) / (dense - 1)).log().sum())
    return torch.stack(values)


@pytest.mark.slow
@pytest.mark.parametrize(("latent_dim", "decoders"), [(1, 60), (2, 16)])
def test_kinks_of_steep_relu_decoders_are_within_the_error_estimate(
    latent_dim: int, decoders: int
) -> None:
    """The difference between two grids can be small by chance where both are wrong."""
    ratios = []
    for seed in range(decoders):
        vae = build_vae(latent_dim, (1, 4, 4), MLP((16,)), Bernoulli(2), DiagNormal, seed=seed)
        vae = vae.double()
        with torch.no_grad():
            for weights in vae.model.decoder.parameters():
                weights.mul_(3 + seed % 3)
            x = vae.model.decode(torch.randn(4, latent_dim, dtype=torch.float64)).sample()
            truth = log_marginal_by_dense_grid(vae, x)
        estimate = Quadrature()(vae, x)
        ratios.append((estimate.value - truth).abs() / estimate.std_error)
        assert estimate.std_error.max() < 3e-3  # without which any error would be within it
    ratio = torch.cat(ratios)
    assert ratio.max() <= 2
    assert (ratio <= 1).double().mean() >= 0.98


@pytest.mark.slow
def test_quadrature_agrees_with_a_plain_grid_on_trained_digits(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    x = binary_test_digits[:60]
    estimate = Quadrature(tolerance=1e-4)(digits_vae, x)
    plain = log_marginal_by_quadrature(digits_vae, x)
    assert (estimate.value - plain).abs().max() < 3e-4
    assert estimate.std_error.max() < 1e-3
    assert estimate.evaluations < 401**2 / 10


@pytest.mark.slow
def test_a_finer_tolerance_costs_more_and_errs_less(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    coarse, fine = (Quadrature(t)(digits_vae, binary_test_digits[:40]) for t in (1.0, 1e-4))
    assert coarse.evaluations < fine.evaluations
    assert fine.std_error.mean() < coarse.std_error.mean()


def test_four_dimensions_are_too_many() -> None:
    with pytest.raises(EstimatorError, match="latent_dim of at most 3, and this model has 4"):
        Quadrature()(linear(4, 1.0), torch.zeros(1, 1, 2, 3))


def test_an_impossible_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="tolerance: must be positive"):
        Quadrature(0.0)


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = LinearGaussian()
    x = truth.sample(5)
    whole = Quadrature()(truth.vae, x)
    monkeypatch.setattr("vae_pyro.log_marginal.quadrature.rows_per_chunk", lambda *_: 150)
    torch.testing.assert_close(Quadrature()(truth.vae, x).value, whole.value)
    assert chunking.rows_per_chunk(truth.vae, x) > 150


@pytest.mark.parametrize("z", [[9.0], [12.0], [12.0, 3.0], [-15.0, 9.0], [11.0, -9.0, 0.0]])
def test_posteriors_outside_the_searched_box_are_followed(z: list[float]) -> None:
    vae = linear(len(z), 0.1)
    with torch.no_grad():
        vae.model.decoder[0].weight.copy_(torch.eye(6, len(z)))
        x = vae.model.decode(torch.tensor([z], dtype=torch.float64)).mean
    estimate, exact = Quadrature()(vae, x), Exact()(vae, x)
    assert (estimate.value - exact.value).abs() <= estimate.std_error
    assert estimate.std_error < 1e-3


@pytest.mark.parametrize("latent_dim", [1, 2, 3])
def test_a_peak_far_narrower_than_the_searching_grid_is_zoomed_into(latent_dim: int) -> None:
    """1/100 to 1/1000 of the grid's step, and a guide that knows nothing of it."""
    vae = linear(latent_dim, 5e-4)
    with torch.no_grad():
        x = vae.model.decode(torch.randn(20, latent_dim, dtype=torch.float64)).sample()
    estimate, exact = Quadrature()(vae, x), Exact()(vae, x)
    assert (
        (estimate.value - exact.value).abs() <= estimate.std_error + 1e-7
    ).all()  # the closed form rounds, too
    assert estimate.std_error.max() < 1e-3


def test_where_no_box_is_found_the_error_is_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vae_pyro.log_marginal.quadrature._MAX_MOVES", 1)
    vae = linear(1, 0.1)
    with torch.no_grad():
        x = vae.model.decode(torch.tensor([[30.0]], dtype=torch.float64)).mean
    assert Quadrature()(vae, x).std_error.item() == math.inf
