"""What the estimators said, side by side, and in plain words whether to believe it."""

import csv
import io
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.evaluation.latent import ACTIVE_VARIANCE, kl_per_dimension, posterior_means
from vae_pyro.evaluation.metrics import Evaluation, EvaluationPlan, pareto_k_high
from vae_pyro.log_marginal import AIS, Bound, Estimate, TimedEstimate
from vae_pyro.log_marginal.importance import WeightEstimator
from vae_pyro.reporting.tables import SummaryTable, bound_label
from vae_pyro.vae import VAE

_MANY_HIGH = 0.1  # share of the images whose k-hat may be high before a word is due
_TOO_FAR = 4.0  # standard errors
_ROUNDING = 1e-3  # nats
_INEXACT = 0.01  # nats, of quadrature
_WIDE_BRACKET = 0.5  # nats between AIS and its upper bound on simulated images


def estimator_label(name: str) -> str:
    """``log_px_ais`` -> ``ais``; ``iwae_50`` -> ``IWAE-50``; ``log_px`` -> ``importance``."""
    if name == "log_px":
        return "importance"
    if name == "elbo" or name.startswith("iwae_"):
        return bound_label(f"test/{name}")
    return name.removeprefix("log_px_").replace("elbo_", "ELBO, ")


def comparison(evaluation: Evaluation, log_cell_volume: float) -> SummaryTable:
    """One row per estimator, all about the same images.

    Args:
        evaluation: with further estimators.
        log_cell_volume: added to every value, so that a density speaks of the images themselves.
    """
    known = evaluation.reference
    rows = []
    for name, answer in evaluation.compared.items():
        if name == "iwae_1":  # it is the ELBO
            continue
        estimate = answer.estimate
        # Of a density's upper bound and the cell's volume nothing follows for P(image).
        sign = "≥ " * (bool(log_cell_volume) and estimate.bound is not Bound.UPPER)
        row = {
            "estimator": estimator_label(name),
            "bound": estimate.bound.value,
            "log p(x)": f"{sign}{estimate.mean() + log_cell_volume:.3f} "
            f"± {_short(estimate.mean_std_error(evaluation.draws))}",
            "± images": f"{estimate.image_std_error(evaluation.draws):.2f}",
        }
        if known is not None:
            row[f"- {estimator_label(known)}"] = f"{_error(evaluation, name):+.3f}"
        high, size = pareto_k_high(estimate), estimate.diagnostics.get("effective_sample_size")
        row["k-hat > 0.7"] = "" if math.isnan(high) else f"{high:.0%}"
        row["ESS"] = "" if size is None else f"{size.mean():.0f}"
        row["decoder evaluations"] = f"{estimate.evaluations:,.0f}"
        row["seconds / image"] = f"{_seconds_per_image(answer):.3f}"
        rows.append(row)
    num_images = len(evaluation.compared["log_px"].estimate.value) // evaluation.draws
    header = list(rows[0])
    return SummaryTable(
        f"log p(x) of the first {num_images} test images",
        header,
        [[row[name] for name in header] for row in rows],
    )


def advice(evaluation: Evaluation, questions: EvaluationPlan) -> list[str]:
    """What a reader must be told about these numbers, a line each; nothing where all is well."""
    return [
        *_about_weights(evaluation, questions),
        *_about_quadrature(evaluation),
        *_about_agreement(evaluation),
        *_about_upper(evaluation),
        *_about_bracket(evaluation, questions),
        *_about_split(evaluation),
        *_about_information(evaluation),
    ]


def _about_weights(evaluation: Evaluation, questions: EvaluationPlan) -> Iterable[str]:
    share = evaluation.metrics["test/pareto_k_high"]
    if not share > _MANY_HIGH:
        return
    asked = questions.estimators.values()
    ways_out = [f"more samples (evaluation.num_samples={10 * questions.num_samples})"]
    if not any(isinstance(e, WeightEstimator) and e.proposal.is_wider for e in asked):
        ways_out.append("a wider proposal (evaluation/estimators=[defensive])")
    if not any(isinstance(e, AIS) for e in asked):
        ways_out.append("AIS (evaluation/estimators=[ais])")
    size = evaluation.metrics["test/effective_sample_size"]
    yield (
        f"for {share:.0%} of the test images Pareto k-hat is above 0.7 (mean ESS {size:.0f} of "
        f"{questions.num_samples:,}): the guide misses part of the posterior, so log p(x) may lie "
        f"higher than shown and its ± is too small. Ask for {' or for '.join(ways_out)}"
    )


def _about_quadrature(evaluation: Evaluation) -> Iterable[str]:
    for name, answer in evaluation.compared.items():
        if answer.estimate.bound is Bound.NUMERIC:
            inexact = answer.estimate.std_error > _INEXACT
            if inexact.any():
                yield (
                    f"{estimator_label(name)}'s own error estimate is above {_INEXACT} nats for "
                    f"{int(inexact.sum())} of {len(inexact)} images"
                )


def _about_agreement(evaluation: Evaluation) -> Iterable[str]:
    """Who lies further from the truth, or below the best bound, than his own error bar allows."""
    judge = evaluation.reference or evaluation.tightest
    wrong = []
    for name in evaluation.compared:
        if not name.startswith("log_px") or name == judge:
            continue
        distance, allowed = _distance(evaluation, name, judge)
        # A lower bound that is judged by a lower bound may lie above it.
        if abs(distance) > allowed and (evaluation.reference is not None or distance < 0):
            wrong.append(f"{estimator_label(name)} ({distance:+.3f})")
    if wrong:
        verb = "further from" if evaluation.reference is not None else "further below"
        yield (
            f"{verb} {estimator_label(judge)} than their ± allows, so not to be relied on at these "
            f"budgets: {', '.join(wrong)}"
        )


def _about_upper(evaluation: Evaluation) -> Iterable[str]:
    bounds = [name for name, a in evaluation.compared.items() if a.estimate.bound is Bound.UPPER]
    if "log_px_upper" in bounds:
        yield "upper is a bound only as far as the chains of AIS had reached the posterior"


def _about_bracket(evaluation: Evaluation, questions: EvaluationPlan) -> Iterable[str]:
    m = evaluation.metrics
    if "simulated/gap" not in m:
        return
    words = (
        "on images simulated from the model AIS from below and from above are "
        f"{m['simulated/gap']:.3f} ± {m['simulated/gap_image_std_error']:.3f} nats apart"
    )
    if m["simulated/gap"] > _WIDE_BRACKET:
        name = next(name for name, e in questions.estimators.items() if isinstance(e, AIS))
        words += (
            ", so do not rely on AIS more closely than that: raise "
            f"evaluation.estimators.{name}.num_temperatures"
        )
    yield words


def _about_split(evaluation: Evaluation) -> Iterable[str]:
    if "compared/approximation_gap" in evaluation.metrics and evaluation.reference is None:
        yield (
            "approximation_gap takes the highest lower bound for log p(x), "
            f"{estimator_label(evaluation.tightest)}: it may be larger"
        )


def _about_information(evaluation: Evaluation) -> Iterable[str]:
    m = evaluation.metrics
    scope = next((s for s in ("test", "compared") if f"{s}/mutual_information" in m), None)
    if scope is None:
        return
    low, high = m[f"{scope}/mutual_information"], m[f"{scope}/mutual_information_upper"]
    if high - low > 0.1 * high:
        yield (
            f"the test images are too few to tell I(x; z) more closely than between {low:.2f} and "
            f"{min(high, m[f'{scope}/kl']):.2f} nats"
        )


def _error(evaluation: Evaluation, name: str) -> float:
    assert evaluation.reference is not None
    return _distance(evaluation, name, evaluation.reference)[0]


def _distance(evaluation: Evaluation, name: str, judge: str) -> tuple[float, float]:
    """Mean difference of two answers about the same images, and how large chance lets it be.

    Chance: 4 standard errors, the logarithm's expected shortfall of half their square image by
    image, and the rounding of float32.
    """
    a, b = (evaluation.compared[key].estimate for key in (name, judge))
    difference = (a.value - b.value).mean().item()
    # Not by draw: the draws of x are shared, and move both answers alike.
    std_error = math.hypot(a.mean_std_error(), b.mean_std_error())
    shortfall = (a.std_error.square().mean() / 2).item()
    return difference, _TOO_FAR * std_error + shortfall + _ROUNDING


def estimators_csv(evaluation: Evaluation) -> str:
    """One row per estimator: what ``comparison`` shows, unrounded."""
    rows = []
    for name, answer in evaluation.compared.items():
        estimate = answer.estimate
        rows.append(
            {
                "estimator": name,
                "bound": estimate.bound.value,
                "nats_per_image": estimate.mean(),
                "std_error": estimate.mean_std_error(evaluation.draws),
                "image_std_error": estimate.image_std_error(evaluation.draws),
                "minus_reference": _error(evaluation, name) if evaluation.reference else "",
                "pareto_k_high": pareto_k_high(estimate),
                "decoder_evaluations_per_image": estimate.evaluations,
                "seconds_per_image": _seconds_per_image(answer),
            }
        )
    return _csv(list(rows[0]), [list(row.values()) for row in rows])


def per_image_csv(evaluation: Evaluation) -> str:
    """One row per test image (and draw of it): every estimator's value, error and diagnostics.

    Where an estimator was run on the first images only, its other cells are empty.
    """
    num_images = len(evaluation.answers["log_px"].estimate.value) // evaluation.draws
    columns: dict[str, Tensor] = {}

    def add(name: str, estimate: Estimate) -> None:
        columns[name] = estimate.value
        if estimate.bound is not Bound.EXACT:
            columns[f"{name}_std_error"] = estimate.std_error
        for key, numbers in estimate.diagnostics.items():
            # The ELBO and the IWAE bounds were read off the same weights as log p(x).
            repeated = name == "elbo" or name.startswith("iwae_")
            if name == "log_px" or not (repeated or "elbo_gap" in key):
                columns[f"{name}_{key}"] = numbers

    for name, answer in evaluation.compared.items():
        add(name, evaluation.answers.get(name, answer).estimate)
    asked = len(evaluation.compared["log_px"].estimate.value) // evaluation.draws
    rows = []
    for draw in range(evaluation.draws):
        for image in range(num_images):
            row: list[object] = [image, draw]
            for numbers in columns.values():
                per_draw = num_images if len(numbers) == num_images * evaluation.draws else asked
                number = numbers[draw * per_draw + image].item() if image < per_draw else ""
                row.append(number)
            rows.append(row)
    return _csv(["image", "draw", *columns], rows)


def latent_csv(vae: VAE, x: Tensor) -> str:
    """One row per latent dimension: how its posterior means vary, and its KL where it is known."""
    means = posterior_means(vae, x).double()
    variances = means.var(0)
    try:
        kl = kl_per_dimension(vae, x)
        kls, errors = kl.mean(0), kl.std(0) / len(kl) ** 0.5
    except EstimatorError:
        kls = errors = torch.full_like(variances, math.nan)
    header = ["dimension", "variance_of_means", "active", "kl", "kl_image_std_error"]
    rows = [
        [
            d,
            variances[d].item(),
            int(variances[d] > ACTIVE_VARIANCE),
            kls[d].item(),
            errors[d].item(),
        ]
        for d in range(len(variances))
    ]
    return _csv(header, rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _seconds_per_image(answer: TimedEstimate) -> float:
    return answer.seconds / len(answer.estimate.value)


def _short(error: float) -> str:
    return f"{error:.3f}" if error >= 5e-4 or error == 0 else f"{error:.0e}"
