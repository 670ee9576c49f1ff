"""From a trained VAE and held-out images to the metrics of the contract."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from vae_pyro.compilation.precision import fast_matmul
from vae_pyro.evaluation.latent import (
    active_units,
    active_units_std_error,
    information,
    posterior_means,
)
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    ELBOBound,
    Estimate,
    Estimator,
    ImportanceSampling,
    IWAEBound,
    PerImage,
    TimedEstimate,
    bidirectional,
    elbo_parts,
    estimate_together,
)
from vae_pyro.log_marginal.together import ShowProgress, for_all_images, silently
from vae_pyro.log_marginal.weights import log_joint
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

HIGH_PARETO_K = 0.7  # Vehtari et al. (2024): above, importance sampling is not to be relied on
_SMALL_ERROR = 0.1  # nats, for a numeric answer that others are judged by
_ROUNDED_TOGETHER = 500  # images whose float64 decoder outputs fit into memory
_LATENT_IMAGES = 2000  # of which the aggregated posterior is made: its cost grows with the square


def validate(vae: VAE, x: Tensor, num_samples: int) -> dict[str, float]:
    """``valid/elbo``, ``valid/reconstruction`` and ``valid/kl``, each with its standard error.

    Of the x given: the errors contain no other draw of x (binarisation or dequantisation).

    Args:
        vae: the pair.
        x: validation images, ``(N, C, H, W)``.
        num_samples: z's per image.
    """
    metrics: dict[str, float] = {}
    for name, number in elbo_parts(vae, x, num_samples).items():
        metrics[f"valid/{name}"] = number.mean()
        metrics[f"valid/{name}_std_error"] = number.mean_std_error()
    return metrics


@dataclass(frozen=True)
class EvaluationPlan:
    """What is asked of a trained VAE about test images.

    Attributes:
        num_samples: z's per image for the ELBO, the IWAE bounds and importance sampling.
        iwae_samples: each K for an IWAE-K bound.
        estimators: further ones, by the metric that their answer becomes (``log_px_ais``, ..).
        num_images: the further estimators are run on the first so many images, and on all images
            where that is cheap (``Estimator.budget_for_all``); None for all.
        simulated_images: how many images to simulate from the model, on which AIS is tried from
            below and above; 0 for none. Needs an AIS among the estimators.
        latent: whether to measure the information in the latent space.
    """

    num_samples: int
    iwae_samples: Sequence[int]
    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    num_images: int | None = None
    simulated_images: int = 0
    latent: bool = False


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        metrics: by their contract names.
        answers: for every image, by metric name: elbo, iwae_<K>, log_px, and the further estimators
            that were run on all images. Their means are metrics under ``test/``.
        compared: of all estimators, for the same first images. Their means are the metrics under
            ``compared/``.
        draws: blocks of x that stem from the same images.
    """

    metrics: dict[str, float]
    answers: Mapping[str, TimedEstimate]
    compared: Mapping[str, TimedEstimate]
    draws: int

    @property
    def reference(self) -> str | None:
        """The answer that the others are to be judged by: exact, or by quadrature.

        Quadrature only where its own error estimate is small.
        """
        for bound in (Bound.EXACT, Bound.NUMERIC):
            for name, answer in self.compared.items():
                estimate = answer.estimate
                if estimate.bound is bound and estimate.mean_std_error() < _SMALL_ERROR:
                    return name
        return None

    @property
    def tightest(self) -> str:
        """The highest of the lower bounds that are meant as log p(x)."""
        meant = [
            name
            for name, answer in self.compared.items()
            if name.startswith("log_px") and answer.estimate.bound is Bound.LOWER
        ]
        return max(meant, key=lambda name: self.compared[name].estimate.mean())


def evaluate(
    vae: VAE,
    x: Tensor,
    questions: EvaluationPlan,
    *,
    seed: int,
    draws: int = 1,
    folder: Path | None = None,
    progress: ShowProgress = silently,
) -> Evaluation:
    """Every metric of the test images: nats per image, higher is better.

    What stands under ``test/`` is over all images. The further estimators' answers for the first
    images, and the others' for the same images, are under ``compared/``.

    A Monte Carlo number has two errors beside it: ``_std_error``, how far it may move when the same
    images are evaluated anew, and ``_image_std_error``, with other images of the same kind.
    ``test/bits_per_dim`` is of the images as levels, also for a density of dequantised pixels;
    there is none for real-valued data.

    Args:
        vae: the pair.
        x: test images, ``(N, C, H, W)``.
        questions: what is asked.
        seed: of all random numbers.
        draws: x holds so many blocks, each a fresh draw from the same images, and the numbers are
            means over them; standard errors then contain the draw.
        folder: where answers are kept chunk by chunk, and taken from; see ``estimate_together``.
        progress: shows how far each estimator is.

    Raises:
        EstimatorError: where a further estimator has no answer for this VAE.
    """
    for estimator in questions.estimators.values():
        estimator.check(vae)
    family: dict[str, Estimator] = {
        "elbo": ELBOBound(questions.num_samples),
        **{f"iwae_{k}": IWAEBound(questions.num_samples, k) for k in questions.iwae_samples},
        "log_px": ImportanceSampling(questions.num_samples),
    }
    answers = estimate_together(family, vae, x, seed=seed, folder=folder, progress=progress)
    metrics: dict[str, float] = {}
    for name, answer in answers.items():
        _record(metrics, name, answer.estimate, draws)
    _record_quality(metrics, answers["log_px"].estimate, draws)
    _record_bits(metrics, vae.model.likelihood, x.shape[1:])
    parts = x.split(_ROUNDED_TOGETHER)
    metrics["test/rounding_error"] = max(rounding_error(vae, part) for part in parts)
    one_draw = x[: len(x) // draws]  # so that N images are counted as N
    means = posterior_means(vae, one_draw)
    metrics["test/active_units"] = float(active_units(means))
    metrics["test/active_units_std_error"] = active_units_std_error(means)
    if questions.latent:
        with RandomStream("latent space", seed, x.device).active():
            measures = information(vae, one_draw[:_LATENT_IMAGES])
        scope = "test" if len(one_draw) <= _LATENT_IMAGES else "compared"
        for name, number in vars(measures).items():
            _record(metrics, name, number, prefix=scope)

    first = torch.arange(len(x)).reshape(draws, -1)[:, : questions.num_images].flatten()
    compared = {
        name: TimedEstimate(answer.estimate.select(first), answer.seconds * len(first) / len(x))
        for name, answer in answers.items()
    }
    chosen = x[first.to(x.device)]
    further = estimate_together(
        questions.estimators, vae, chosen, seed=seed, folder=folder, progress=progress
    )
    complete = for_all_images(
        further, questions.estimators, vae, x, first, seed=seed, folder=folder, progress=progress
    )
    for name, answer in complete.items():
        _record(metrics, name, answer.estimate, draws)
    evaluation = Evaluation(metrics, answers | complete, compared | further, draws)
    if further:
        metrics["compared/num_images"] = float(len(first) // draws)
        for name, answer in evaluation.compared.items():
            _record(metrics, name, answer.estimate, draws, "compared")
        metrics |= _gaps(evaluation)
    ais = next((e for e in questions.estimators.values() if isinstance(e, AIS)), None)
    if questions.simulated_images and ais is not None:
        lower, upper = bidirectional(
            ais, vae, questions.simulated_images, seed=seed, folder=folder, progress=progress
        )
        gap = _difference(upper.estimate, lower.estimate)
        _record(metrics, "log_px_ais", lower.estimate, prefix="simulated")
        _record(metrics, "log_px_upper", upper.estimate, prefix="simulated")
        _record(metrics, "gap", gap, prefix="simulated")
    return evaluation


def rounding_error(vae: VAE, x: Tensor) -> float:
    """What the model's precision, and that of its matrix products, does to log p(x, z), in nats.

    The largest difference from the same in float64 among the images, each at the guide's mean.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
    """
    exact = copy.deepcopy(vae).double()
    with torch.no_grad(), fast_matmul(x.device):
        z = vae.guide.posterior_mean(x)
        rounded, whole = log_joint(vae, x, z), log_joint(exact, x.double(), z.double())
        differences = rounded[0] + rounded[1] - (whole[0] + whole[1])
    return differences.abs().max().item()


def _record(
    metrics: dict[str, float], name: str, number: PerImage, draws: int = 1, prefix: str = "test"
) -> None:
    metrics[f"{prefix}/{name}"] = number.mean()
    metrics[f"{prefix}/{name}_std_error"] = number.mean_std_error(draws)
    metrics[f"{prefix}/{name}_image_std_error"] = number.image_std_error(draws)


def _record_quality(metrics: dict[str, float], log_px: Estimate, draws: int) -> None:
    """What the weights behind log p(x) tell of it, and of the guide."""
    of = log_px.diagnostics
    _record(metrics, "gap", PerImage(of["elbo_gap"], of["elbo_gap_std_error"]), draws)
    metrics["test/effective_sample_size"] = of["effective_sample_size"].mean().item()
    metrics["test/pareto_k_high"] = pareto_k_high(log_px)


def pareto_k_high(estimate: Estimate) -> float:
    """Share of the images whose k-hat is above 0.7; NaN where there is no k-hat."""
    k = estimate.diagnostics.get("pareto_k")
    if k is None or k.isnan().any():
        return math.nan
    return (k > HIGH_PARETO_K).double().mean().item()


def _record_bits(
    metrics: dict[str, float], likelihood: Likelihood, image_shape: Sequence[int]
) -> None:
    cell = log_cell_volume(likelihood, image_shape)
    if cell is None:
        return
    nats_per_bit_of_image = math.log(2) * math.prod(image_shape)
    metrics["test/bits_per_dim"] = -(metrics["test/log_px"] + cell) / nats_per_bit_of_image
    for error in ("std_error", "image_std_error"):
        metrics[f"test/bits_per_dim_{error}"] = (
            metrics[f"test/log_px_{error}"] / nats_per_bit_of_image
        )


def _gaps(evaluation: Evaluation) -> dict[str, float]:
    """KL(q || p(z | x)) where log p(x) is known; its two parts where the best q was sought.

    All are means over the compared images.

    Source: Cremer et al. (2018), section 3.
    """
    estimates = {name: answer.estimate for name, answer in evaluation.compared.items()}
    draws = evaluation.draws
    metrics: dict[str, float] = {}
    if evaluation.reference is not None:
        known = estimates[evaluation.reference]
        kl = _difference(known, estimates["elbo"])
        _record(metrics, "kl_to_posterior", kl, draws, "compared")
    if "elbo_local" in estimates:
        best = estimates["elbo_local"]
        log_px = estimates[evaluation.reference or evaluation.tightest]
        parts = {
            "approximation_gap": _difference(log_px, best),
            "amortisation_gap": _difference(best, estimates["elbo"]),
        }
        for name, part in parts.items():
            _record(metrics, name, part, draws, "compared")
    return metrics


def _difference(a: PerImage, b: PerImage) -> PerImage:
    """Of two answers about the same images from independent draws."""
    return PerImage(a.value - b.value, torch.hypot(a.std_error, b.std_error))


def log_cell_volume(likelihood: Likelihood, image_shape: Sequence[int]) -> float | None:
    """What turns log p(x) into (a lower bound on) the log probability of the image, in nats.

    0 for probabilities; -D log L for a density of images of D pixels and channels with L levels
    each; None for real-valued data.

    Source: Theis et al. (2016), section 3.1.
    """
    width = likelihood.log_cell_width
    return None if width is None else math.prod(image_shape) * width
