"""The metrics of the validation images after each epoch."""

from torch import Tensor

from vae_pyro.log_marginal import elbo_parts
from vae_pyro.vae import VAE


def validate(vae: VAE, x: Tensor, num_samples: int) -> dict[str, float]:
    """ELBO = E_q[log p(x | z)] - KL(q(z | x) || p(z)), and its two parts.

    Returns ``valid/elbo``, ``valid/reconstruction`` and ``valid/kl``, each with its standard error:
    nats per image. The errors are those of these x; another binarisation or dequantisation of the
    same images is not covered.

    Args:
        vae: the pair.
        x: validation images, ``(N, C, H, W)``.
        num_samples: z's per image, at least 2 for finite standard errors.

    >>> import torch
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> metrics = validate(vae, torch.zeros(3, 1, 4, 4), num_samples=10)
    >>> whole = metrics["valid/reconstruction"] - metrics["valid/kl"]
    >>> abs(metrics["valid/elbo"] - whole) < 1e-4
    True
    """
    metrics: dict[str, float] = {}
    for name, number in elbo_parts(vae, x, num_samples).items():
        metrics[f"valid/{name}"] = number.mean()
        metrics[f"valid/{name}_std_error"] = number.mean_std_error()
    return metrics
