"""From a trained VAE and held-out images to the metrics of the contract."""

import math
from collections.abc import Sequence

from torch import Tensor

from vae_pyro.latent import active_units, posterior_means
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import ELBO, IWAE, ImportanceSampling, elbo_parts, estimate_together
from vae_pyro.log_marginal.importance import WeightEstimator
from vae_pyro.log_marginal.weights import OnProgress
from vae_pyro.vae import VAE

HIGH_PARETO_K = 0.7  # Vehtari et al. (2024): above, importance sampling is not to be relied on


def validate(vae: VAE, x: Tensor, num_samples: int) -> dict[str, float]:
    """``valid/elbo``, ``valid/reconstruction`` and ``valid/kl``, each with its standard error.

    Of the x given: the errors contain no other draw of x (binarisation or dequantisation).

    Args:
        vae: the pair.
        x: validation images, ``(N, C, H, W)``.
        num_samples: z's per image.
    """
    metrics: dict[str, float] = {}
    for name, estimate in elbo_parts(vae, x, num_samples).items():
        metrics[f"valid/{name}"] = estimate.mean()
        metrics[f"valid/{name}_std_error"] = estimate.mean_std_error()
    return metrics


def evaluate(
    vae: VAE,
    x: Tensor,
    num_samples: int,
    iwae_samples: Sequence[int],
    on_progress: OnProgress | None = None,
    draws: int = 1,
) -> dict[str, float]:
    """Every ``test/`` metric, from one set of weights: nats per image, higher is better.

    ``test/bits_per_dim`` is of the images as levels, also for a density of dequantised pixels;
    there is none for real-valued data.

    Args:
        vae: the pair.
        x: test images, ``(N, C, H, W)``.
        num_samples: z's per image.
        iwae_samples: each K for an IWAE-K bound.
        on_progress: called after every chunk with (weights done, running ELBO).
        draws: x holds so many blocks, each a fresh draw from the same images, and the numbers are
            means over them; standard errors then contain the draw.
    """
    estimators: dict[str, WeightEstimator] = {
        "elbo": ELBO(num_samples),
        **{f"iwae_{k}": IWAE(num_samples, k) for k in iwae_samples},
        "log_px": ImportanceSampling(num_samples),
    }
    estimates = estimate_together(estimators, vae, x, on_progress)
    metrics: dict[str, float] = {}
    for name, estimate in estimates.items():
        metrics[f"test/{name}"] = estimate.mean()
        metrics[f"test/{name}_std_error"] = estimate.mean_std_error(draws)
    log_px = estimates["log_px"]
    metrics["test/gap"] = metrics["test/log_px"] - metrics["test/elbo"]
    cell = log_cell_volume(vae.model.likelihood, x.shape[1:])
    if cell is not None:
        nats_per_bit_of_image = math.log(2) * x[0].numel()
        metrics["test/bits_per_dim"] = -(metrics["test/log_px"] + cell) / nats_per_bit_of_image
        metrics["test/bits_per_dim_std_error"] = (
            metrics["test/log_px_std_error"] / nats_per_bit_of_image
        )
    metrics["test/effective_sample_size"] = (
        log_px.diagnostics["effective_sample_size"].mean().item()
    )
    high = log_px.diagnostics["pareto_k"] > HIGH_PARETO_K
    metrics["test/pareto_k_high"] = high.double().mean().item()
    metrics["test/active_units"] = float(active_units(posterior_means(vae, x)))
    return metrics


def log_cell_volume(likelihood: Likelihood, image_shape: Sequence[int]) -> float | None:
    """What turns log p(x) into (a lower bound on) the log probability of the image, in nats.

    0 for probabilities; -D log L for a density of images of D pixels and channels with L levels
    each; None for real-valued data.

    Source: Theis et al. (2016), section 3.1.
    """
    width = likelihood.log_cell_width
    return None if width is None else math.prod(image_shape) * width
