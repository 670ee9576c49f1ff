"""Paths through the latent space, and the images along them."""

import torch
from torch import Tensor

from experiments.images import grey_values
from experiments.vaes import Trained
from vae_pyro.evaluation.latent import ACTIVE_VARIANCE, posterior_means


def decode(trained: Trained, z: Tensor) -> Tensor:
    """Mean images of p(x | z) for ``(*batch, D)``: ``(*batch, C, H, W)``."""
    with torch.no_grad():
        means: Tensor = trained.vae.model.decode(z).mean
    return means


def grey(trained: Trained, images: Tensor) -> Tensor:
    """Images of the data set as grey values, on the VAE's device."""
    return grey_values(images, trained.dataset.num_levels).to(trained.vae.device)


def as_x(trained: Trained, images: Tensor, generator: torch.Generator) -> Tensor:
    """Grey images ``(N, C, H, W)`` -> x, prepared for the likelihood as real images are."""
    levels = trained.dataset.num_levels
    if levels is not None:
        images = (images * (levels - 1)).round().clamp(0, levels - 1).to(torch.uint8)
    x: Tensor = trained.vae.model.likelihood.prepare(images.cpu(), generator)
    return x.to(trained.vae.device)


def between(a: Tensor, b: Tensor, steps: int) -> Tensor:
    """Even steps from a to b, both ``(N, ..)``; returns ``(steps, N, ..)``."""
    share = torch.linspace(0, 1, steps).to(a).reshape(-1, *[1] * a.dim())
    return (1 - share) * a + share * b


def along(z: Tensor, direction: Tensor, reach: float, steps: int) -> Tensor:
    """z ``(N, D)`` moved by -reach .. reach along a unit vector ``(D,)``: ``(steps, N, D)``."""
    return z + torch.linspace(-reach, reach, steps).to(z)[:, None, None] * direction


def across(z: Tensor, direction: Tensor, reach: float, steps: int) -> Tensor:
    """As ``along``, but the move replaces the coordinate of z along the direction: a traversal."""
    return along(z - (z @ direction)[:, None] * direction, direction, reach, steps)


def active_dimensions(means: Tensor) -> Tensor:
    """The active dimensions by the variance of means ``(N, D)``, largest first; at least one."""
    variances = means.var(0)
    order = variances.argsort(descending=True)
    return order[: max(1, int((variances > ACTIVE_VARIANCE).sum()))]


def random_directions(active: Tensor, latent_dim: int, generator: torch.Generator) -> Tensor:
    """Random unit vectors within the active dimensions, one per active dimension, ``(A, D)``."""
    found = torch.zeros(len(active), latent_dim)
    found[:, active.cpu()] = torch.randn(len(active), len(active), generator=generator)
    return (found / found.norm(dim=1, keepdim=True)).to(active.device)


def codes(trained: Trained, x: Tensor) -> Tensor:
    """Posterior means of x ``(N, C, H, W)``, ``(N, D)``."""
    return posterior_means(trained.vae, x)
