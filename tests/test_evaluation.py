"""Every metric of the contract, on a model whose exact answers are known."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests.linear_gaussian import PIXELS, LinearGaussian
from vae_pyro.evaluation import (
    Evaluation,
    EvaluationPlan,
    evaluate,
    require_free_names,
    rounding_error,
    validate,
)
from vae_pyro.evaluation.names import merge
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, Normal
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    Estimator,
    Exact,
    ImportanceSampling,
    LocalELBO,
    PriorSampling,
    Quadrature,
    ReverseAIS,
)
from vae_pyro.log_marginal.chunking import multiply_adds
from vae_pyro.networks import MLP
from vae_pyro.vae import VAE, build_vae


def ask(
    vae: VAE,
    x: torch.Tensor,
    num_samples: int,
    iwae_samples: list[int],
    draws: int = 1,
    seed: int = 0,
    **further: Any,
) -> Evaluation:
    plan = EvaluationPlan(num_samples, iwae_samples, **further)
    return evaluate(vae, x, plan, seed=seed, draws=draws)


def test_metrics_are_the_closed_forms() -> None:
    """K = 150 does not divide the 200 samples: one group and a rest."""
    truth = LinearGaussian(shift=0.2, stretch=1.3)
    x = truth.sample(400)
    m = ask(truth.vae, x, 200, [10, 150]).metrics
    exact = truth.log_marginal(x).mean().item()
    elbo = truth.elbo(x).mean().item()
    assert m["test/log_px"] == pytest.approx(exact, abs=4.5 * m["test/log_px_std_error"])
    assert m["test/elbo"] == pytest.approx(elbo, abs=4.5 * m["test/elbo_std_error"])
    assert m["test/gap"] == pytest.approx(m["test/log_px"] - m["test/elbo"])
    assert not any(name.startswith("test/bits_per_dim") for name in m)  # x is not made of levels
    assert m["test/elbo"] < m["test/iwae_10"] < exact
    assert 0 < m["test/iwae_150_std_error"] < 2 * m["test/log_px_std_error"]
    assert m["test/active_units"] == 2
    assert all(math.isfinite(value) for value in m.values())


def test_bits_per_dim_is_of_the_levels() -> None:
    """A density of x = (level + u) / L is 1 / L^D of a probability: D log L nats are added."""
    truth = LinearGaussian(num_levels=17)
    m = ask(truth.vae, truth.sample(50), 30, [1]).metrics
    expected = (-m["test/log_px"] + PIXELS * math.log(17)) / (PIXELS * math.log(2))
    assert m["test/bits_per_dim"] == pytest.approx(expected)
    assert m["test/bits_per_dim_std_error"] == pytest.approx(
        m["test/log_px_std_error"] / (PIXELS * math.log(2)), abs=1e-12
    )
    vae = build_vae(2, (1, 2, 3), MLP((4,)), Bernoulli(17), DiagNormal, seed=None)
    m = ask(vae, torch.bernoulli(torch.full((5, 1, 2, 3), 0.5)), 30, [1]).metrics
    assert m["test/bits_per_dim"] == pytest.approx(-m["test/log_px"] / (6 * math.log(2)))


@pytest.mark.long
@pytest.mark.slow
def test_standard_errors_contain_the_dequantisation() -> None:
    """Over fresh draws of x from the same images, the number moves as much as it says."""
    likelihood = Normal(5, scale=0.05)
    vae = build_vae(2, (1, 2, 3), MLP((4,)), likelihood, DiagNormal, seed=None)
    images = torch.randint(0, 5, (60, 1, 2, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    values, std_errors = [], []
    for seed in range(80):
        x = torch.cat([likelihood.prepare(images, generator) for _ in range(3)])
        m = ask(vae, x, 30, [1], draws=3, seed=seed).metrics
        values.append(m["test/log_px"])
        std_errors.append(m["test/log_px_std_error"])
    spread = torch.tensor(values).std().item()
    assert spread == pytest.approx(np.mean(std_errors), rel=4.5 / (2 * 79) ** 0.5)
    fixed = ask(vae, x, 30, [1]).metrics["test/log_px_std_error"]
    assert fixed < 0.7 * spread  # the draw of x is most of it
    with pytest.raises(ValueError, match="180 values are not 7 draws"):
        ask(vae, x, 30, [1], draws=7)


def test_diagnostics_tell_a_good_guide_from_a_bad_one() -> None:
    """As a proposal by itself; the default estimator mends it."""
    truth, narrow = LinearGaussian(), LinearGaussian(stretch=0.1)
    x = truth.sample(100)
    perfect, bad = (ask(each.vae, x, 2000, [1, 2000]) for each in (truth, narrow))
    exact = truth.log_marginal(x).mean().item()
    for evaluation in (perfect, bad):
        m = evaluation.metrics
        assert m["test/pareto_k_high"] <= 0.05
        assert m["test/untrusted"] <= 0.05
        assert m["test/log_px"] == pytest.approx(exact, abs=4.5 * m["test/log_px_std_error"])
    guide = perfect.estimates["iwae_2000"].estimate
    assert guide.diagnostics["effective_sample_size"].mean() == pytest.approx(2000)
    assert guide.is_trusted
    guide = bad.estimates["iwae_2000"].estimate
    assert guide.diagnostics["effective_sample_size"].mean() < 500
    assert (~guide.trusted).double().mean() > 0.5
    assert guide.mean() < exact - 0.1  # too low, and k-hat said so


def test_validation_parts_add_up() -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.3)
    x = truth.sample(300)
    m = validate(truth.vae, x, 50)
    elbo = truth.elbo(x).mean().item()
    assert m["valid/elbo"] == pytest.approx(elbo, abs=4.5 * m["valid/elbo_std_error"])
    assert m["valid/elbo"] == pytest.approx(m["valid/reconstruction"] - m["valid/kl"])
    assert torch.tensor(list(m.values())).isfinite().all()


EVERYTHING: dict[str, Estimator] = {
    "log_px_prior": PriorSampling(200),
    "log_px_ais": AIS(40, 16, 4),
    "log_px_upper": ReverseAIS(40, 16, 4),
    "log_px_quadrature": Quadrature(),
    "log_px_exact": Exact(),
    "elbo_local": LocalELBO(300, 16, 200),
}


@pytest.mark.slow
def test_the_gap_splits_into_what_is_known() -> None:
    """The posterior is in the family, so all of the gap is the encoder's."""
    spoilt = LinearGaussian(shift=0.4, stretch=1.5)
    x = spoilt.sample(300)
    evaluation = ask(
        spoilt.vae,
        x,
        100,
        [5],
        estimators=EVERYTHING,
        num_images=120,
        simulated_images=40,
        latent=True,
    )
    m = evaluation.metrics
    assert evaluation.compared.reference == "log_px_exact"
    gap = (spoilt.log_marginal(x[:120]) - spoilt.elbo(x[:120])).mean().item()
    assert m["compared/kl_to_posterior"] == pytest.approx(
        gap, abs=4.5 * m["compared/kl_to_posterior_std_error"] + 1e-6
    )
    assert m["compared/approximation_gap"] == pytest.approx(0, abs=0.005)
    assert m["compared/amortisation_gap"] == pytest.approx(
        gap, abs=4.5 * m["compared/amortisation_gap_std_error"] + 0.005
    )
    assert m["compared/approximation_gap"] + m["compared/amortisation_gap"] == pytest.approx(
        m["compared/kl_to_posterior"]
    )
    exact = spoilt.log_marginal(x[:120]).mean().item()
    assert m["compared/log_px_exact"] == pytest.approx(exact, abs=1e-5)
    assert m["compared/log_px_exact_std_error"] == 0
    for name in ("prior", "ais", "upper", "quadrature"):
        error = m[f"compared/log_px_{name}_std_error"]
        assert m[f"compared/log_px_{name}"] == pytest.approx(exact, abs=4.5 * error + 0.02)
    assert abs(m["simulated/gap"]) < 4.5 * m["simulated/gap_image_std_error"] + 0.02
    assert m["test/kl"] == pytest.approx(m["test/mutual_information"] + m["test/marginal_kl"])


def test_the_rounding_error_is_that_of_the_models_precision() -> None:
    torch.manual_seed(0)
    vae = build_vae(2, (1, 28, 28), MLP((50,)), Bernoulli(256), DiagNormal, seed=None).eval()
    x = (torch.rand(20, 1, 28, 28) < 0.3).float()
    assert 1e-6 < rounding_error(vae, x) < 1e-2  # about 500 nats, of 24 bits each
    assert rounding_error(vae.double(), x.double()) == 0


@pytest.fixture(scope="module")
def evaluated() -> Evaluation:
    """By every estimator, with levels, simulated images and measures of the latent space."""
    spoilt = LinearGaussian(shift=0.4, num_levels=17)
    return ask(
        spoilt.vae,
        spoilt.sample(30),
        50,
        [5],
        estimators=EVERYTHING,
        num_images=10,
        simulated_images=3,
        latent=True,
    )


@pytest.mark.slow
def test_every_number_that_is_estimated_has_both_errors(evaluated: Evaluation) -> None:
    m = evaluated.metrics
    alone = {
        "test/effective_sample_size",
        "test/pareto_k_high",
        "test/untrusted",
        "test/active_units",
        "compared/num_images",
        "compared/repeated_images",
        "compared/disagreeing",
        "test/rounding_error",
    }
    names = {name for name in m if not name.endswith("_std_error")} - alone
    for name in names:
        assert math.isfinite(m[f"{name}_std_error"])
        assert m[f"{name}_image_std_error"] > 0
    compared = {"compared/log_px_ais", "compared/log_px_upper", "compared/elbo_local"}
    assert compared | {"test/log_px_exact", "simulated/gap"} <= names


@pytest.mark.long
@pytest.mark.slow
def test_the_two_errors_are_what_they_say() -> None:
    """Evaluated anew the number moves by the one; with fresh images, by the other."""
    truth = LinearGaussian(shift=0.5, stretch=1.5)
    x = truth.sample(60)

    def spread(runs: list[Evaluation]) -> tuple[float, float, float]:
        means = [run.metrics["test/log_px"] for run in runs]
        own, image = (
            float(np.mean([run.metrics[f"test/log_px_{kind}"] for run in runs]))
            for kind in ("std_error", "image_std_error")
        )
        return float(np.std(means, ddof=1)), own, image

    moved, std_error, _ = spread([ask(truth.vae, x, 30, [], seed=seed) for seed in range(150)])
    assert moved == pytest.approx(std_error, rel=0.3)  # 30 weights: the delta method's own error
    fresh = [ask(truth.vae, truth.sample(60, seed), 30, [], seed=seed) for seed in range(150)]
    moved, std_error, image_std_error = spread(fresh)
    assert moved == pytest.approx(image_std_error, rel=4.5 / (2 * 79) ** 0.5)
    assert image_std_error > 5 * std_error


def test_further_estimators_see_the_same_first_images_of_every_draw() -> None:
    truth = LinearGaussian(shift=0.2)
    x = truth.sample(40)  # two draws of 20 images, as far as anyone can tell
    evaluation = ask(
        truth.vae, x, 50, [], draws=2, estimators={"log_px_exact": Exact()}, num_images=5
    )
    chosen = torch.cat([x[:5], x[20:25]])
    exact = evaluation.compared["log_px_exact"]
    torch.testing.assert_close(exact.value, Exact()(truth.vae, chosen).value)
    assert evaluation.metrics["compared/num_images"] == 5
    assert evaluation.metrics["compared/log_px_exact"] == pytest.approx(exact.mean())
    importance = evaluation.compared["log_px"]
    assert evaluation.metrics["compared/log_px"] == importance.mean()
    whole = evaluation.estimates["log_px"].estimate.value
    assert torch.equal(importance.value, torch.cat([whole[:5], whole[20:25]]))
    assert importance.bound is Bound.LOWER


def further_test_metrics(evaluation: Evaluation) -> set[str]:
    names = {name for name in evaluation.metrics if not name.endswith("std_error")}
    return {name.removeprefix("test/") for name in names if name.startswith("test/")} & {
        *EVERYTHING
    }


@pytest.mark.parametrize("draws", [1, 2])
def test_a_test_metric_is_over_the_whole_test_set(draws: int) -> None:
    """Half of the images are far from the mean: a mean over the first half would be seen."""
    truth = LinearGaussian(shift=0.2)
    x = truth.sample(60)
    x = torch.cat([torch.cat([half, 3 * half]) for half in x.chunk(draws)])
    evaluation = ask(
        truth.vae, x, 200, [], draws=draws, estimators=EVERYTHING, num_images=60 // draws
    )
    m = evaluation.metrics
    exact = truth.log_marginal(x).double()
    assert further_test_metrics(evaluation) == {"log_px_exact", "log_px_quadrature"}
    assert list(evaluation.compared) == ["elbo", "log_px", *EVERYTHING]
    assert m["compared/num_images"] == 60 // draws
    for name in ("log_px_exact", "log_px_quadrature"):
        torch.testing.assert_close(
            evaluation.estimates[name].estimate.value, exact, atol=1e-3, rtol=0
        )
        assert m[f"test/{name}"] == pytest.approx(exact.mean().item(), abs=1e-3)
        assert m[f"test/{name}"] < m[f"compared/{name}"] - 5
        first = evaluation.compared[name]
        assert m[f"compared/{name}"] == first.mean()
        near = exact.reshape(draws, -1)[:, : 60 // draws].flatten()
        torch.testing.assert_close(first.value, near, atol=1e-3, rtol=0)
    error = evaluation.estimates["log_px"].estimate.mean_std_error()
    assert m["test/log_px"] == pytest.approx(m["test/log_px_exact"], abs=4.5 * error)


@pytest.mark.parametrize("num_images", [None, 20, 50])
def test_an_estimator_that_was_run_on_all_images_is_under_test(num_images: int | None) -> None:
    truth = LinearGaussian(shift=0.2)
    evaluation = ask(
        truth.vae, truth.sample(20), 50, [], estimators=EVERYTHING, num_images=num_images
    )
    assert further_test_metrics(evaluation) == {*EVERYTHING}
    for name in EVERYTHING:
        assert evaluation.metrics[f"test/{name}"] == evaluation.metrics[f"compared/{name}"]


def test_quadrature_that_is_too_costly_stays_with_the_first_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    truth = LinearGaussian()
    estimators = {name: EVERYTHING[name] for name in ("log_px_quadrature", "log_px_exact")}

    def under_test(budget: float) -> set[str]:
        monkeypatch.setattr(Quadrature, "budget_for_all", budget)
        return further_test_metrics(ask(truth.vae, x, 50, [], estimators=estimators, num_images=10))

    x = truth.sample(30)
    evaluations = Quadrature()(truth.vae, x[:10]).evaluations
    cost = evaluations * 30 * multiply_adds(truth.vae)
    assert under_test(cost) == {"log_px_exact"}
    assert under_test(1.01 * cost) == {"log_px_exact", "log_px_quadrature"}


def test_without_a_reference_the_tightest_bound_is_the_gaps_end(
    digits_vae: VAE, binary_test_digits: torch.Tensor
) -> None:
    estimators: dict[str, Estimator] = {
        "log_px_defensive": ImportanceSampling(2000, prior_share=0.2),
        "elbo_local": LocalELBO(20, 4, 50),
    }
    evaluation = ask(digits_vae, binary_test_digits[:30], 50, [], estimators=estimators)
    m = evaluation.metrics
    assert evaluation.compared.reference is None
    assert "compared/kl_to_posterior" not in m
    assert evaluation.compared.tightest in ("log_px", "log_px_defensive")
    tightest = max(m["compared/log_px"], m["compared/log_px_defensive"])
    assert m["compared/approximation_gap"] == pytest.approx(tightest - m["compared/elbo_local"])


def test_two_metrics_of_one_name_are_refused() -> None:
    assert merge({"a": 1.0}, {}, {"b": 2.0}) == {"a": 1.0, "b": 2.0}
    with pytest.raises(ValueError, match="two metrics have the name b; rename"):
        merge({"a": 1.0, "b": 2.0}, {"b": 2.0})


TAKEN = (
    "elbo",
    "log_px",
    "log_px_std_error",
    "log_px_image_std_error",
    "log_px_pareto_k",
    "log_px_true",
    "disagreeing",
    "gap",
    "kl",
    "kl_to_posterior",
    "mutual_information_upper",
    "num_images",
    "rounding_error",
    "bits_per_dim",
    "effective_sample_size",
    "pareto_k_high",
    "active_units",
    "active_units_std_error",
    "approximation_gap",
    "iwae_7",
    "image",
)


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_of_every_evaluation_is_refused_before_anything_is_computed(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^estimators\.{name}: .*; choose another name$"):
        EvaluationPlan(50, [5], {name: Exact()})


@pytest.mark.parametrize(
    ("names", "clash"),
    [
        (("a", "a_std_error"), "a_std_error"),
        (("a_image_std_error", "a"), "a_image_std_error"),
        (("a", "a_image"), "a_image_std_error"),
        (("a", "a_acceptance"), "a_acceptance"),
    ],
)
def test_a_name_that_another_estimator_needs_is_refused(names: list[str], clash: str) -> None:
    with pytest.raises(ValueError, match=rf"estimators\.{names[1]}: .* {clash} already exists"):
        EvaluationPlan(50, [5], dict.fromkeys(names, Exact()))


def test_the_names_that_are_refused_are_all_there_are(evaluated: Evaluation) -> None:
    """Otherwise an estimator of that name would overwrite a metric."""
    require_free_names(EVERYTHING)
    of_estimators = set(EVERYTHING)
    for metric in evaluated.metrics:
        scope, name = metric.split("/")
        if scope != "simulated" and not any(name.startswith(n) for n in of_estimators):
            with pytest.raises(ValueError, match="choose another name"):
                require_free_names([name])
