"""From a trained VAE and test images to the metrics of the contract."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_pyro.compilation.precision import fast_arithmetic
from vae_pyro.evaluation.agreement import EstimatorComparison, subtract
from vae_pyro.evaluation.latent import (
    active_units,
    active_units_std_error,
    information,
    posterior_means,
)
from vae_pyro.evaluation.names import Scope, merge, metrics_of
from vae_pyro.evaluation.plan import EvaluationPlan, first_ais
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import (
    AIS,
    Estimate,
    TimedEstimate,
    bidirectional,
    estimate_together,
)
from vae_pyro.log_marginal.diagnostics import high_pareto_k
from vae_pyro.log_marginal.together import for_all_images
from vae_pyro.log_marginal.weights import log_joint
from vae_pyro.progress import ShowProgress, no_progress
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

_ROUNDED_TOGETHER = 500  # images whose float64 decoder outputs fit into memory
_LATENT_IMAGES = 2000  # in the aggregated posterior: its cost grows with their square


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` returns.

    Attributes:
        metrics: by their contract names.
        estimates: for all images, by name: elbo, iwae_<K>, log_px, and the further estimators that
            were run on all images. Their means are metrics under ``test/``.
        compared: all estimators on the same first images. Their means are the metrics under
            ``compared/``.
        latent_dim: of the VAE.
    """

    metrics: dict[str, float]
    estimates: Mapping[str, TimedEstimate]
    compared: EstimatorComparison
    latent_dim: int

    @property
    def draws(self) -> int:
        """Samples of x per image."""
        return self.compared.draws


def evaluate(
    vae: VAE,
    x: Tensor,
    plan: EvaluationPlan,
    *,
    seed: int,
    draws: int = 1,
    folder: Path | str | None = None,
    progress: ShowProgress = no_progress,
) -> Evaluation:
    """Compute every metric of the test images: nats per image, higher is better.

    A metric under ``test/`` is over all images. The further estimators' results for the first
    images, and the others' for the same images, are under ``compared/``.

    A Monte Carlo number has two errors beside it: ``_std_error``, how far it may move when the same
    images are evaluated again, and ``_image_std_error``, with other images of the same kind.
    ``test/bits_per_dim`` is that of the images as levels, also for a density of dequantised pixels;
    real-valued data have none.

    Args:
        vae: the pair, in evaluation mode.
        x: test images, ``(N, C, H, W)``, prepared for the likelihood.
        plan: what is computed.
        seed: of all random numbers.
        draws: x holds so many blocks, each a fresh sample of x (a dequantisation) from the same
            images, and the metrics are means over them; standard errors then cover that sampling.
        folder: where estimates are kept chunk by chunk, and read back; see ``estimate_together``.
        progress: shows how far each estimator is.

    Raises:
        EstimatorError: where a further estimator does not apply to this VAE; before anything is
            computed.

    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.log_marginal import Quadrature
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> plan = EvaluationPlan(100, [10], {"log_px_quadrature": Quadrature()})
    >>> evaluation = evaluate(vae, torch.zeros(5, 1, 4, 4), plan, seed=0)
    >>> metrics = evaluation.metrics
    >>> metrics["test/elbo"] <= metrics["test/log_px"]
    True
    >>> evaluation.compared.reference
    'log_px_quadrature'
    """
    for estimator in plan.estimators.values():
        estimator.check(vae)
    how: dict[str, Any] = {"seed": seed, "folder": folder, "progress": progress}
    standard = estimate_together(plan.standard, vae, x, **how)
    if plan.repeated_images:
        standard["log_px"] = _checked(standard["log_px"], plan, vae, x[: len(x) // draws], how)
    one_draw = x[: len(x) // draws]  # so that N images are counted as N
    about_the_vae = merge(
        _quality(standard["log_px"].estimate, standard["elbo"].estimate, draws),
        _bits(standard["log_px"].estimate, draws, vae.model.likelihood, x.shape[1:]),
        {"test/rounding_error": max(rounding_error(vae, p) for p in x.split(_ROUNDED_TOGETHER))},
        _units(vae, one_draw),
        _information(vae, one_draw, seed) if plan.latent else {},
    )

    first = torch.arange(len(x)).reshape(draws, -1)[:, : plan.num_images].flatten()
    chosen = x[first.to(x.device)]
    further = estimate_together(plan.estimators, vae, chosen, **how)
    complete = for_all_images(further, plan.estimators, vae, x, first, **how)
    share = len(first) / len(x)
    of_the_first = {
        name: TimedEstimate(timed.estimate.select(first), timed.seconds * share)
        for name, timed in standard.items()
    }
    compared = EstimatorComparison(
        plan.standard | dict(plan.estimators), of_the_first | further, draws
    )
    ais = first_ais(plan.estimators)
    metrics = merge(
        *(metrics_of("test", name, timed.estimate, draws) for name, timed in standard.items()),
        about_the_vae,
        *(metrics_of("test", name, timed.estimate, draws) for name, timed in complete.items()),
        compared.metrics() if further else {},
        _simulated(ais[1], vae, plan.simulated_images, how)
        if ais is not None and plan.simulated_images
        else {},
    )
    return Evaluation(metrics, standard | complete, compared, vae.model.latent_dim)


def rounding_error(vae: VAE, x: Tensor) -> float:
    """Largest difference of log p(x, z) between the model's precision and float64, in nats.

    z is the guide's mean of each image. The precision of matrix products is included.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
    """
    exact = copy.deepcopy(vae).double()
    with torch.no_grad(), fast_arithmetic(x.device):
        z = vae.guide.posterior_mean(x)
        rounded, whole = log_joint(vae, x, z), log_joint(exact, x.double(), z.double())
        differences = rounded[0] + rounded[1] - (whole[0] + whole[1])
    return differences.abs().max().item()


def pareto_k_high(estimate: Estimate) -> float:
    """Share of the images whose Pareto k-hat is above its threshold; NaN where there is no k-hat.

    >>> from vae_pyro.log_marginal import Bound
    >>> value, k = torch.zeros(4), torch.tensor([0.1, 0.6, 0.8, 0.2])
    >>> pareto_k_high(Estimate(value, value, Bound.LOWER, {"pareto_k": k}, num_weights=5000))
    0.25
    """
    k = estimate.diagnostics.get("pareto_k")
    if k is None or k.isnan().any():
        return math.nan
    # Of a bound of the guide the weights are as many as its evaluations.
    threshold = high_pareto_k(estimate.num_weights or int(estimate.evaluations))
    return (k > threshold).double().mean().item()


def log_cell_volume(likelihood: Likelihood, image_shape: Sequence[int]) -> float | None:
    """-D log L: turns a density's log p(x) into a lower bound on log P(image), in nats.

    0 for probabilities; -D log L for a density of images of D pixels and channels with L levels
    each; None for real-valued data.

    Source: Theis et al. (2016), section 3.1.

    >>> from vae_pyro.likelihoods import Bernoulli, Normal
    >>> log_cell_volume(Bernoulli(17), (1, 8, 8))
    0.0
    >>> round(log_cell_volume(Normal(17, scale=0.1), (1, 8, 8)), 2)
    -181.33
    """
    width = likelihood.log_cell_width
    return None if width is None else math.prod(image_shape) * width


def _quality(log_px: Estimate, elbo: Estimate, draws: int) -> dict[str, float]:
    """What the importance weights show about log p(x), and how far below it the ELBO is."""
    return metrics_of("test", "gap", subtract(log_px, elbo), draws) | {
        "test/effective_sample_size": log_px.diagnostics["effective_sample_size"].mean().item(),
        "test/pareto_k_high": pareto_k_high(log_px),
        "test/untrusted": log_px.untrusted_share,
        **_disagreement(log_px),
    }


def _checked(
    log_px: TimedEstimate, plan: EvaluationPlan, vae: VAE, x: Tensor, how: Mapping[str, Any]
) -> TimedEstimate:
    """log p(x), and how far a second estimate for the first images is from it."""
    index = torch.arange(min(plan.repeated_images, len(x)))
    again = {"log_px_again": plan.standard["log_px"]}
    second = estimate_together(again, vae, x[index.to(x.device)], **how)["log_px_again"]
    return replace(log_px, estimate=log_px.estimate.checked_by(second.estimate, index))


def _disagreement(log_px: Estimate) -> dict[str, float]:
    """Of the images that were estimated twice, the share on which both estimates disagree."""
    if not log_px.num_checked:
        return {}
    disagreeing = int(log_px.disagreeing.sum()) / log_px.num_checked
    return {
        "compared/repeated_images": float(log_px.num_checked),
        "compared/disagreeing": disagreeing,
    }


def _bits(
    log_px: Estimate, draws: int, likelihood: Likelihood, image_shape: Sequence[int]
) -> dict[str, float]:
    """-log2 P(image) per pixel and channel; nothing for real-valued data."""
    cell = log_cell_volume(likelihood, image_shape)
    if cell is None:
        return {}
    nats = math.log(2) * math.prod(image_shape)  # of an image with one bit per dimension
    return {
        "test/bits_per_dim": -(log_px.mean() + cell) / nats,
        "test/bits_per_dim_std_error": log_px.mean_std_error(draws) / nats,
        "test/bits_per_dim_image_std_error": log_px.image_std_error(draws) / nats,
    }


def _units(vae: VAE, x: Tensor) -> dict[str, float]:
    means = posterior_means(vae, x)
    return {
        "test/active_units": float(active_units(means)),
        "test/active_units_std_error": active_units_std_error(means),
    }


def _information(vae: VAE, x: Tensor, seed: int) -> dict[str, float]:
    with RandomStream("latent space", seed, x.device).active():
        measures = information(vae, x[:_LATENT_IMAGES])
    scope: Scope = "test" if len(x) <= _LATENT_IMAGES else "compared"
    return merge(*(metrics_of(scope, name, number) for name, number in vars(measures).items()))


def _simulated(ais: AIS, vae: VAE, num_images: int, how: Mapping[str, Any]) -> dict[str, float]:
    """AIS and its upper bound on images simulated from the model, and the distance of the two."""
    lower, upper = (timed.estimate for timed in bidirectional(ais, vae, num_images, **how))
    return merge(
        metrics_of("simulated", "log_px_ais", lower),
        metrics_of("simulated", "log_px_upper", upper),
        metrics_of("simulated", "gap", subtract(upper, lower)),
    )
