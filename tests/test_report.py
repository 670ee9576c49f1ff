"""The report: what it shows is what was measured, and what is bad is said."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.linear_gaussian import LinearGaussian
from vae_pyro.evaluation import Evaluation, EvaluationPlan, evaluate
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, Normal
from vae_pyro.log_marginal import (
    AIS,
    ELBOBound,
    Estimator,
    Exact,
    ImportanceSampling,
    IWAEBound,
    LocalELBO,
    PriorSampling,
    Quadrature,
    ReverseAIS,
)
from vae_pyro.model import Model
from vae_pyro.networks import MLP, Reshape
from vae_pyro.progress import ShowProgress, no_progress
from vae_pyro.reporting.estimators import (
    advice,
    comparison,
    estimator_label,
    estimators_csv,
    latent_csv,
    per_image_csv,
)
from vae_pyro.vae import VAE, build_vae


class Shrunk(DiagNormal):
    """Another guide's posterior, its scale divided by ten."""

    def __init__(self, guide: DiagNormal) -> None:
        super().__init__(guide.latent_dim, lambda _: guide.encoder)

    def posterior(self, x: Tensor) -> torch.distributions.Distribution:
        base = super().posterior(x).base_dist
        return type(base)(base.loc, base.scale / 10).to_event(1)


def ask(
    vae: VAE, x: Tensor, estimators: dict[str, Estimator], num_samples: int = 200, **more: int
) -> tuple[Evaluation, EvaluationPlan]:
    plan = EvaluationPlan(num_samples, [5], estimators, **more)
    return evaluate(vae, x, plan, seed=0), plan


def spoilt(evaluation: Evaluation, share: float) -> Evaluation:
    """With a k-hat of 0.9 for this share of the images."""
    timed = evaluation.estimates["log_px"]
    k = torch.zeros_like(timed.estimate.diagnostics["pareto_k"])
    k[: round(share * len(k))] = 0.9
    diagnostics = {**timed.estimate.diagnostics, "pareto_k": k}
    log_px = replace(timed, estimate=replace(timed.estimate, diagnostics=diagnostics))
    return replace(
        evaluation,
        estimates={**evaluation.estimates, "log_px": log_px},
        metrics=evaluation.metrics | {"test/untrusted": share},
    )


@pytest.mark.parametrize(("latent_dim", "remedy"), [(2, "quadrature"), (10, "ais")])
def test_an_untrusted_error_bar_is_told_of_with_the_remedy_of_its_dimension(
    binary_test_digits: Tensor, latent_dim: int, remedy: str
) -> None:
    vae = build_vae(latent_dim, (1, 8, 8), MLP((8,)), Bernoulli(2), DiagNormal)
    good, plan = ask(vae, binary_test_digits[:50], {}, num_samples=1000)
    assert advice(spoilt(good, 0.0), plan) == []
    assert advice(spoilt(good, 0.04), plan) == []
    (warning,) = advice(spoilt(good, 0.2), plan)
    for words in ("20% of the test images", "num_evaluations=10000", f"estimators=[{remedy}]"):
        assert words in warning


class Folded(torch.nn.Module):
    """A decoder that is given |z_0| in the place of z_0."""

    def __init__(self, decoder: torch.nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, z: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(torch.cat([z[..., :1].abs(), z[..., 1:]], -1))
        return decoded


def two_modes() -> tuple[VAE, Tensor]:
    """z_0 and -z_0 are equally likely, in ten dimensions; the guide has the positive one only."""
    dims, scale = 10, 0.4
    decoder, encoder = torch.nn.Linear(dims, dims), torch.nn.Linear(dims, 2 * dims)
    variance = scale**2 / (1 + scale**2)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(dims))
        decoder.bias.zero_()
        encoder.weight.zero_()
        encoder.weight[:dims] = torch.eye(dims) / (1 + scale**2)
        encoder.bias[:dims] = 0.0
        encoder.bias[dims:] = math.log(math.expm1(variance**0.5))
    decode = torch.nn.Sequential(Folded(decoder), Reshape((1, 1, 2, 5)))
    guide = DiagNormal(dims, lambda _: torch.nn.Sequential(torch.nn.Flatten(-3), encoder))
    vae = VAE(Model(dims, decode, Normal(None, scale)), guide, (1, 2, 5)).double().eval()
    x = torch.randn(100, 1, 2, 5, dtype=torch.float64)
    x[:, 0, 0, 0] = 1.5 + torch.rand(100)
    return vae, x


@pytest.mark.parametrize("evaluations", [800, 5000])
def test_a_mode_that_only_one_of_two_estimates_found_is_told_of(evaluations: int) -> None:
    """With few evaluations there is one start besides the guide's, and it is often wrong."""
    vae, x = two_modes()
    more = {"num_evaluations": evaluations, "repeated_images": 60}
    evaluation, plan = ask(vae, x, {}, **more)
    metrics = evaluation.metrics
    assert metrics["compared/repeated_images"] == 60
    lines = [line for line in advice(evaluation, plan) if "estimated twice for 60" in line]
    log_px = evaluation.estimates["log_px"].estimate
    if evaluations == 5000:
        assert metrics["compared/disagreeing"] == 0
        assert lines == []
        assert log_px.is_trusted
    else:
        assert metrics["compared/disagreeing"] > 0.1
        (line,) = lines
        assert f"For {round(60 * metrics['compared/disagreeing'])} of them" in line
        assert "evaluation/estimators=[ais]" in line
        assert metrics["test/untrusted"] >= metrics["compared/disagreeing"]
        assert not log_px.is_trusted
        assert log_px.shown().startswith("≥ ")


def test_nothing_is_estimated_twice_where_it_is_not_wanted() -> None:
    truth = LinearGaussian()
    evaluation, _ = ask(truth.vae, truth.sample(20), {}, repeated_images=0)
    assert not any(name.startswith("compared/") for name in evaluation.metrics)
    assert "disagreement" not in per_image_csv(evaluation)


def test_a_guide_shrunk_tenfold_is_bad_for_the_bounds_and_not_for_log_px(
    digits_vae: VAE, binary_test_digits: Tensor
) -> None:
    x = binary_test_digits[:100]
    good, _ = ask(digits_vae, x, {}, num_samples=1000)
    assert isinstance(digits_vae.guide, DiagNormal)
    bad_vae = VAE(digits_vae.model, Shrunk(digits_vae.guide)).eval()
    bad, plan = ask(bad_vae, x, {"log_px_guide": ImportanceSampling(1000)}, num_samples=1000)
    assert bad.metrics["test/iwae_5"] < good.metrics["test/iwae_5"] - 1
    assert bad.metrics["test/log_px_guide"] < good.metrics["test/log_px"] - 0.5
    error = math.hypot(*(e.metrics["test/log_px_std_error"] for e in (good, bad)))
    difference = bad.metrics["test/log_px"] - good.metrics["test/log_px"]
    assert abs(difference) < 4.5 * error
    # The guide alone is low, but one-sided: it contradicts nothing.
    assert not bad.compared["log_px_guide"].is_trusted
    assert bad.compared.difference("log_px_guide", "log_px") < -bad.compared.largest_by_chance(
        "log_px_guide", "log_px"
    )
    assert not any("further" in line for line in advice(bad, plan))


def test_a_perfect_guide_is_not_warned_of() -> None:
    truth = LinearGaussian()
    assert advice(*ask(truth.vae, truth.sample(50), {"log_px_exact": Exact()}, 2000)) == []


def test_who_is_far_from_the_truth_is_named(digits_vae: VAE, binary_test_digits: Tensor) -> None:
    """With an error bar that is trusted: here the prior's, of a value that is moved."""
    estimators: dict[str, Estimator] = {
        "log_px_prior": PriorSampling(5000),
        "log_px_wide": ImportanceSampling(5000, inflation=12, prior_share=0.2),
        "log_px_quadrature": Quadrature(),
    }
    evaluation, plan = ask(digits_vae, binary_test_digits[:60], estimators, num_samples=2000)
    assert not any("further from" in line for line in advice(evaluation, plan))
    compared = evaluation.compared
    wide = compared.estimates["log_px_wide"]
    low = replace(wide, estimate=replace(wide.estimate, value=wide.estimate.value - 0.2))
    moved = replace(compared, estimates={**compared.estimates, "log_px_wide": low})
    (line,) = [
        line
        for line in advice(replace(evaluation, compared=moved), plan)
        if "further from quadrature" in line
    ]
    assert "wide (-" in line
    assert "adaptive" not in line
    assert "prior" not in line


def test_a_perfect_guide_in_single_precision_is_not_warned_of_either() -> None:
    """What is left of its weights' spread is rounding, and says nothing."""
    truth = LinearGaussian()
    estimators: dict[str, Estimator] = {
        "log_px_exact": Exact(),
        "log_px_quadrature": Quadrature(),
        "log_px_prior": PriorSampling(2000),
    }
    assert advice(*ask(truth.vae.float(), truth.sample(200).float(), estimators, 2000)) == []


@pytest.mark.parametrize(("name", "label"), [("log_px_few", "few"), ("my_own", "my_own")])
def test_who_falls_short_of_the_tightest_bound_is_named(name: str, label: str) -> None:
    """Whatever the estimator is called; with two chains there is no k-hat to distrust it by."""
    good = LinearGaussian(shift=0.1)
    x = good.sample(100)
    evaluation, plan = ask(good.vae, x, {name: AIS(1, 2, 1)}, num_samples=1000)
    assert evaluation.compared.tightest == "log_px"
    few = evaluation.compared.estimates[name]
    sure = replace(few, estimate=replace(few.estimate, std_error=few.estimate.std_error / 100))
    told = replace(
        evaluation,
        compared=replace(
            evaluation.compared, estimates={**evaluation.compared.estimates, name: sure}
        ),
    )
    assert sure.estimate.is_trusted
    lines = advice(told, plan)
    assert any("further below adaptive" in line and f"{label} (-" in line for line in lines)


def test_a_bound_that_is_no_estimate_of_log_px_is_not_judged_as_one() -> None:
    """Nor is it the tightest, whatever it is called."""
    spoilt = LinearGaussian(shift=0.5)
    bounds: dict[str, Estimator] = {
        "log_px_mean": ELBOBound(500),
        "log_px_few": IWAEBound(500, 2),
        "log_px_best_normal": LocalELBO(20, 4, 500),
    }
    evaluation, plan = ask(spoilt.vae, spoilt.sample(50), bounds, num_samples=500)
    m = evaluation.metrics
    assert m["compared/log_px_mean"] < m["compared/log_px"] - 0.1
    assert evaluation.compared.targeting == ["log_px"]
    assert m["compared/approximation_gap"] == pytest.approx(
        m["compared/log_px"] - m["compared/log_px_best_normal"]
    )
    assert not any("further" in line for line in advice(evaluation, plan))
    # Their weights are their own, and so are the diagnostics.
    header = per_image_csv(evaluation).splitlines()[0].split(",")
    assert {"log_px_mean_pareto_k", "log_px_few_effective_sample_size"} <= set(header)
    assert "elbo_pareto_k" not in header


def test_the_ways_out_are_those_not_taken_yet(digits_vae: VAE, binary_test_digits: Tensor) -> None:
    evaluation, plan = ask(digits_vae, binary_test_digits[:20], {"log_px_quadrature": Quadrature()})
    (line,) = [line for line in advice(spoilt(evaluation, 0.5), plan) if "k-hat" in line]
    assert "num_evaluations=2000" in line
    assert "[quadrature]" not in line


@pytest.mark.parametrize(("name", "label"), [("log_px_upper", "upper"), ("roof", "roof")])
def test_an_upper_bound_that_may_be_none_is_told_of(name: str, label: str) -> None:
    truth = LinearGaussian(shift=0.2)
    loose: dict[str, Estimator] = {name: ReverseAIS(4, 30, 10)}
    evaluation, plan = ask(truth.vae, truth.sample(200), loose)
    upper, lower = (evaluation.metrics[f"compared/{kind}"] for kind in (name, "log_px"))
    assert upper > lower + 0.2
    lines = advice(evaluation, plan)
    assert any(f"{label} is an upper bound only if the AIS chains" in line for line in lines)
    assert not any("further" in line for line in lines)  # above is where an upper bound belongs


def test_quadrature_says_where_it_is_inexact(
    digits_vae: VAE, binary_test_digits: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vae_pyro.log_marginal.quadrature._LAST_POINTS", {2: 5})
    monkeypatch.setattr("vae_pyro.log_marginal.quadrature._FIRST_POINTS", {2: 5})
    quadrature: dict[str, Estimator] = {"log_px_quadrature": Quadrature()}
    evaluation, plan = ask(digits_vae, binary_test_digits[:20], quadrature)
    assert evaluation.compared.reference is None
    assert any("own error estimate is above" in line for line in advice(evaluation, plan))


def test_a_wide_bracket_is_told_of(digits_vae: VAE, binary_test_digits: Tensor) -> None:
    """It is that of the AIS, wherever that stands and whatever it is called."""
    few: dict[str, Estimator] = {"log_px_ais": AIS(3, 2, 1)}
    x = binary_test_digits[:5]
    (line,) = [
        line
        for line in advice(*ask(digits_vae, x, few, simulated_images=50))
        if "simulated" in line
    ]
    assert "raise evaluation.estimators.log_px_ais.num_temperatures" in line
    both: dict[str, Estimator] = {"log_px_ais": ReverseAIS(3, 2, 1), "my_ais": AIS(3, 2, 1)}
    evaluation, plan = ask(digits_vae, x, both, simulated_images=50)
    assert evaluation.metrics["simulated/gap"] > 0.5
    (line,) = [line for line in advice(evaluation, plan) if "simulated" in line]
    assert "raise evaluation.estimators.my_ais.num_temperatures" in line
    alone = {"roof": both["log_px_ais"]}
    evaluation, _ = ask(digits_vae, x, alone, simulated_images=50)
    assert not any(name.startswith("simulated/") for name in evaluation.metrics)


def test_few_images_cannot_tell_the_information() -> None:
    narrow = LinearGaussian(stretch=0.05)
    lines = advice(*ask(narrow.vae, narrow.sample(20), {}, latent=True))
    assert any("I(x; z) is estimated to lie between" in line for line in lines)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def column(found: Sequence[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) for row in found if row[name]]


def test_tables_hold_what_was_measured() -> None:
    truth = LinearGaussian(shift=0.2)
    x = truth.sample(40)
    estimators: dict[str, Estimator] = {"log_px_ais": AIS(10, 30, 2), "log_px_exact": Exact()}
    plan = EvaluationPlan(100, [5], estimators, num_images=7)
    evaluation = evaluate(truth.vae, x, plan, seed=0, draws=2)
    m = evaluation.metrics
    by_name = {row["estimator"]: row for row in rows(estimators_csv(evaluation))}
    assert list(by_name) == ["elbo", "iwae_5", "log_px", "log_px_ais", "log_px_exact"]
    ais = by_name["log_px_ais"]
    assert float(ais["nats_per_image"]) == m["compared/log_px_ais"]
    assert float(ais["std_error"]) == m["compared/log_px_ais_std_error"]
    assert float(ais["image_std_error"]) == m["compared/log_px_ais_image_std_error"]
    assert float(ais["minus_reference"]) == pytest.approx(
        m["compared/log_px_ais"] - m["compared/log_px_exact"]
    )
    exact = by_name["log_px_exact"]
    assert float(exact["nats_per_image"]) == m["compared/log_px_exact"] != m["test/log_px_exact"]
    assert float(ais["decoder_evaluations_per_image"]) == (30 + 4) * (1 + 10 * 2)
    images = rows(per_image_csv(evaluation))
    assert [(row["image"], row["draw"]) for row in images] == [
        (str(image), str(draw)) for draw in range(2) for image in range(20)
    ]
    value = evaluation.estimates["log_px"].estimate.value
    assert column(images, "log_px") == value.tolist()
    truth_of_all = Exact()(truth.vae, x).value.tolist()
    assert column(images, "log_px_exact") == pytest.approx(truth_of_all, abs=1e-9)
    assert {"log_px_pareto_k", "log_px_ais_acceptance"} < images[0].keys()
    assert [row["log_px_ais"] for row in images[7:20]] == [""] * 13
    shown = comparison(evaluation, -3.0)
    assert shown.header[4] == "- exact"
    assert [row[0] for row in shown.rows] == ["ELBO", "IWAE-5", "adaptive", "ais", "exact"]
    assert [row[2][0] for row in shown.rows] == ["≥"] * 5
    upper, _ = ask(truth.vae, x, {"log_px_upper": ReverseAIS(5, 4, 2)})
    assert not comparison(upper, -3.0).rows[-1][2].startswith("≥")
    assert float(shown.rows[-1][2].split()[1]) == pytest.approx(
        m["compared/log_px_exact"] - 3, abs=0.1
    )
    assert re.fullmatch(r"≥ -\d+\.\d+ ± \d\.\d+", shown.rows[-1][2])
    latent = rows(latent_csv(truth.vae, x))
    assert column(latent, "kl") == pytest.approx(truth.kl(x).mean(0).tolist())
    assert sum(int(row["active"]) for row in latent) == m["test/active_units"]


class Stop(BaseException):
    pass


def stop_after(chunks: int) -> ShowProgress:
    """Interrupts the evaluation when so many chunks are kept."""
    left = [chunks]

    @contextmanager
    def progress(_label: str, _total: int) -> Iterator[Callable[[int, str], None]]:
        def report(done: int, state: str) -> None:
            if done and not state:  # a chunk has ended
                left[0] -= 1
                if not left[0]:
                    raise Stop

        yield report

    return progress


@pytest.mark.parametrize("chunks", [1, 4, 9, 12])
def test_an_interrupted_evaluation_leaves_the_same_table_to_the_byte(
    tmp_path: Path, chunks: int
) -> None:
    """9 chunks of 220 images, 5 of 120 for each further estimator, 4 of the 100 later ones."""
    truth = LinearGaussian(shift=0.2)
    estimators: dict[str, Estimator] = {
        "log_px_wide": ImportanceSampling(60, inflation=1.5),
        "log_px_ais": AIS(10, 4, 2),
        "log_px_quadrature": Quadrature(),
        "elbo_local": LocalELBO(5, 4, 10),
    }

    def table(folder: Path | None, progress: ShowProgress = no_progress) -> str:
        plan = EvaluationPlan(60, [5], estimators, num_images=60)
        x = truth.sample(220)
        return per_image_csv(
            evaluate(truth.vae, x, plan, seed=0, draws=2, folder=folder, progress=progress)
        )

    undisturbed = table(None)
    header = undisturbed.splitlines()[0].split(",")
    assert header != sorted(header)
    with pytest.raises(Stop):
        table(tmp_path, stop_after(chunks))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == chunks
    assert table(tmp_path) == undisturbed
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # read, not computed again


def test_labels() -> None:
    names = ["elbo", "iwae_50", "log_px", "log_px_ais", "elbo_local", "log_px_my_own"]
    labels = ["ELBO", "IWAE-50", "adaptive", "ais", "ELBO, local", "my_own"]
    assert [estimator_label(name) for name in names] == labels
