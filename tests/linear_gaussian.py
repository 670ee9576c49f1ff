"""A VAE whose p(x), p(z | x) and ELBO are known in closed form.

z ~ N(0, I), x | z ~ N(W z + b, s^2 I), so x ~ N(b, W W' + s^2 I). The columns of W are orthogonal,
so the true posterior has a diagonal covariance and a diagonal normal guide can be perfect.
"""

import math

import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Normal
from vae_pyro.model import Model
from vae_pyro.networks import Reshape
from vae_pyro.vae import VAE

IMAGE_SHAPE = (1, 2, 3)
PIXELS, LATENT_DIM, SCALE = 6, 2, 0.7


class LinearGaussian:
    """The VAE (float64) and its closed forms.

    Args:
        shift: moves the guide's mean off the true posterior's.
        stretch: multiplies the guide's scale.
        num_levels: of the images that x is taken to be a dequantisation of; None for none.
    """

    def __init__(
        self, shift: float = 0.0, stretch: float = 1.0, num_levels: int | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        basis = torch.linalg.qr(
            torch.randn(PIXELS, LATENT_DIM, generator=generator, dtype=torch.float64)
        ).Q
        self.weight = basis * torch.tensor([1.5, 0.6])
        self.bias = torch.randn(PIXELS, generator=generator, dtype=torch.float64)
        self.covariance = torch.linalg.inv(
            torch.eye(LATENT_DIM) + self.weight.T @ self.weight / SCALE**2
        )
        decoder = nn.Linear(LATENT_DIM, PIXELS)
        encoder = nn.Linear(PIXELS, 2 * LATENT_DIM)
        gain = self.covariance @ self.weight.T / SCALE**2
        scale = stretch * self.covariance.diagonal().sqrt()
        with torch.no_grad():
            decoder.weight.copy_(self.weight)
            decoder.bias.copy_(self.bias)
            encoder.weight.zero_()
            encoder.weight[:LATENT_DIM] = gain
            encoder.bias[:LATENT_DIM] = shift - gain @ self.bias
            encoder.bias[LATENT_DIM:] = torch.log(torch.expm1(scale - 1e-4))
        self.decoder, self.encoder = decoder, encoder
        self.vae = VAE(
            Model(
                LATENT_DIM,
                nn.Sequential(decoder, Reshape((1, *IMAGE_SHAPE))),
                Normal(num_levels, SCALE),
            ),
            DiagNormal(LATENT_DIM, lambda _: nn.Sequential(nn.Flatten(-3), encoder)),
            IMAGE_SHAPE,
        ).double()

    def sample(self, num_images: int, seed: int = 0) -> Tensor:
        """Images drawn from p(x) itself, ``(N, 1, 2, 3)``."""
        generator = torch.Generator().manual_seed(seed)
        z, noise = (
            torch.randn(num_images, size, generator=generator, dtype=torch.float64)
            for size in (LATENT_DIM, PIXELS)
        )
        flat = z @ self.weight.T + self.bias + SCALE * noise
        return flat.reshape(-1, *IMAGE_SHAPE)

    def log_marginal(self, x: Tensor) -> Tensor:
        """log p(x), by scipy."""
        marginal = multivariate_normal(
            self.bias.numpy(),
            (self.weight @ self.weight.T + SCALE**2 * torch.eye(PIXELS)).numpy(),
        )
        return torch.from_numpy(marginal.logpdf(x.flatten(1).numpy()))

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E[z | x], ``(N, 2)``."""
        return (x.flatten(1) - self.bias) @ self.weight @ self.covariance / SCALE**2

    def elbo(self, x: Tensor) -> Tensor:
        """E_q[log p(x, z) - log q(z | x)] in closed form, differentiable in every parameter."""
        return self.reconstruction(x) - self.kl(x).sum(-1)

    def reconstruction(self, x: Tensor) -> Tensor:
        """E_q[log p(x | z)], likewise."""
        flat = x.flatten(1)
        loc, variance = self._posterior(x)
        residual = flat - self.decoder(loc)
        spread = (self.decoder.weight.square().sum(0) * variance).sum(-1)
        return -0.5 * (
            (residual.square().sum(-1) + spread) / SCALE**2
            + PIXELS * math.log(2 * math.pi * SCALE**2)
        )

    def kl(self, x: Tensor) -> Tensor:
        """KL(q(z_d | x) || p(z_d)) of each latent dimension, ``(N, 2)``, likewise."""
        loc, variance = self._posterior(x)
        return 0.5 * (loc.square() + variance - variance.log() - 1)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw_scale = self.encoder(x.flatten(1)).chunk(2, -1)
        return loc, (nn.functional.softplus(raw_scale) + 1e-4) ** 2
