"""Methods in closed form: PCA, probabilistic PCA, and angles between subspaces."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from vae_pyro.data import Dataset


@dataclass(frozen=True)
class PPCA:
    """x = W z + mean + scale e, at the maximum of the likelihood. Float64 throughout.

    Attributes:
        mean: ``(P,)``, of P pixels.
        basis: the principal directions, orthonormal columns, ``(P, D)``.
        lengths: standard deviations of W z along them, ``(D,)``.
        scale: standard deviation of the noise.
        covariance: of the training images, ``(P, P)``.

    Source: Tipping and Bishop (1999), equations 7 and 8.
    """

    mean: Tensor
    basis: Tensor
    lengths: Tensor
    scale: Tensor
    covariance: Tensor

    def encode(self, x: Tensor) -> Tensor:
        """Images ``(N, P)`` -> coordinates in the subspace, in units of ``lengths``, ``(N, D)``."""
        return (x - self.mean) @ self.basis / self.lengths

    def decode(self, z: Tensor) -> Tensor:
        """Mean images, ``(N, P)``; of ``encode(x)``: PCA's projection of x."""
        return self.mean + (z * self.lengths) @ self.basis.T

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of ``(N, P)``, nats, ``(N,)``."""
        noise = self.scale.square().expand(self.mean.shape)
        p = LowRankMultivariateNormal(self.mean, self.basis * self.lengths, noise)
        return p.log_prob(x)

    def variance_kept(self, basis: Tensor) -> float:
        """The variance within another subspace ``(P, D)``, as a share of that within this one."""
        own, other = (torch.trace(b.T @ self.covariance @ b).item() for b in (self.basis, basis))
        return other / own


def fit(images: Tensor, num_levels: int | None, latent_dim: int) -> PPCA:
    """The PPCA of training images ``(N, C, H, W)``, levels or real numbers, in closed form.

    Levels are dequantised exactly: u ~ Uniform(0, 1) adds a variance of 1/12.

    Raises:
        ValueError: if ``latent_dim`` is not below the number of pixels.
    """
    x = images.flatten(1).double()
    pixels = x.shape[1]
    if latent_dim >= pixels:
        raise ValueError(f"latent_dim: must be below the number of pixels, {pixels}")
    mean, covariance = x.mean(0), torch.cov(x.T, correction=0)
    if num_levels is not None:
        mean = (mean + 0.5) / num_levels
        covariance = (covariance + torch.eye(pixels).to(covariance) / 12) / num_levels**2
    values, vectors = torch.linalg.eigh(covariance)
    noise = values[:-latent_dim].mean()
    lengths = (values[-latent_dim:] - noise).clamp(min=1e-12).sqrt()
    return PPCA(mean, vectors[:, -latent_dim:], lengths, noise.sqrt(), covariance)


def orthonormal(weight: Tensor) -> Tensor:
    """An orthonormal basis of the columns' span, ``(P, D)``."""
    return torch.linalg.qr(weight.double())[0]


def largest_angle(a: Tensor, b: Tensor) -> float:
    """The largest principal angle between the spans of orthonormal ``(P, D)``, in degrees.

    0: the same subspace. 90: one has a direction that is orthogonal to the other.
    """
    cosine = torch.linalg.svdvals(a.T @ b).min().clamp(max=1)
    return torch.rad2deg(cosine.arccos()).item()


def angle_of_halves(dataset: Dataset, latent_dim: int) -> float:
    """The angle between the subspaces of two halves of the training images, due to chance."""
    images = dataset.train.images
    half = len(images) // 2
    first, second = (
        fit(part, dataset.num_levels, latent_dim).basis
        for part in (images[:half], images[half : 2 * half])
    )
    return largest_angle(first, second)
