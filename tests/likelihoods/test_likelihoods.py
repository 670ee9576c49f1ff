"""Each likelihood is a distribution over its own kind of x."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor
from torch.autograd import gradcheck

from vae_pyro.errors import DataError
from vae_pyro.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Likelihood,
    Normal,
    NormalHeteroscedastic,
    NormalLearnedScale,
    Support,
)
from vae_pyro.likelihoods.preparation import dequantise

FAMILY: dict[str, Callable[[int | None], Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous_bernoulli": ContinuousBernoulli,
    "beta": Beta,
    "normal": Normal,
    "normal_learned_scale": NormalLearnedScale,
    "normal_heteroscedastic": NormalHeteroscedastic,
    "categorical": Categorical,
    "discretized_logistic_mixture": DiscretizedLogisticMixture,
}
every_likelihood = pytest.mark.parametrize("name", FAMILY)


def build(name: str, num_levels: int = 5) -> Likelihood:
    return FAMILY[name](num_levels)


def parameters(likelihood: Likelihood, *batch: int, shape: tuple[int, ...] = (2, 2, 3)) -> Tensor:
    return torch.randn(*batch, likelihood.num_parameters, *shape, dtype=torch.float64)


def some_x(likelihood: Likelihood, *shape: int) -> Tensor:
    """x of the likelihood's own kind, float64."""
    num_levels = likelihood.num_levels
    images = torch.randint(0, num_levels, shape, dtype=torch.uint8)
    return likelihood.prepare(images, torch.Generator().manual_seed(0)).double()


def values_of_a_pixel(likelihood: Likelihood) -> tuple[Tensor, Tensor]:
    """Points and weights of a quadrature (or a sum) over everything that one pixel can be."""
    if likelihood.support is Support.BINARY:
        return torch.tensor([0.0, 1.0]).double(), torch.ones(2).double()
    if likelihood.support is Support.LEVELS:
        num_levels = likelihood.num_levels
        return torch.arange(num_levels).double() / (num_levels - 1), torch.ones(num_levels).double()
    t = torch.linspace(-36, 36, 20_001, dtype=torch.float64)
    if likelihood.support is Support.UNIT_INTERVAL:  # x = sigmoid(t) tames the ends
        x = torch.sigmoid(t)
        return x, (t[1] - t[0]) * x * torch.sigmoid(-t)
    return t, (t[1] - t[0]).expand(len(t))


@every_likelihood
def test_a_pixel_integrates_to_one(name: str) -> None:
    likelihood = build(name).double()
    x, weight = values_of_a_pixel(likelihood)
    p = parameters(likelihood, 40, shape=(1, 1, 1))
    if name == "beta":
        p[:, 1] += 4  # below, much of its mass lies nearer to 0 than the smallest number
    p_x = likelihood(p)
    mass = (p_x.log_prob(x.reshape(-1, 1, 1, 1, 1)).exp() * weight[:, None]).sum(0)
    assert mass.shape == (40,)
    torch.testing.assert_close(mass, torch.ones(40).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["bernoulli", "categorical", "discretized_logistic_mixture"])
def test_probabilities_of_all_tiny_images_sum_to_one(name: str) -> None:
    likelihood = build(name, num_levels=3)
    values = values_of_a_pixel(likelihood)[0].tolist()
    images = torch.tensor(list(product(values, repeat=6))).double().reshape(-1, 1, 2, 3)
    p_x = likelihood(3 * parameters(likelihood, 5, shape=(1, 2, 3)))
    log_p = p_x.log_prob(images[:, None])
    assert log_p.shape == (len(images), 5)
    assert (log_p <= 0).all()
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5).double())


def by_hand(name: str, p: np.ndarray, x: np.ndarray, likelihood: Likelihood) -> np.ndarray:
    """log p per pixel from the formula in the docstring, by numpy and scipy; p is (P, ...)."""
    softplus, level = np.logaddexp(0, p), np.rint(x * 4).astype(int)

    def truncated_exponential() -> np.ndarray:
        rate = np.abs(p[0])
        return stats.truncexpon.logpdf(np.where(p[0] < 0, x, 1 - x), rate, scale=1 / rate)

    def beta() -> np.ndarray:
        nu, m = np.exp(p[1]), special.expit(p[0])
        return stats.beta.logpdf(x, nu * m + 1e-3, nu * (1 - m) + 1e-3)

    def mixture() -> np.ndarray:
        weight, loc, scale = special.softmax(p[:5], 0), p[5:10], softplus[10:] + 1e-3
        upper = np.where(level == 4, np.inf, (level + 0.5) / 4)
        lower = np.where(level == 0, -np.inf, (level - 0.5) / 4)
        mass = stats.logistic.cdf(upper, loc, scale) - stats.logistic.cdf(lower, loc, scale)
        return np.log((weight * mass).sum(0))

    formulas = {
        "bernoulli": lambda: stats.bernoulli.logpmf(x, special.expit(p[0])),
        "continuous_bernoulli": truncated_exponential,
        "beta": beta,
        "normal": lambda: stats.norm.logpdf(x, p[0], 0.1),
        "normal_learned_scale": lambda: stats.norm.logpdf(x, p[0], likelihood.scale.item()),
        "normal_heteroscedastic": lambda: stats.norm.logpdf(x, p[0], softplus[1] + 1e-3),
        "categorical": lambda: np.take_along_axis(special.log_softmax(p, 0), level[None], 0)[0],
        "discretized_logistic_mixture": mixture,
    }
    return formulas[name]()


@every_likelihood
def test_log_prob_is_the_formula(name: str) -> None:
    likelihood = build(name).double()
    p, x = parameters(likelihood, 4), some_x(likelihood, 4, 2, 2, 3)
    found = likelihood(p).log_prob(x)
    expected = by_hand(name, p.movedim(1, 0).numpy(), x.numpy(), likelihood).sum((-1, -2, -3))
    torch.testing.assert_close(found.detach(), torch.from_numpy(expected))


@every_likelihood
def test_gradient_is_the_finite_difference(name: str) -> None:
    likelihood = build(name).double()
    x = some_x(likelihood, 3, 1, 2, 2)
    p = parameters(likelihood, 3, shape=(1, 2, 2)).requires_grad_()
    own = [parameter.detach().clone().requires_grad_() for parameter in likelihood.parameters()]

    def log_prob(p: Tensor, *own: Tensor) -> Tensor:
        names = [key for key, _ in likelihood.named_parameters()]
        call = (likelihood, dict(zip(names, own, strict=True)), (p,))
        return torch.func.functional_call(*call).log_prob(x)

    assert gradcheck(log_prob, (p, *own))


def edges(likelihood: Likelihood) -> list[float]:
    if likelihood.support is Support.UNIT_INTERVAL:
        return [2**-30, 0.5, 1 - 2**-24]  # the outermost that preparing can give
    return [0.0, 1.0] if likelihood.support is Support.BINARY else [0.0, 0.5, 1.0]


@every_likelihood
def test_extremes_are_finite_in_float32(name: str) -> None:
    likelihood = build(name)
    if isinstance(likelihood, NormalLearnedScale):
        likelihood.raw_scale.data = torch.tensor(-50.0)  # at its floor
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([-50.0, 0.0, 50.0])
    if likelihood.num_parameters <= 2:
        grid = torch.cartesian_prod(*[corners] * likelihood.num_parameters)
    else:
        size = (400, likelihood.num_parameters)
        grid = corners[torch.randint(0, 3, size, generator=generator)]
    p = grid.reshape(-1, likelihood.num_parameters, 1, 1, 1).requires_grad_()
    for x in edges(likelihood):
        log_p = likelihood(p).log_prob(torch.full((1, 1, 1), x))
        gradients = torch.autograd.grad(log_p.sum(), [p, *likelihood.parameters()])
        assert log_p.dtype == torch.float32
        assert log_p.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


@every_likelihood
def test_draws_have_their_moments_and_pass_the_check(name: str) -> None:
    likelihood = build(name)
    p_x, n = likelihood(parameters(likelihood, 2).float()), 20_000
    draws = p_x.sample((n,)).detach()
    likelihood.check(draws)
    mean = p_x.mean.detach()
    assert ((draws.mean(0) - mean).abs() < 4.5 * draws.std(0) / n**0.5).all()
    if likelihood.support is not Support.LEVELS:  # those, by enumeration, with the distributions
        squares = (draws - mean).square()
        std_error = squares.std(0) / n**0.5
        assert ((squares.mean(0) - p_x.variance.detach()).abs() < 4.5 * std_error + 1e-6).all()


@every_likelihood
@given(st.integers(2, 256), st.integers(0, 2**32 - 1))
def test_every_level_is_prepared_into_the_support(name: str, num_levels: int, seed: int) -> None:
    likelihood = build(name, num_levels)
    images = torch.arange(num_levels, dtype=torch.uint8).reshape(1, 1, 1, -1)
    x = likelihood.prepare(images, torch.Generator().manual_seed(seed))
    assert x.dtype == torch.float32
    likelihood.check(x)
    if likelihood.support is not Support.BINARY:  # the level can be read off again
        centre, cells, half = images.double(), num_levels - 1, 0.0
        if likelihood.support.is_continuous:
            centre, cells, half = centre + 0.5, num_levels, 0.5
        assert ((x.double() * cells - centre).abs() <= half + 1e-4).all()


@pytest.mark.parametrize(
    ("name", "x", "way_out"),
    [
        ("bernoulli", 0.5, "Binarise"),
        ("bernoulli", -1.0, "Binarise"),
        ("bernoulli", float("nan"), "Binarise"),
        ("continuous_bernoulli", 0.0, "Dequantise"),
        ("continuous_bernoulli", 16.0, "normal_learned_scale"),
        ("beta", 1.0, "Dequantise"),
        ("beta", float("nan"), "Dequantise"),
        ("normal", float("inf"), "not finite"),
        ("normal_learned_scale", float("nan"), "not finite"),
        ("normal_heteroscedastic", float("-inf"), "not finite"),
        ("categorical", 0.3, "Divide the levels by L - 1"),
        ("categorical", 1.25, "Divide the levels by L - 1"),
        ("discretized_logistic_mixture", 3.0, "Divide the levels by L - 1"),
        ("discretized_logistic_mixture", float("nan"), "Divide the levels by L - 1"),
    ],
)
def test_what_is_outside_the_support_is_refused(name: str, x: float, way_out: str) -> None:
    likelihood = build(name)
    inside = some_x(likelihood, 1, 1, 1, 1).item()
    with pytest.raises(DataError, match="1 of 2 pixel values") as caught:
        likelihood.check(torch.tensor([x, inside]).reshape(1, 1, 1, 2))
    assert way_out in str(caught.value)
    assert type(likelihood).__name__ in str(caught.value)


@every_likelihood
def test_real_valued_data_are_for_normals_only(name: str) -> None:
    if name.startswith("normal"):
        images = torch.randn(2, 1, 3, 3)
        likelihood = FAMILY[name](None)
        assert torch.equal(likelihood.prepare(images, torch.Generator()), images)
        assert likelihood.log_cell_width is None
    else:
        with pytest.raises(DataError, match="likelihood=normal"):
            FAMILY[name](None)


@every_likelihood
def test_the_starting_parameters_say_what_the_training_images_say(name: str) -> None:
    likelihood = build(name)
    torch.manual_seed(1)
    images = torch.randint(0, 5, (3000, 1, 1, 4)).clamp(max=torch.tensor([1, 2, 3, 4]))
    x = likelihood.prepare(images.to(torch.uint8), torch.Generator().manual_seed(0))
    start = likelihood.initial_parameters(x)
    assert start.shape == (likelihood.num_parameters, 1, 1, 4)
    p_x = likelihood(start)
    if name == "discretized_logistic_mixture":  # it covers all levels alike
        levels = torch.arange(5).reshape(5, 1, 1, 1) / 4
        log_p = likelihood(start[..., :1]).log_prob(levels)
        assert log_p.exp().min() > 0.1
        return
    tolerance = 5 / 3000 if name == "categorical" else 2e-3
    torch.testing.assert_close(p_x.mean.detach(), x.mean(0), atol=tolerance, rtol=0)
    if name in ("beta", "normal_heteroscedastic"):
        torch.testing.assert_close(p_x.variance, x.var(0), atol=1e-3, rtol=0.02)


def test_a_dequantised_density_bounds_the_probability_of_the_image() -> None:
    """E_u[log p(x)] + log cell volume <= log P(image), with equality where p is flat."""
    likelihood = NormalHeteroscedastic(5)
    p = torch.tensor([0.4, -3.0]).reshape(2, 1, 1, 1).double()
    scale = np.logaddexp(0, -3.0) + 1e-3
    for level in range(5):
        images = torch.full((200_000, 1, 1, 1), level, dtype=torch.uint8)
        log_p = likelihood(p).log_prob(dequantise(images, 5, torch.Generator().manual_seed(0)))
        bound, std_error = log_p.mean() + likelihood.log_cell_width, log_p.std() / 200_000**0.5
        edges = np.array([level, level + 1]) / 5
        exact = np.log(np.diff(stats.norm.cdf(edges, 0.4, scale)))[0]
        # The expectation itself, by quadrature over the cell.
        points = np.linspace(edges[0], edges[1], 10_001)
        expectation = np.trapezoid(stats.norm.logpdf(points, 0.4, scale), points) * 5 - np.log(5)
        assert abs(bound.item() - expectation) < 4.5 * std_error.item()
        assert expectation < exact
    flat = ContinuousBernoulli(5)
    x = dequantise(torch.zeros(9, 1, 2, 2, dtype=torch.uint8), 5, torch.Generator())
    log_p = flat(torch.zeros(1, 1, 2, 2)).log_prob(x) + 4 * flat.log_cell_width
    torch.testing.assert_close(log_p, torch.full((9,), -4 * np.log(5)).float())


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Normal(5, scale=0), "scale"),
        (lambda: Normal(5, scale=float("nan")), "scale"),
        (lambda: NormalLearnedScale(5, initial_scale=1e-4), "initial_scale"),
        (lambda: NormalHeteroscedastic(5, min_scale=0), "min_scale"),
        (lambda: DiscretizedLogisticMixture(5, num_components=0), "num_components"),
        (lambda: DiscretizedLogisticMixture(5, min_scale=-1), "min_scale"),
    ],
)
def test_options_out_of_range_are_named(make: Callable[[], Likelihood], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}: must be"):
        make()


def test_a_betas_concentration_has_a_ceiling() -> None:
    """Its spread at m = 1/2 is never below 5e-4, whatever the decoder says."""
    p_x = Beta(256)(torch.tensor([0.0, 500.0]).reshape(2, 1, 1, 1))
    assert p_x.variance.sqrt().item() == pytest.approx(5e-4, rel=1e-3)
    assert p_x.log_prob(torch.full((1, 1, 1), 0.3)).isfinite()
