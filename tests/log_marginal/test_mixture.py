"""Mixtures of Student t distributions against Pyro's, their own moments, and a known truth."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyro import distributions as dist
from torch import Tensor

from vae_pyro.log_marginal.mixture import StudentMixture, spread_out, tempered, with_ridge


def a_mixture(batch: int, components: int, dims: int) -> StudentMixture:
    loc = 3 * torch.randn(batch, components, dims, dtype=torch.float64)
    factor = torch.randn(batch, components, dims, dims, dtype=torch.float64)
    share = (torch.rand(batch, components, dtype=torch.float64) + 0.2).log().softmax(1)
    return StudentMixture(loc, factor @ factor.mT + 0.5 * torch.eye(dims), share)


@pytest.mark.parametrize(("components", "dims"), [(1, 1), (3, 2), (2, 10), (4, 30)])
def test_the_density_is_that_of_pyros_student_t(components: int, dims: int) -> None:
    mixture = a_mixture(5, components, dims)
    assert mixture.freedom == max(5, 2 * dims)
    z = 4 * torch.randn(5, 7, dims, dtype=torch.float64)
    df = torch.tensor(mixture.freedom, dtype=torch.float64)
    parts = dist.MultivariateStudentT(df, mixture.loc, torch.linalg.cholesky(mixture.scale))
    each = parts.log_prob(z.transpose(0, 1)[:, :, None]) + mixture.share.log()
    torch.testing.assert_close(mixture.log_prob(z), each.logsumexp(-1).T)
    wide = dist.MultivariateStudentT(df, mixture.loc, torch.linalg.cholesky(2 * mixture.scale))
    each = wide.log_prob(z.transpose(0, 1)[:, :, None]) + mixture.share.log()
    torch.testing.assert_close(mixture.widened(2.0).log_prob(z), each.logsumexp(-1).T)


def test_the_density_integrates_to_one() -> None:
    mixture = a_mixture(4, 3, 1)
    grid = torch.linspace(-1000, 1000, 400_001, dtype=torch.float64)
    density = mixture.log_prob(grid[None, :, None].expand(4, -1, -1)).exp()
    # Outside lies less than the tail of five degrees of freedom: of the order of 1000^-5.
    torch.testing.assert_close(
        torch.trapezoid(density, grid), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-9
    )


def test_samples_have_the_moments_of_the_mixture() -> None:
    mixture, number = a_mixture(3, 3, 2), 100_000
    z = mixture.sample(number)
    mean = (mixture.share[..., None] * mixture.loc).sum(1)
    nu = mixture.freedom
    apart = mixture.loc - mean[:, None]
    within = nu / (nu - 2) * mixture.scale + apart[..., None] * apart[..., None, :]
    covariance = (mixture.share[..., None, None] * within).sum(1)
    std_error = z.std(1) / math.sqrt(number)
    assert ((z.mean(1) - mean) / std_error).abs().max() < 4.5
    away = z - mean[:, None]
    products = away[..., None] * away[..., None, :]
    std_error = products.std(1) / math.sqrt(number)
    assert ((products.mean(1) - covariance) / std_error).abs().max() < 4.5


def test_samples_follow_the_density() -> None:
    """E[f(z) / t(z)] over samples of t is the integral of f: one, of any other density f."""
    mixture, number = a_mixture(20, 2, 5), 20_000
    z = mixture.sample(number)
    other = dist.MultivariateNormal(mixture.loc[:, :1], mixture.scale[:, :1])
    ratio = (other.log_prob(z) - mixture.log_prob(z)).exp()
    z_scores = (ratio.mean(1) - 1) / (ratio.std(1) / math.sqrt(number))
    assert z_scores.abs().max() < 4.5


def test_fitting_weighted_samples_recovers_the_means() -> None:
    batch, number = 60, 4000
    loc = torch.tensor([[-4.0, 0.0], [4.0, 3.0]], dtype=torch.float64)
    scale = torch.tensor([[[1.0, 0.6], [0.6, 1.0]], [[0.5, 0], [0, 2.0]]], dtype=torch.float64)
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    truth = StudentMixture(
        loc.expand(batch, -1, -1), scale.expand(batch, -1, -1, -1), share.expand(batch, -1)
    )
    wide = truth.widened(3.0)
    z = wide.sample(number)
    weights = (truth.log_prob(z) - wide.log_prob(z)).softmax(1)
    mixture = StudentMixture(
        truth.loc + torch.tensor([1.0, -1.0]),
        torch.eye(2).expand_as(scale).to(truth.scale) + torch.zeros_like(truth.scale),
        torch.full_like(truth.share, 0.5),
    )
    for _ in range(40):
        mixture = mixture.fitted(z, weights, towards=mixture.scale)
    # The 60 fits are independent: their spread is the standard error of their mean.
    std_error = mixture.loc.std(0) / math.sqrt(batch)
    assert ((mixture.loc.mean(0) - loc) / std_error).abs().max() < 4.5
    assert mixture.loc.std(0).max() < 0.1
    # The ridge adds a thousandth to the diagonal, in proportion to how far one step moves.
    std_error = mixture.scale.std(0) / math.sqrt(batch)
    ridge = 2e-3 * scale.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    assert ((mixture.scale.mean(0) - scale).abs() < 4.5 * std_error + ridge).all()
    assert (mixture.share.sum(1) - 1).abs().max() < 1e-12
    # The least share of 0.02 for each is the only thing that moves the shares.
    std_error = mixture.share.std(0) / math.sqrt(batch)
    expected = (share + 0.02) / 1.04
    assert ((mixture.share.mean(0) - expected) / std_error).abs().max() < 4.5


def test_a_fit_raises_the_likelihood() -> None:
    mixture = a_mixture(10, 3, 2)
    z = mixture.sample(2000)
    weights = torch.full((10, 2000), 1 / 2000, dtype=torch.float64)
    now = a_mixture(10, 3, 2)
    before = now.log_prob(z).mean(1)
    for _ in range(20):
        now = now.fitted(z, weights, towards=now.scale)
    after = now.log_prob(z).mean(1)
    assert (after > before).all()


def test_a_component_without_weight_is_left_alone() -> None:
    mixture = a_mixture(2, 2, 2)
    dead = StudentMixture(mixture.loc, mixture.scale, torch.tensor([[1.0, 0.0]] * 2).double())
    z = dead.sample(100)
    weights = torch.full((2, 100), 0.01, dtype=torch.float64)
    fitted = dead.fitted(z, weights, towards=dead.scale)
    assert torch.equal(fitted.loc[:, 1], dead.loc[:, 1])
    assert torch.equal(fitted.scale[:, 1], dead.scale[:, 1])
    assert fitted.share.tolist() == [[1.0, 0.0]] * 2
    assert fitted.log_prob(z).isfinite().all()


def test_few_samples_leave_the_scale_invertible() -> None:
    mixture = a_mixture(3, 1, 10)
    z = mixture.sample(4)
    weights = torch.full((3, 4), 0.25, dtype=torch.float64)
    fitted = mixture.fitted(z, weights, towards=mixture.scale)
    assert torch.linalg.eigvalsh(fitted.scale).min() > 0


@pytest.mark.parametrize("dims", [2, 40])
def test_many_steps_on_few_samples_do_not_forget_the_scale_they_are_drawn_towards(
    dims: int,
) -> None:
    """The limit of one component: 6 (D + 2) samples' worth of it, and what the samples say."""
    number = 3 * dims
    truth = a_mixture(4, 1, dims)
    z, towards = truth.sample(number), truth.scale
    weights = torch.full((4, number), 1 / number, dtype=torch.float64)
    now = truth
    for _ in range(300):
        now = now.fitted(z, weights, towards)
    nu = truth.freedom
    for image in range(4):
        away = z[image] - now.loc[image, 0]
        inverse = torch.linalg.inv(now.scale[image, 0])
        pull = (nu + dims) / (nu + torch.einsum("si,ij,sj->s", away, inverse, away))
        scatter = torch.einsum("s,si,sj->ij", pull, away, away) / number
        worth = 6 * (dims + 2)
        expected = (number * scatter + worth * towards[image, 0]) / (number + worth)
        assert torch.allclose(now.scale[image, 0], expected, rtol=5e-3, atol=5e-3)  # the ridge


def test_the_lightest_component_moves_to_a_sample_of_much_weight() -> None:
    mixture = a_mixture(2, 3, 2)
    share = torch.tensor([[0.6, 0.1, 0.3]] * 2, dtype=torch.float64)
    mixture = StudentMixture(mixture.loc, mixture.scale, share)
    z = mixture.sample(10)
    weights = torch.full((2, 10), 0.1, dtype=torch.float64)
    weights[0] = 0.05
    weights[0, 7] = 0.55
    moved = mixture.reseeded(z, weights)
    assert torch.equal(moved.loc[0, 1], z[0, 7])
    assert torch.equal(moved.scale[0, 1], mixture.scale[0, 0])  # the width of the heaviest
    torch.testing.assert_close(moved.share[0], torch.tensor([0.6, 0.2, 0.3]).double() / 1.1)
    assert torch.equal(moved.loc[0, ::2], mixture.loc[0, ::2])
    for name in ("loc", "scale", "share"):
        torch.testing.assert_close(getattr(moved, name)[1], getattr(mixture, name)[1])


def test_one_component_is_never_moved() -> None:
    mixture = a_mixture(1, 1, 2)
    weights = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert mixture.reseeded(mixture.sample(2), weights) is mixture


def test_each_image_has_the_mixture_that_is_chosen_for_it() -> None:
    one, other = a_mixture(3, 2, 2), a_mixture(3, 2, 2)
    z = one.sample(5)
    chosen = one.where(torch.tensor([True, False, True]), other).log_prob(z)
    assert torch.equal(chosen[::2], one.log_prob(z)[::2])
    assert torch.equal(chosen[1], other.log_prob(z)[1])


def test_centres_are_spread_over_all_clusters() -> None:
    """In all of 50 images: within a cluster the samples are 1000 times closer than between."""
    clusters = torch.tensor([[0.0, 0], [100, 0], [0, 100], [100, 100]], dtype=torch.float64)
    z = clusters.repeat_interleave(25, 0) + 0.1 * torch.randn(50, 100, 2, dtype=torch.float64)
    weights = torch.full((50, 100), 0.01, dtype=torch.float64)
    weights[:, 3] *= 2
    weights /= weights.sum(1, keepdim=True)
    mixture = spread_out(z, weights, 4)
    assert torch.equal(mixture.loc[:, 0], z[:, 3])  # the heaviest is the first
    nearest = (mixture.loc[:, :, None] - clusters).norm(dim=-1).argmin(-1).sort(1).values
    assert torch.equal(nearest, torch.arange(4).expand(50, -1))
    assert torch.equal(mixture.share, torch.full((50, 4), 0.25, dtype=torch.float64))
    mean = weights[:, None] @ z
    scatter = torch.einsum("bn,bni,bnj->bij", weights, z - mean, z - mean) / 4
    expected = with_ridge(scatter)[:, None].expand(-1, 4, -1, -1)
    torch.testing.assert_close(mixture.scale, expected, rtol=1e-6, atol=1e-3)


def effective_size(weights: Tensor) -> Tensor:
    return 1 / weights.square().sum(1)


@given(
    st.integers(0, 10_000),
    st.integers(2, 60),
    st.floats(0.0, 0.99),
    st.floats(1e-3, 1e4),
)
def test_tempered_weights_have_the_effective_size_that_is_asked_for(
    seed: int, number: int, part: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_w = spread * torch.randn(5, number, generator=generator, dtype=torch.float64)
    asked = 1 + part * (number - 1)
    weights, raw = tempered(log_w, asked), log_w.softmax(1)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(5, dtype=torch.float64))
    assert (effective_size(weights) >= asked * (1 - 1e-9)).all()
    enough = effective_size(raw) >= asked
    # After 20 halvings the power is 1 to 1e-6, where 1 is enough.
    assert ((weights[enough] / raw[enough]).log().nan_to_num().abs() <= 1e-4 * spread).all()
    # The order of the weights is kept.
    order = log_w.argsort(1)
    assert (weights.gather(1, order).diff(dim=1) >= -1e-12).all()


def test_no_more_than_needed_is_tempered() -> None:
    log_w = 5 * torch.randn(50, 200, dtype=torch.float64)
    weights = tempered(log_w, 40.0)
    assert (effective_size(log_w.softmax(1)) < 40).all()
    torch.testing.assert_close(
        effective_size(weights), torch.full((50,), 40.0, dtype=torch.float64), rtol=1e-3, atol=0
    )


def test_weights_of_nothing_stay_nothing() -> None:
    log_w = torch.tensor([[0.0, 3.0, 1.0, -math.inf]], dtype=torch.float64)
    weights = tempered(log_w, 2.5)
    assert weights[0, 3] == 0
    assert effective_size(weights) == pytest.approx(2.5, rel=1e-3)
