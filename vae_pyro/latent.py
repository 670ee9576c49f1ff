"""What the latent space is used for."""

import torch
from torch import Tensor

from vae_pyro.vae import VAE

ACTIVE_VARIANCE = 0.01


def posterior_means(vae: VAE, x: Tensor, batch_size: int = 1000) -> Tensor:
    """E_q(z|x)[z] of every image of x ``(N, C, H, W)``; returns ``(N, D)``."""
    with torch.no_grad():
        return torch.cat([vae.guide.posterior_mean(part) for part in x.split(batch_size)])


def active_units(means: Tensor) -> int:
    """How many latent dimensions tell images apart: Var_x(E_q[z_d]) > 0.01.

    Args:
        means: posterior means, ``(N, D)``.

    Source: Burda et al. (2016), section 5.2.
    """
    return int((means.double().var(0) > ACTIVE_VARIANCE).sum())
