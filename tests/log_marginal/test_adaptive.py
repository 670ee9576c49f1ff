"""Adaptive importance sampling against closed forms and quadrature, and its budget."""

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from torch import Tensor

from tests.likelihoods.test_likelihoods import build, every_likelihood
from tests.linear_gaussian import LinearGaussian
from tests.log_marginal.test_pyro_program import CONSTRAINED
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import (
    AdaptiveImportanceSampling,
    Bound,
    Estimate,
    Exact,
    ImportanceSampling,
    PyroProgram,
    Quadrature,
)
from vae_pyro.networks import MLP
from vae_pyro.vae import VAE, build_vae

NOISE = 0.5


class Correlated:
    """z ~ N(0, I), x ~ N(W z, s^2 I): the posterior is correlated, and the guide is diagonal.

    Args:
        dims: of z and of x.
        shift: of the guide's mean, in its own standard deviations.
        stretch: of the guide's scale.
    """

    def __init__(self, dims: int, shift: float = 0.0, stretch: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(dims)
        weight = torch.randn(dims, dims, generator=generator, dtype=torch.float64)
        self.weight = weight / math.sqrt(dims)
        self.dims, self.shift, self.stretch = dims, shift, stretch
        eye = torch.eye(dims, dtype=torch.float64)
        self.covariance = self.weight @ self.weight.T + NOISE**2 * eye
        self.posterior = torch.linalg.inv(eye + self.weight.T @ self.weight / NOISE**2)
        self.program = PyroProgram(self._model, self._guide)

    def _model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dims), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.weight.T, NOISE).to_event(1), obs=x)

    def _guide(self, x: Tensor) -> None:
        scale = self.stretch / torch.linalg.inv(self.posterior).diagonal().sqrt()
        mean = x @ self.weight @ self.posterior / NOISE**2 + self.shift * scale / self.stretch
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def _evidence(self) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(torch.zeros(self.dims).double(), self.covariance)

    def sample(self, number: int) -> Tensor:
        x: Tensor = self._evidence().sample((number,))
        return x

    def log_marginal(self, x: Tensor) -> Tensor:
        value: Tensor = self._evidence().log_prob(x)
        return value


class TwoModes:
    """z ~ N(0, I), x_0 ~ N(|z_0|, s^2), x_d ~ N(z_d, 1): z_0 and -z_0 are equally likely.

    The guide knows the positive one only.
    """

    def __init__(self, dims: int, stretch: float = 1.0) -> None:
        self.dims, self.stretch = dims, stretch
        self.noise = torch.ones(dims, dtype=torch.float64)
        self.noise[0] = NOISE
        self.program = PyroProgram(self._model, self._guide)

    def _model(self, x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.dims), 1.0).to_event(1))
            mean = torch.cat([z[:, :1].abs(), z[:, 1:]], 1)
            pyro.sample("x", dist.Normal(mean, self.noise).to_event(1), obs=x)

    def _guide(self, x: Tensor) -> None:
        precision = 1 + self.noise**-2
        mean, scale = x / self.noise**2 / precision, self.stretch * precision**-0.5
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    def sample(self, number: int) -> Tensor:
        """With modes that are at least 2.5 standard deviations from 0 each."""
        z = torch.randn(number, self.dims, dtype=torch.float64)
        x = z + self.noise * torch.randn_like(z)
        x[:, 0] = 1.5 + torch.rand(number, dtype=torch.float64)
        return x

    def log_marginal(self, x: Tensor) -> Tensor:
        """2 N(x_0; 0, 1 + s^2) P(z_0 > 0 | z_0 is positive's posterior), and the rest normal."""
        width = (1 + self.noise**2).sqrt()
        log_p: Tensor = dist.Normal(torch.zeros_like(width), width).log_prob(x).sum(-1)
        positive = x[:, 0] / NOISE / width[0]
        return log_p + math.log(2) + torch.special.log_ndtr(positive)


def assert_exact(estimate: Estimate, exact: Tensor) -> None:
    """Unbiased for p(x), and within its own error bars, which are honest."""
    assert estimate.bound is Bound.LOWER
    number = len(exact)
    ratio = (estimate.value - exact).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(number)
    z_scores = (estimate.value - exact) / estimate.std_error
    assert z_scores.abs().max() < 4.5
    assert 0.8 < z_scores.std() < 1.3


def assert_reliable(estimate: Estimate) -> None:
    assert (estimate.diagnostics["pareto_k"] > 0.7).double().mean() <= 0.05


@pytest.mark.parametrize(
    ("dims", "shift", "stretch"),
    [
        (2, 0.0, 1.0),
        (2, 2.0, 0.2),
        (10, 2.0, 0.2),
        pytest.param(10, 5.0, 0.1, marks=pytest.mark.slow),
        pytest.param(50, 1.0, 0.3, marks=pytest.mark.slow),
    ],
)
def test_a_narrow_and_shifted_guide_is_mended(dims: int, shift: float, stretch: float) -> None:
    truth = Correlated(dims, shift, stretch)
    budget, num_images = (3000, 200) if dims < 50 else (5000, 40)
    x = truth.sample(num_images)
    exact = truth.log_marginal(x)
    estimate = AdaptiveImportanceSampling(budget)(truth.program, x)
    assert_exact(estimate, exact)
    if stretch < 1:
        assert_reliable(estimate)
        plain = ImportanceSampling(budget)(truth.program, x)
        assert (plain.value - exact).mean() < -5 * (estimate.value - exact).abs().mean()


@pytest.mark.parametrize(
    ("dims", "budget", "stretch"),
    [
        (2, 3000, 1.0),
        (2, 3000, 0.3),
        (4, 5000, 1.0),
        (4, 5000, 0.3),
        (10, 5000, 1.0),
        (10, 5000, 0.3),
        pytest.param(20, 5000, 1.0, marks=pytest.mark.slow),
        pytest.param(20, 5000, 0.3, marks=pytest.mark.slow),
        pytest.param(50, 15_000, 0.3, marks=pytest.mark.slow),
    ],
)
def test_a_mode_that_the_guide_does_not_know_is_found(
    dims: int, budget: int, stretch: float
) -> None:
    truth = TwoModes(dims, stretch)
    x = truth.sample(200 if dims < 50 else 60)
    exact = truth.log_marginal(x)
    estimate = AdaptiveImportanceSampling(budget)(truth.program, x)
    assert_exact(estimate, exact)
    assert_reliable(estimate)
    # Half of p(x), which is that of the other mode, is missing from plain importance sampling.
    plain = ImportanceSampling(budget)(truth.program, x)
    assert (plain.value - exact).median() < -0.5


def test_repeats_for_one_image_average_to_its_likelihood() -> None:
    """The least budget, where the fit is worst and the estimate must be unbiased all the same."""
    truth = Correlated(2, 1.0, 0.5)
    x = truth.sample(1)
    estimate = AdaptiveImportanceSampling(100)(truth.program, x.expand(2000, -1))
    ratio = (estimate.value - truth.log_marginal(x)).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(2000)


def test_repeats_are_independent_of_the_pilot_samples() -> None:
    """Weights that were used for the fit as well would be too high on average."""
    truth = Correlated(10, 1.0, 0.5)
    x = truth.sample(1)
    estimate = AdaptiveImportanceSampling(400)(truth.program, x.expand(1000, -1))
    ratio = (estimate.value - truth.log_marginal(x)).exp()
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(1000)


def test_a_linear_gaussian_vae_has_the_evidence_in_closed_form() -> None:
    truth = LinearGaussian(shift=0.5, stretch=0.2)
    x = truth.sample(300)
    assert_exact(AdaptiveImportanceSampling(3000)(truth.vae, x), Exact()(truth.vae, x).value)


@pytest.mark.parametrize("name", CONSTRAINED)
def test_constrained_latents_have_the_evidence_in_closed_form(name: str) -> None:
    program, x, log_marginal = CONSTRAINED[name]
    x = x.repeat(30, *[1] * (x.dim() - 1))
    exact = torch.from_numpy(log_marginal(x.numpy()))
    assert_exact(AdaptiveImportanceSampling(3000)(program, x), exact)


def digits_like(guide: type[Guide] = DiagNormal, latent_dim: int = 2) -> tuple[VAE, Tensor]:
    """A small untrained VAE and 30 of its own images."""
    network = MLP((16,), "tanh")
    vae = build_vae(latent_dim, (1, 3, 4), network, Bernoulli(17), guide, seed=None).eval()
    return vae, vae.sample(30)


class DecodedRows:
    """Counts what the decoder decodes, per image; with a gradient twice."""

    def __init__(self, vae: VAE) -> None:
        self.count = 0
        vae.model.decoder.register_forward_pre_hook(self)

    def __call__(self, _decoder: torch.nn.Module, inputs: tuple[Tensor]) -> None:
        # (points, 1 or images, D): a point that all images share is one of each.
        (z,) = inputs
        self.count += len(z) * (2 if z.requires_grad else 1)


@pytest.mark.parametrize("num_images", [1, 10])
@pytest.mark.parametrize("latent_dim", [1, 2, 3, 4, 20, 50])
@pytest.mark.parametrize("budget", [100, 777, 3000])
def test_no_more_is_decoded_than_the_budget(budget: int, latent_dim: int, num_images: int) -> None:
    vae, x = digits_like(latent_dim=latent_dim)
    decoded = DecodedRows(vae)
    estimate = AdaptiveImportanceSampling(budget)(vae, x[:num_images])
    assert estimate.evaluations == budget
    assert decoded.count <= budget
    assert 0 < estimate.num_weights < budget


def test_small_chunks_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, x = digits_like()
    decoded = DecodedRows(vae)
    monkeypatch.setattr("vae_pyro.log_marginal.target.rows_per_chunk", lambda *_: 170 * len(x))
    AdaptiveImportanceSampling(1000)(vae, x)
    assert decoded.count <= 1000


@pytest.mark.parametrize("guide", [DiagNormal, FullRankNormal, Flow])
def test_every_guide_can_be_improved(guide: type[Guide]) -> None:
    vae, x = digits_like(guide)
    estimate = AdaptiveImportanceSampling(2000)(vae, x)
    z_scores = (estimate.value - Quadrature()(vae, x).value) / estimate.std_error
    assert z_scores.abs().max() < 4.5


@pytest.mark.slow
@every_likelihood
def test_every_likelihood_agrees_with_quadrature(name: str) -> None:
    vae = build_vae(2, (1, 3, 4), MLP((16,), "tanh"), build(name), DiagNormal, seed=None).eval()
    images = torch.randint(0, 5, (40, 1, 3, 4), dtype=torch.uint8)
    x = vae.model.likelihood.prepare(images, torch.Generator().manual_seed(0))
    estimate = AdaptiveImportanceSampling(3000)(vae, x)
    z_scores = (estimate.value - Quadrature()(vae, x).value) / estimate.std_error
    assert z_scores.abs().max() < 4.5
    assert 0.7 < z_scores.std() < 1.4


@pytest.mark.parametrize("scale", [3.0, 6.0])
def test_narrow_posteriors_with_kinks_agree_with_quadrature(scale: float) -> None:
    """A decoder of ReLUs, with weights so large that posteriors are narrow and have corners."""
    vae = build_vae(2, (1, 4, 4), MLP((32,), "relu"), Bernoulli(17), seed=None).eval()
    with torch.no_grad():
        for weight in vae.model.decoder.parameters():
            weight.mul_(scale)
    x = vae.sample(100)
    exact = Quadrature()(vae, x)
    estimate = AdaptiveImportanceSampling(3000)(vae, x)
    difference = estimate.mean() - exact.mean()
    # Jensen: below by half a variance.
    jensen = estimate.std_error.square().mean() / 2
    tolerance = 4.5 * estimate.mean_std_error() + exact.mean_std_error()
    assert abs(difference + jensen) < tolerance
    plain = ImportanceSampling(3000)(vae, x)
    assert estimate.mean_std_error() < plain.mean_std_error()


def test_the_same_seed_gives_the_same_numbers() -> None:
    vae, x = digits_like()
    values = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        values.append(AdaptiveImportanceSampling(500)(vae, x).value)
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_one_image_has_a_value() -> None:
    truth = LinearGaussian(stretch=0.5)
    x = truth.sample(1)
    estimate = AdaptiveImportanceSampling(2000)(truth.vae, x)
    assert estimate.value.shape == (1,)
    assert abs(estimate.value - Exact()(truth.vae, x).value) < 4.5 * estimate.std_error


@pytest.mark.parametrize("module", ["adaptive", "target", "hamiltonian"])
def test_many_images_in_parts_all_have_values(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = LinearGaussian(stretch=0.5)
    x = truth.sample(50)
    if module == "adaptive":
        monkeypatch.setattr("vae_pyro.log_marginal.adaptive._NUMBERS_AT_ONCE", 7 * 1000 * 2)
    else:
        monkeypatch.setattr(f"vae_pyro.log_marginal.{module}.rows_per_chunk", lambda *_: 333)
    shares: list[float] = []
    estimator = AdaptiveImportanceSampling(1000)
    estimate = estimator(truth.vae, x, lambda share, _: shares.append(share))
    assert estimate.value.shape == estimate.std_error.shape == (50,)
    assert estimate.evaluations == 1000
    z_scores = (estimate.value - Exact()(truth.vae, x).value) / estimate.std_error
    assert z_scores.abs().max() < 4.5
    assert shares[-1] == pytest.approx(1)


def test_progress_never_goes_back() -> None:
    truth = LinearGaussian()
    shares: list[float] = []
    AdaptiveImportanceSampling(1000)(
        truth.vae, truth.sample(5), lambda share, _: shares.append(share)
    )
    assert shares == sorted(shares)


def test_the_least_budget_works_and_less_is_refused() -> None:
    for latent_dim in (1, 2, 5, 50):
        vae, x = digits_like(latent_dim=latent_dim)
        estimate = AdaptiveImportanceSampling(100)(vae, x)
        assert estimate.value.isfinite().all()
        assert estimate.std_error.isfinite().all()
    with pytest.raises(ValueError, match="num_evaluations: must be at least 100, got 99"):
        AdaptiveImportanceSampling(99)


class Overflowing(torch.nn.Module):
    """A decoder without numbers far from 0."""

    def __init__(self, decoder: torch.nn.Module, radius: float) -> None:
        super().__init__()
        self.decoder, self.radius = decoder, radius

    def forward(self, z: Tensor) -> Tensor:
        far = z.norm(dim=-1) > self.radius
        return torch.where(far[..., None, None, None, None], torch.nan, self.decoder(z))


@pytest.mark.parametrize(
    "radius",
    [2.0, 0.5],
)
def test_where_the_decoder_overflows_there_is_no_weight(radius: float) -> None:
    vae, x = digits_like()
    vae.model.decoder = Overflowing(vae.model.decoder, radius)
    estimate = AdaptiveImportanceSampling(2000)(vae, x)
    assert estimate.value.isfinite().all()
    # The integral over the disk that is left, by polar coordinates.
    r = torch.linspace(0, radius * (1 - 1e-6), 401, dtype=torch.float64)
    angle = torch.arange(64, dtype=torch.float64) / 64 * 2 * math.pi
    z = r[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    with torch.no_grad():
        log_p = vae.model.decode(z.float()[:, :, None]).log_prob(x).double()
    log_p = log_p - z.square().sum(-1, keepdim=True) / 2
    exact = torch.trapezoid((log_p.exp() * r[:, None, None]).mean(1), r, dim=0).log()
    z_scores = (estimate.value - exact) / estimate.std_error
    assert z_scores.abs().max() < 4.5
