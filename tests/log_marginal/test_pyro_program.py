"""A user's own model and guide against closed forms, and errors in words."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch
from pyro import distributions as dist
from scipy import stats
from torch import Tensor

from tests.conftest import ROOT
from tests.linear_gaussian import LinearGaussian
from vae_pyro.errors import DataError, EstimatorError
from vae_pyro.evaluation.latent import information, kl_per_dimension, posterior_means
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    ELBOBound,
    Estimator,
    Exact,
    ImportanceSampling,
    IWAEBound,
    LocalELBO,
    PriorSampling,
    PyroProgram,
    Quadrature,
    ReverseAIS,
    Start,
    bidirectional,
    elbo_parts,
    estimate_together,
)

BUDGET = {"num_temperatures": 60, "num_chains": 32, "num_leapfrog": 4}
SMALL = {"num_temperatures": 20, "num_chains": 32, "num_leapfrog": 3}
NOISE = 0.5


# a ~ N(0, 1), b ~ N(a (1, 1), I), x ~ N((b_1, b_2, a), s^2 I): x is normal with this covariance.
LOADING = torch.tensor([[1.0, 1, 0], [1.0, 0, 1], [1.0, 0, 0]], dtype=torch.float64)
COVARIANCE = LOADING @ LOADING.T + NOISE**2 * torch.eye(3, dtype=torch.float64)


def two_sites(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("b", dist.Normal(a[:, None].expand(-1, 2), 1.0).to_event(1))
        mean = torch.cat([b, a[:, None]], 1)
        pyro.sample("x", dist.Normal(mean, NOISE).to_event(1), obs=x)


def guide_of(stretch: float = 1.0, shift: float = 0.0) -> Callable[[Tensor], None]:
    """The posterior itself, sampled as a and then b given a, where stretch is 1 and shift 0."""

    def guide(x: Tensor) -> None:
        gain = (LOADING[:, :1].T @ torch.linalg.inv(COVARIANCE))[0]
        scale = (1 - gain @ LOADING[:, 0]).sqrt()
        with pyro.plate("images", len(x)):
            a = pyro.sample("a", dist.Normal(x @ gain + shift, stretch * scale))
            precision = 1 + 1 / NOISE**2
            mean = (a[:, None] + x[:, :2] / NOISE**2) / precision
            b_scale = stretch / math.sqrt(precision)
            pyro.sample("b", dist.Normal(mean + shift, b_scale).to_event(1))

    return guide


def evidence(x: Tensor) -> Tensor:
    return dist.MultivariateNormal(torch.zeros(3).double(), COVARIANCE).log_prob(x)


def sample(num: int) -> Tensor:
    x: Tensor = dist.MultivariateNormal(torch.zeros(3).double(), COVARIANCE).sample((num,))
    return x


def test_the_posterior_as_guide_weighs_every_sample_by_the_evidence() -> None:
    x = sample(20)
    for estimator in (ELBOBound(50), IWAEBound(50, 5), ImportanceSampling(50)):
        estimate = estimator(PyroProgram(two_sites, guide_of()), x)
        torch.testing.assert_close(estimate.value, evidence(x))
        assert estimate.std_error.max() < 1e-7


@pytest.mark.parametrize(
    "estimator",
    [
        ImportanceSampling(2000),
        ImportanceSampling(2000, inflation=1.3),
        ImportanceSampling(2000, prior_share=0.2),
        ImportanceSampling(2000, inflation=0.8, prior_share=0.3),
        PriorSampling(5000),
        AIS(**SMALL, start="guide"),
        pytest.param(AIS(**BUDGET), marks=pytest.mark.slow),
        pytest.param(AIS(**BUDGET, start="guide"), marks=pytest.mark.slow),
    ],
)
def test_two_latent_sites_have_the_evidence_in_closed_form(estimator: Estimator) -> None:
    x = sample(200) if not isinstance(estimator, PriorSampling) else sample(200) / 2
    estimate = estimator(PyroProgram(two_sites, guide_of(1.2, 0.1)), x)
    z_scores = (estimate.value - evidence(x)) / estimate.std_error
    assert estimate.bound is Bound.LOWER
    assert z_scores.abs().max() < 4.8
    assert 0.8 < z_scores.std() < 1.25


def test_a_narrow_guide_is_mended_by_the_mixture() -> None:
    x = sample(100)
    program = PyroProgram(two_sites, guide_of(0.2))
    plain = ImportanceSampling(2000)(program, x)
    mixed = ImportanceSampling(2000, prior_share=0.3)(program, x)
    assert (plain.value - evidence(x)).abs().mean() > 3 * (mixed.value - evidence(x)).abs().mean()
    z_scores = (mixed.value - evidence(x)) / mixed.std_error
    # The others have too few samples where their weights are: k-hat says so.
    assert mixed.trusted.sum() > 20
    assert z_scores[mixed.trusted].abs().max() < 4.8


@pytest.mark.parametrize(
    ("budget", "start"),
    [
        (SMALL, "guide"),
        pytest.param(BUDGET, "prior", marks=pytest.mark.slow),
        pytest.param(BUDGET, "guide", marks=pytest.mark.slow),
    ],
)
def test_reverse_ais_of_a_program(budget: dict[str, int], start: Start) -> None:
    x = sample(200)
    estimate = ReverseAIS(**budget, start=start)(PyroProgram(two_sites, guide_of(1.2)), x)
    assert estimate.bound is Bound.UPPER
    assert estimate.mean() == pytest.approx(
        evidence(x).mean().item(), abs=4.5 * estimate.mean_std_error() + 0.02
    )


def test_elbo_and_its_parts() -> None:
    x = sample(100)
    program = PyroProgram(two_sites, guide_of(1.3))
    parts = elbo_parts(program, x, 500)
    assert parts["elbo"].mean() < evidence(x).mean()
    torch.testing.assert_close(
        parts["elbo"].value, parts["reconstruction"].value - parts["kl"].value
    )
    assert ELBOBound(500)(program, x).mean() == pytest.approx(
        parts["elbo"].mean(), abs=6 * parts["elbo"].mean_std_error()
    )


SHAPE, RATE = 2.0, 1.5


def gamma_poisson(x: Tensor) -> None:
    with pyro.plate("counts", len(x)):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor(SHAPE).double(), RATE))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def log_normal(x: Tensor) -> None:
    with pyro.plate("counts", len(x)):
        mean = (SHAPE + x) / (RATE + 1)
        pyro.sample("rate", dist.LogNormal(mean.log() - 0.1, 1.2 / (SHAPE + x).sqrt()))


def beta_binomial(x: Tensor) -> None:
    with pyro.plate("trials", len(x)):
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0).double(), 3.0))
        pyro.sample("x", dist.Binomial(9, p), obs=x)


def beta(x: Tensor) -> None:
    with pyro.plate("trials", len(x)):
        pyro.sample("p", dist.Beta(1.6 + 0.9 * x, 2.6 + 0.9 * (9 - x)))


def dirichlet_multinomial(x: Tensor) -> None:
    with pyro.plate("documents", len(x)):
        p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]).double()))
        pyro.sample("x", dist.Multinomial(probs=p, validate_args=False), obs=x)


def dirichlet(x: Tensor) -> None:
    with pyro.plate("documents", len(x)):
        pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]) + 0.9 * x))


COUNTS = torch.arange(8.0, dtype=torch.float64)
WORDS = torch.tensor([[4.0, 0, 0], [1, 2, 1], [0, 2, 2], [2, 1, 1], [0, 0, 4]]).double()
CONSTRAINED = {
    "gamma-poisson": (
        PyroProgram(gamma_poisson, log_normal),
        COUNTS,
        lambda x: stats.nbinom(SHAPE, RATE / (RATE + 1)).logpmf(x),
    ),
    "beta-binomial": (
        PyroProgram(beta_binomial, beta),
        COUNTS,
        lambda x: stats.betabinom(9, 2, 3).logpmf(x),
    ),
    "dirichlet-multinomial": (
        PyroProgram(dirichlet_multinomial, dirichlet),
        WORDS,
        lambda x: stats.dirichlet_multinomial([1, 2, 3], 4).logpmf(x.astype(int)),
    ),
}


@pytest.mark.parametrize("name", CONSTRAINED)
@pytest.mark.parametrize(
    "estimator",
    [
        pytest.param(PriorSampling(20_000), marks=pytest.mark.slow),
        ImportanceSampling(5000),
        pytest.param(ImportanceSampling(5000, prior_share=0.2), marks=pytest.mark.slow),
        pytest.param(AIS(**BUDGET), marks=pytest.mark.slow),
        pytest.param(AIS(**BUDGET, start="guide"), marks=pytest.mark.slow),
        pytest.param(ReverseAIS(**BUDGET), marks=pytest.mark.slow),
    ],
)
def test_constrained_latents_have_the_evidence_in_closed_form(
    name: str, estimator: Estimator
) -> None:
    program, x, truth = CONSTRAINED[name]
    x = x.repeat(20, *[1] * (x.dim() - 1))
    estimate = estimator(program, x)
    z_scores = (estimate.value - torch.from_numpy(truth(x.numpy()))) / estimate.std_error
    assert z_scores.abs().max() < (6 if isinstance(estimator, ReverseAIS) else 4.8)
    assert abs(z_scores.mean()) < (1 if isinstance(estimator, ReverseAIS) else 0.5)
    assert 0.7 < z_scores.std() < 1.6


def test_the_scale_of_a_constrained_guide_is_widened_below_its_transform() -> None:
    program, x, truth = CONSTRAINED["gamma-poisson"]
    estimate = ImportanceSampling(5000, inflation=1.5)(program, x)
    z_scores = (estimate.value - torch.from_numpy(truth(x.numpy()))) / estimate.std_error
    assert z_scores.abs().max() < 4.5


def plates_within(x: Tensor) -> None:
    """x_ij ~ N(z_ij, 1) for j = 1, 2, the second plate left of that of the images."""
    with pyro.plate("images", len(x), dim=-1), pyro.plate("sides", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def plates_within_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x), dim=-1), pyro.plate("sides", 2, dim=-2):
        pyro.sample("z", dist.Normal(x.T / 2, 0.9))


@pytest.mark.parametrize(
    "estimator",
    [ImportanceSampling(2000, prior_share=0.2), AIS(**SMALL), AIS(**SMALL, start="guide")],
)
def test_plates_within_an_image_belong_to_it(estimator: Estimator) -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    truth = dist.Normal(0.0, math.sqrt(2)).log_prob(x).sum(1)
    estimate = estimator(PyroProgram(plates_within, plates_within_guide), x)
    assert ((estimate.value - truth) / estimate.std_error).abs().max() < 4.8


def test_scales_never_enter_and_masks_do() -> None:
    x = sample(5)

    def scaled(x: Tensor) -> None:
        with pyro.poutine.scale(scale=7.0):
            two_sites(x)

    estimate = ImportanceSampling(10)(PyroProgram(scaled, guide_of()), x)
    torch.testing.assert_close(estimate.value, evidence(x))

    def masked(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.poutine.mask(mask=x < 100):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def posterior(x: Tensor) -> None:
        seen = x < 100
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(torch.where(seen, x / 2, 0.0), 1 - 0.5 * seen))

    values = torch.tensor([0.3, 1000.0])
    estimate = ImportanceSampling(20_000)(PyroProgram(masked, posterior), values)
    truth = torch.tensor([dist.Normal(0.0, math.sqrt(2)).log_prob(values[0]), 0.0])
    assert (estimate.value - truth).abs().max() < 0.02


def test_parameters_are_those_of_the_store() -> None:
    def guide(x: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(5.0))
        guide_of(1.0, shift.item())(x)

    with pyro.get_param_store().scope():
        pyro.param("shift", torch.tensor(0.0))
        x = sample(5)
        estimate = ImportanceSampling(10)(PyroProgram(two_sites, guide), x)
    torch.testing.assert_close(estimate.value, evidence(x))


def test_a_program_is_evaluated_in_chunks_like_a_vae() -> None:
    x = sample(230)
    program = PyroProgram(two_sites, guide_of(1.2))
    family = {"elbo": ELBOBound(50), "log_px": ImportanceSampling(50), "ais": AIS(5, 4, 2)}
    first, again = (estimate_together(family, program, x, seed=1) for _ in range(2))
    for name in family:
        assert torch.equal(first[name].estimate.value, again[name].estimate.value)
        assert first[name].estimate.value.shape == (230,)
    assert first["elbo"].estimate.mean() < first["log_px"].estimate.mean()


def test_a_program_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(EstimatorError, match="pass folder=None"):
        estimate_together(
            {"elbo": ELBOBound(5)},
            PyroProgram(two_sites, guide_of()),
            sample(2),
            seed=0,
            folder=tmp_path,
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("estimator", [Exact(), Quadrature(), LocalELBO()])
def test_what_needs_a_vae_is_refused_in_words(estimator: Estimator) -> None:
    program = PyroProgram(two_sites, guide_of())
    message = "needs a VAE built by build_vae.*use importance sampling or AIS"
    with pytest.raises(EstimatorError, match=message):
        estimator.check(program)
    with pytest.raises(EstimatorError, match=message):
        estimator(program, sample(2))


@pytest.mark.parametrize("measure", [posterior_means, kl_per_dimension, information])
def test_measures_of_the_latent_space_need_a_vae(measure: Callable[..., object]) -> None:
    with pytest.raises(EstimatorError, match="needs a VAE built by build_vae"):
        measure(PyroProgram(two_sites, guide_of()), sample(3))


def test_bidirectional_bounds_need_a_vae() -> None:
    program = PyroProgram(two_sites, guide_of())
    with pytest.raises(EstimatorError, match="simulating images needs a VAE"):
        bidirectional(AIS(2, 2, 1), program, 5, seed=0)
    with pytest.raises(EstimatorError, match="needs a VAE"):
        AIS(2, 2, 1).upper_bound(program, sample(2), torch.zeros(2, 3).double())


def normal_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def normal_model(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def global_latent(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(1.0, 1.0))
    with pyro.plate("images", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=x)


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def wrong_plate(x: Tensor) -> None:
    with pyro.plate("images", 7):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("others", len(x)):
        pyro.sample("x", dist.Normal(z[0], 1.0), obs=x)


def other_name(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("w", dist.Normal(x, 1.0))


def nothing_observed(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))


def enumerated(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def discrete(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
        pyro.sample("x", dist.Normal(c, 1.0), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("c", dist.Bernoulli(torch.sigmoid(x - 0.5)))


def one_parameter_an_image(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))


def box(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Uniform(x - 3, x + 3))


def observing_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=x)


def subsampled(num_observed: int) -> Callable[[Tensor], None]:
    """Three of ten pixels."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("px", 10, subsample_size=3, dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(num_observed, -1))

    return model


def indexed(x: Tensor) -> None:
    with pyro.plate("images", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("px", 10, subsample=torch.arange(3), dim=-2) as index:
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(10, -1)[index])


def part_of_the_data(x: Tensor) -> None:
    with pyro.plate("images", 1000, subsample_size=len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def subsampled_guide(x: Tensor) -> None:
    with pyro.plate("images", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, 1.0))
        for _ in pyro.plate("px", 10, subsample_size=3):
            pass


def shared_components(num_components: int) -> Callable[[Tensor], None]:
    """The plate of the components may by chance have the size of the batch."""

    def model(x: Tensor) -> None:
        with pyro.plate("comp", num_components):
            means = pyro.sample("means", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + means.mean(), 1.0), obs=x)

    return model


def shared_components_guide(x: Tensor) -> None:
    with pyro.plate("comp", 4):
        pyro.sample("means", dist.Normal(x.new_zeros(()), 1.0))
    normal_guide(x)


@pytest.mark.parametrize(
    ("model", "guide", "estimator", "message"),
    [
        (subsampled(3), normal_guide, ELBOBound(5), 'plate "px" of the model selects 3 of its 10'),
        (subsampled(10), normal_guide, PriorSampling(5), 'plate "px" of the model selects 3'),
        (subsampled(3), normal_guide, AIS(2, 2, 1), 'plate "px" of the model selects 3 of its 10'),
        (indexed, normal_guide, ELBOBound(5), 'plate "px" of the model selects 3 of its 10'),
        (part_of_the_data, normal_guide, ELBOBound(5), 'plate "images" of the model selects 10'),
        (normal_model, subsampled_guide, ELBOBound(5), 'plate "px" of the guide selects 3 of its'),
        (
            shared_components(4),
            shared_components_guide,
            ELBOBound(2),
            'plates "comp", "images" at dimension -1',
        ),
        (shared_components(4), normal_guide, PriorSampling(2), "one value is shared by all images"),
        (shared_components(512), normal_guide, AIS(2, 2, 1), "one value is shared by all images"),
        (global_latent, normal_guide, ELBOBound(5), 'site "scale" of the model is not per image'),
        (global_latent, normal_guide, AIS(2, 2, 1), 'site "scale" of the model is not per image'),
        (no_plate, normal_guide, ELBOBound(5), 'site "z" of the model is not per image'),
        (normal_model, no_plate, ELBOBound(5), 'site "z" of the guide is not per image'),
        (wrong_plate, normal_guide, PriorSampling(5), "one value for each of 7 images"),
        (normal_model, other_name, ELBOBound(5), 'samples "z" and the guide "w"'),
        (normal_model, other_name, AIS(2, 2, 1, "guide"), 'the model samples "z"'),
        (nothing_observed, normal_guide, ELBOBound(5), "the model observes nothing"),
        (enumerated, normal_guide, ELBOBound(5), 'site "c" of the model is marked to be enum'),
        (discrete, discrete_guide, AIS(2, 2, 1), 'site "c" of the model is discrete'),
        (normal_model, one_parameter_an_image, ELBOBound(5), "batches of any size"),
        (normal_model, box, ELBOBound(5, inflation=2.0), 'site "z" of the guide: inflation: Uni'),
        (normal_model, observing_guide, ELBOBound(5), 'the guide observes "y"'),
        (gamma_poisson, normal_guide, ELBOBound(5), 'samples "rate" and the guide "z"'),
    ],
)
def test_programs_that_do_not_fit_are_refused_in_words(
    model: Callable[[Tensor], None],
    guide: Callable[[Tensor], None],
    estimator: Estimator,
    message: str,
) -> None:
    x = torch.tensor([0.0, 1.0])
    with pytest.raises(EstimatorError, match=re.escape(message)):
        estimator(PyroProgram(model, guide), x)


def test_values_outside_the_support_name_the_site() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("counts", len(x)):
            pyro.sample("rate", dist.Normal(-5 + 0 * x, 1.0))

    def wide(x: Tensor) -> None:
        with pyro.plate("counts", len(x)):
            pyro.sample("rate", dist.LogNormal(0 * x, 1.0))

    with pytest.raises(EstimatorError, match='site "rate": the guide and the model have different'):
        ELBOBound(5)(PyroProgram(gamma_poisson, guide), COUNTS)
    with pytest.raises(EstimatorError, match='site "x" of the model has a value outside'):
        ELBOBound(5)(PyroProgram(gamma_poisson, wide), -COUNTS)


def test_messages_hold_no_tensors() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, torch.where(x > 0, -1.0, 1.0)), obs=x)

    x = torch.linspace(-1, 1, 50)
    with pytest.raises(EstimatorError) as wrong_parameter:
        ELBOBound(5)(PyroProgram(model, normal_guide), x)
    with pytest.raises(EstimatorError) as wrong_value:
        PriorSampling(5)(PyroProgram(gamma_poisson, log_normal), -x - 2)
    for error in (wrong_parameter, wrong_value):
        assert "tensor(" not in str(error.value)
        assert len(str(error.value)) < 500
    assert "the model cannot be run on a batch of 250 rows: Expected" in str(wrong_parameter.value)


def test_a_masked_nan_is_refused_with_the_way_out() -> None:
    def masked(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.poutine.mask(mask=~x.isnan()):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(EstimatorError, match="NaN; where a mask hides it, replace it by any value"):
        PriorSampling(5)(PyroProgram(masked, normal_guide), torch.tensor([0.0, torch.nan]))


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_a_lack_of_memory_is_not_the_programs_fault(kind: type[Exception]) -> None:
    def large(x: Tensor) -> None:
        raise kind("no more")

    with pytest.raises(kind, match="no more"):
        PriorSampling(5)(PyroProgram(large, normal_guide), torch.zeros(2))


def test_discrete_latents_are_weighed() -> None:
    x = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    parts = [math.log(p) + dist.Normal(c, 1.0).log_prob(x) for c, p in ((0.0, 0.7), (1.0, 0.3))]
    estimate = ImportanceSampling(20_000)(PyroProgram(discrete, discrete_guide), x)
    assert ((estimate.value - torch.logaddexp(*parts)) / estimate.std_error).abs().max() < 4.5


FAMILY: list[Estimator] = [
    ELBOBound(5),
    AIS(2, 2, 1),
    ReverseAIS(2, 2, 1),
    LocalELBO(1, 1, 2),
    Quadrature(),
    Exact(),
]


@pytest.mark.parametrize("estimator", FAMILY, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.numpy(), r"got numpy.ndarray .*torch.as_tensor\(x, dtype=torch.float64"),
        (lambda x: x.tolist(), r"got list: convert it: torch.as_tensor\(x, dtype=torch.float64"),
        (lambda x: x.float(), r"got float32 .* the weights are torch.float64; convert it: x.to\("),
        (lambda x: (x > 0).byte(), r"got uint8 .* levels .*data.prepared\(\"test\", vae"),
        (lambda x: x.flatten(1), r"\(N, 1, 2, 3\), got .*\(4, 6\) on cpu: .*x.reshape\(-1, 1, 2"),
        (lambda x: x[:0], "it holds no images"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_images_of_the_wrong_kind_are_refused_in_words(
    estimator: Estimator, wrong: Callable[[Tensor], Tensor], message: str
) -> None:
    truth = LinearGaussian()
    x = wrong(truth.sample(4))
    with pytest.raises(DataError, match=message):
        estimator(truth.vae, x)
    with pytest.raises(DataError, match=message):
        estimate_together({"any": estimator}, truth.vae, x, seed=0)


@pytest.mark.usefixtures("no_shape_checks")
def test_programs_need_a_tensor_too() -> None:
    with pytest.raises(DataError, match="got a ndarray"):
        ELBOBound(5)(PyroProgram(two_sites, guide_of()), sample(2).numpy())


@pytest.mark.slow
def test_the_page_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "your_own_program.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (printed,) = re.findall(r"```text\n(.*?)```", page, flags=re.DOTALL)
    with pyro.get_param_store().scope():
        exec(compile(code, "docs/your_own_program.md", "exec"), {})
    shown = capsys.readouterr().out
    numbers = r"-?\d+\.\d+"
    assert re.sub(numbers, "#", shown) == re.sub(numbers, "#", printed)
    for mine, theirs in zip(re.findall(numbers, shown), re.findall(numbers, printed), strict=True):
        assert float(mine) == pytest.approx(float(theirs), abs=0.05)
