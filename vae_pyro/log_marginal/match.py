"""Batch and match: a normal distribution fitted to gradients of log p(x, z), in few steps."""

import torch
from jaxtyping import Float
from torch import Tensor


def match(
    loc: Float[Tensor, "batch dims"],
    covariance: Float[Tensor, "batch dims dims"],
    z: Float[Tensor, "batch samples dims"],
    gradient: Float[Tensor, "batch samples dims"],
    rate: float,
) -> tuple[Float[Tensor, "batch dims"], Float[Tensor, "batch dims dims"]]:
    """The normal whose score lies nearer to the target's at samples of the present normal.

    With as many samples as dimensions and a large rate, one step finds a normal target exactly,
    whatever its scale and correlations: it is a Newton step that needs no Hessian.

    Args:
        loc: mean, ``(batch, D)``.
        covariance: ``(batch, D, D)``.
        z: samples of this normal, ``(batch, samples, D)``.
        gradient: of the target's log density at z, likewise.
        rate: how far to move, positive; large moves all the way.

    Returns:
        the new mean and covariance.

    Source: Cai et al. (2024), batch and match, algorithm 1.
    """
    step = rate / (1 + rate)
    mean_z, mean_g = z.mean(1), gradient.mean(1)
    dz, dg, shift = z - mean_z[:, None], gradient - mean_g[:, None], loc - mean_z
    num_samples = z.shape[1]
    u = rate / num_samples * dg.mT @ dg + step * mean_g[:, :, None] * mean_g[:, None]
    v = rate / num_samples * dz.mT @ dz + step * shift[:, :, None] * shift[:, None] + covariance
    # The positive solution of C U C + C = V, by the eigenvectors of L' U L where V = L L'.
    factor = torch.linalg.cholesky(v)
    eigenvalues, vectors = torch.linalg.eigh(factor.mT @ u @ factor)
    root = factor @ vectors
    shrink = 2 / (1 + (1 + 4 * eigenvalues.clamp(min=0)).sqrt())
    new = (root * shrink[:, None]) @ root.mT
    return loc / (1 + rate) + step * ((new @ mean_g[..., None])[..., 0] + mean_z), new
