"""The estimators of one evaluation side by side, and notes on which of them to rely on."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.evaluation import (
    ACTIVE_VARIANCE,
    EstimatorComparison,
    Evaluation,
    EvaluationPlan,
    first_ais,
    kl_per_dimension,
    pareto_k_high,
    posterior_means,
)
from vae_pyro.evaluation.names import is_standard
from vae_pyro.log_marginal import Bound, Estimate, ReverseAIS, TimedEstimate
from vae_pyro.log_marginal.quadrature import MAX_DIM
from vae_pyro.reporting.results import bound_label
from vae_pyro.reporting.tables import SummaryTable, to_csv
from vae_pyro.vae import VAE

_MORE = 10  # times as many evaluations: less leaves most images untrusted that are so now
_REMEDIES = {"quadrature": "a grid over z, quadrature", "ais": "annealed importance sampling"}
_INEXACT = 0.01  # nats, of quadrature
_WIDE_BRACKET = 0.5  # nats between AIS and its upper bound on simulated images


def estimator_label(name: str) -> str:
    """The estimator's name in a table.

    >>> [estimator_label(name) for name in ("log_px", "iwae_50", "log_px_ais", "elbo_local")]
    ['adaptive', 'IWAE-50', 'ais', 'ELBO, local']
    """
    if name == "log_px":
        return "adaptive"
    if is_standard(name):
        return bound_label(f"test/{name}")
    return name.removeprefix("log_px_").replace("elbo_", "ELBO, ")


def comparison(evaluation: Evaluation, log_cell_volume: float) -> SummaryTable:
    """One row per estimator, all on the same images.

    Args:
        evaluation: with further estimators.
        log_cell_volume: added to every value, so that a density bounds log P(image) from below.

    >>> from vae_pyro.evaluation import evaluate
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.log_marginal import PriorSampling
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> plan = EvaluationPlan(50, [10], {"log_px_prior": PriorSampling(50)})
    >>> table = comparison(evaluate(vae, torch.zeros(5, 1, 4, 4), plan, seed=0), 0.0)
    >>> table.title, [row[0] for row in table.rows]
    ('log p(x) of the first 5 test images', ['ELBO', 'IWAE-10', 'adaptive', 'prior'])
    """
    compared = evaluation.compared
    known = compared.reference
    rows = []
    for name, timed in compared.estimates.items():
        if name == "iwae_1":  # it is the ELBO
            continue
        estimate = timed.estimate
        # An upper bound on a density gives no bound on P(image).
        sign = "≥ " * (bool(log_cell_volume) and estimate.bound is not Bound.UPPER)
        row = {
            "estimator": estimator_label(name),
            "bound": estimate.bound.value,
            "log p(x)": estimate.shown(log_cell_volume, evaluation.draws, sign),
            "± images": f"{estimate.image_std_error(evaluation.draws):.2f}",
        }
        if known is not None:
            row[f"- {estimator_label(known)}"] = f"{compared.difference(name, known):+.3f}"
        high, size = pareto_k_high(estimate), estimate.diagnostics.get("effective_sample_size")
        row["high k-hat"] = "" if math.isnan(high) else f"{high:.0%}"
        row["ESS"] = "" if size is None else f"{size.mean():.0f}"
        row["decoder evaluations"] = f"{estimate.evaluations:,.0f}"
        row["seconds / image"] = f"{_seconds_per_image(timed):.3f}"
        rows.append(row)
    header = list(rows[0])
    return SummaryTable(
        f"log p(x) of the first {compared.num_images} test images",
        header,
        [[row[name] for name in header] for row in rows],
    )


def advice(evaluation: Evaluation, plan: EvaluationPlan) -> list[str]:
    """Notes on which numbers not to rely on, and what to try; a line each, none where all is well.

    Args:
        evaluation: from ``evaluate``.
        plan: that it was computed by.
    """
    return [
        *_about_weights(evaluation, plan),
        *_about_quadrature(evaluation.compared),
        *_about_agreement(evaluation.compared),
        *_about_upper(evaluation.compared),
        *_about_bracket(evaluation, plan),
        *_about_split(evaluation),
        *_about_information(evaluation),
    ]


def _about_weights(evaluation: Evaluation, plan: EvaluationPlan) -> Iterable[str]:
    log_px = evaluation.estimates["log_px"].estimate
    number = int(log_px.disagreeing.sum())
    if log_px.is_trusted and not number:
        return
    name = "quadrature" if evaluation.latent_dim <= MAX_DIM else "ais"
    ways_out = [f"more evaluations (evaluation.num_evaluations={_MORE * log_px.evaluations:.0f})"]
    if f"log_px_{name}" not in plan.estimators:
        ways_out.insert(0, f"{_REMEDIES[name]} (evaluation/estimators=[{name}])")
    use = f"log p(x) may be higher than shown. Use {' or '.join(ways_out)}"
    if number:
        yield (
            f"log p(x) was estimated twice for {log_px.num_checked} test images. For {number} of "
            f"them the two values differ by more than their error bars allow, because a part of "
            f"the posterior was missed: {use}"
        )
    if not log_px.is_trusted:
        share = evaluation.metrics["test/untrusted"]
        yield (
            f"for {share:.0%} of the test images the error bar of log p(x) cannot be trusted "
            f"(k-hat is too high, or a second estimate disagrees), so no ± is printed: {use}"
        )


def _about_quadrature(compared: EstimatorComparison) -> Iterable[str]:
    for name in compared:
        if compared[name].bound is Bound.NUMERIC:
            inexact = compared[name].std_error > _INEXACT
            if inexact.any():
                yield (
                    f"{estimator_label(name)}: its own error estimate is above {_INEXACT} nats for "
                    f"{int(inexact.sum())} of {len(inexact)} images"
                )


def _about_agreement(compared: EstimatorComparison) -> Iterable[str]:
    """Estimators further from the reference, or below the best bound, than chance allows."""
    is_known = compared.reference is not None
    best = compared.reference or compared.tightest
    wrong = []
    for name in compared.targeting:
        distance = compared.difference(name, best)
        # Without a reference, an estimate above the highest lower bound is no contradiction.
        if compared.contradicts(name, best) and (is_known or distance < 0):
            wrong.append(f"{estimator_label(name)} ({distance:+.3f})")
    if wrong:
        yield (
            f"further {'from' if is_known else 'below'} {estimator_label(best)} than their ± "
            f"allows: {', '.join(wrong)} nats. Do not rely on them with these settings"
        )


def _about_upper(compared: EstimatorComparison) -> Iterable[str]:
    for name in compared:
        if isinstance(compared.estimators[name], ReverseAIS):
            yield (
                f"{estimator_label(name)} is an upper bound only if the AIS chains reached the "
                "posterior"
            )


def _about_bracket(evaluation: Evaluation, plan: EvaluationPlan) -> Iterable[str]:
    m = evaluation.metrics
    if "simulated/gap" not in m:
        return
    words = (
        "on images simulated from the model, the lower and the upper bound of AIS are "
        f"{m['simulated/gap']:.3f} ± {m['simulated/gap_image_std_error']:.3f} nats apart"
    )
    ais = first_ais(plan.estimators)
    if m["simulated/gap"] > _WIDE_BRACKET and ais is not None:
        words += (
            ", so AIS may be wrong by as much: raise "
            f"evaluation.estimators.{ais[0]}.num_temperatures"
        )
    yield words


def _about_split(evaluation: Evaluation) -> Iterable[str]:
    compared = evaluation.compared
    if "compared/approximation_gap" in evaluation.metrics and compared.reference is None:
        yield (
            f"approximation_gap uses the highest lower bound ({estimator_label(compared.tightest)})"
            " in place of log p(x), so the true gap may be larger"
        )


def _about_information(evaluation: Evaluation) -> Iterable[str]:
    m = evaluation.metrics
    scope = next((s for s in ("test", "compared") if f"{s}/mutual_information" in m), None)
    if scope is None:
        return
    low, high = m[f"{scope}/mutual_information"], m[f"{scope}/mutual_information_upper"]
    if high - low > 0.1 * high:
        yield (
            f"I(x; z) is estimated to lie between {low:.2f} and "
            f"{min(high, m[f'{scope}/kl']):.2f} nats: the test images are too few for a narrower "
            "range"
        )


def estimators_csv(evaluation: Evaluation) -> str:
    """One row per estimator: what ``comparison`` shows, unrounded."""
    compared, draws = evaluation.compared, evaluation.draws
    known = compared.reference
    rows: list[dict[str, object]] = [
        {
            "estimator": name,
            "bound": timed.estimate.bound.value,
            "nats_per_image": timed.estimate.mean(),
            "std_error": timed.estimate.mean_std_error(draws),
            "image_std_error": timed.estimate.image_std_error(draws),
            "minus_reference": "" if known is None else compared.difference(name, known),
            "pareto_k_high": pareto_k_high(timed.estimate),
            "untrusted": timed.estimate.untrusted_share,
            "decoder_evaluations_per_image": timed.estimate.evaluations,
            "seconds_per_image": _seconds_per_image(timed),
        }
        for name, timed in compared.estimates.items()
    ]
    return to_csv(rows, list(rows[0]))


def per_image_csv(evaluation: Evaluation) -> str:
    """One row per test image (and sample of it): every estimator's value, error and diagnostics.

    Where an estimator was run on the first images only, its other cells are empty.

    Raises:
        ValueError: where two columns have one name.
    """
    draws = evaluation.draws
    num_images = len(evaluation.estimates["log_px"].estimate.value) // draws
    rows: list[dict[str, object]] = [
        {"image": image, "draw": draw} for draw in range(draws) for image in range(num_images)
    ]
    columns = ["image", "draw"]
    for name, first in evaluation.compared.estimates.items():
        timed = evaluation.estimates.get(name, first)
        for column, numbers in _columns(name, timed.estimate).items():
            if column in columns:
                raise ValueError(f"two columns have the name {column}; rename an estimator")
            columns.append(column)
            for draw, block in enumerate(numbers.reshape(draws, -1).tolist()):
                for row, number in zip(rows[draw * num_images :], block, strict=False):
                    row[column] = number
    return to_csv(rows, columns)


def _columns(name: str, estimate: Estimate) -> dict[str, Tensor]:
    """One estimator's columns of ``per_image.csv``."""
    columns = {name: estimate.value}
    if estimate.bound is not Bound.EXACT:
        columns[f"{name}_std_error"] = estimate.std_error
    for key, numbers in estimate.diagnostics.items():
        # Those of the guide's weights would be repeated for the ELBO and every IWAE bound.
        if name == "log_px" or not is_standard(name):
            columns[f"{name}_{key}"] = numbers
    return columns


def latent_csv(vae: VAE, x: Tensor) -> str:
    """One row per latent dimension: how its posterior means vary, and its KL where it is known."""
    means = posterior_means(vae, x).double()
    variances = means.var(0)
    try:
        kl = kl_per_dimension(vae, x)
        kls, errors = kl.mean(0), kl.std(0) / len(kl) ** 0.5
    except EstimatorError:
        kls = errors = torch.full_like(variances, math.nan)
    rows: list[dict[str, object]] = [
        {
            "dimension": d,
            "variance_of_means": variances[d].item(),
            "active": int(variances[d] > ACTIVE_VARIANCE),
            "kl": kls[d].item(),
            "kl_image_std_error": errors[d].item(),
        }
        for d in range(len(variances))
    ]
    return to_csv(rows, list(rows[0]))


def _seconds_per_image(timed: TimedEstimate) -> float:
    return timed.seconds / len(timed.estimate.value)
