"""Climbing to modes: BFGS for many points of many images at once, with a given first metric."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

_LONGEST = 3.0  # step, in standard deviations per root of a dimension: models hold near a point
_SHRINK, _GROW, _MOST = 0.25, 2.0, 4.0  # of the step, after a failure and a success
_CURVED = 1e-3  # least cosine of step and change of gradient: below, a kink or no curvature
_TINY = 1e-12

Slope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""z ``(batch, points, D)`` -> log density ``(batch, points)`` and gradient ``(batch, points, D)``;
where there is no density, -inf and finite numbers."""


def climb(
    slope: Slope,
    z: Float[Tensor, "batch points dims"],
    covariance: Float[Tensor, "batch dims dims"],
    num_gradients: int,
) -> tuple[Float[Tensor, "batch points dims"], Float[Tensor, "batch points"]]:
    """Moves every point to a place of higher log density, near a mode after some ten steps.

    Each step is H g, with g the gradient and H the present estimate of the inverse negative
    Hessian. H starts as ``covariance`` and learns from the changes of g. A step that does not go up
    is not made, and the next one is shorter.

    >>> import torch
    >>> from vae_pyro.log_marginal.climb import climb
    >>> start, metric = torch.tensor([[[3.0, -2.0], [0.0, 9.0]]]), torch.eye(2)[None]
    >>> z, log_density = climb(lambda z: (-2 * z.square().sum(-1), -4 * z), start, metric, 10)
    >>> bool(z.abs().max() < 1e-3), log_density.shape
    (True, torch.Size([1, 2]))

    Args:
        slope: log density and its gradient.
        z: where the points are, ``(batch, points, D)``.
        covariance: about that of a mode, ``(batch, D, D)``.
        num_gradients: for every point, at least 1; the first is at z itself.

    Returns:
        where they are then, ``(batch, points, D)``, and the log density there, ``(batch, points)``.

    Source: Nocedal and Wright (2006), equations 6.17 and 6.18.
    """
    points, dims = z.shape[1:]
    eye = torch.eye(dims, dtype=z.dtype, device=z.device)
    whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
    inverse = covariance[:, None].expand(-1, points, -1, -1)
    log_density, gradient = slope(z)
    share = torch.ones_like(log_density)
    for _ in range(num_gradients - 1):
        move = (inverse @ gradient[..., None])[..., 0]
        length = (move @ whitening.mT).norm(dim=-1)
        limit = (_LONGEST * math.sqrt(dims) / length.clamp(min=_TINY)).clamp(max=1)
        step = (share * limit)[..., None] * move
        value, new = slope(z + step)
        inverse = _learnt(inverse, step, gradient - new, value.isfinite(), eye)
        better = value > log_density
        z = torch.where(better[..., None], z + step, z)
        gradient = torch.where(better[..., None], new, gradient)
        log_density = torch.where(better, value, log_density)
        share = torch.where(better, (_GROW * share).clamp(max=_MOST), _SHRINK * share)
    return z, log_density


def _learnt(inverse: Tensor, step: Tensor, change: Tensor, usable: Tensor, eye: Tensor) -> Tensor:
    """H after a step that changed -g so much; H stays where the curvature there is not downward."""
    product = (step * change).sum(-1)
    usable = usable & (product > _CURVED * step.norm(dim=-1) * change.norm(dim=-1))
    rho = torch.where(usable, 1 / product, 0.0)[..., None, None]
    outer = rho * step[..., :, None]
    left = eye - outer * change[..., None, :]
    return left @ inverse @ left.mT + outer * step[..., None, :]
