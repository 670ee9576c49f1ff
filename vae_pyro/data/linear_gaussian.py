"""Synthetic images whose true log p(x) is known."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.source import ImageSource
from vae_pyro.randomness import RandomStream


@dataclass(frozen=True)
class LinearGaussian(ImageSource):
    """x = W z + b + sigma e with z ~ N(0, I) and e ~ N(0, I), so x ~ N(b, W W' + sigma^2 I).

    The columns of W are orthogonal, with lengths from 1 down to 1/2, so the true posterior of z has
    a diagonal covariance. b is 1/2 everywhere. Pixels are real-valued. An image's label is 1 where
    the first true z is positive, else 0.

    Args:
        side: images have side x side pixels.
        true_latent_dim: the size of the true z, at most side^2.
        noise_scale: sigma.
        num_train, num_valid, num_test: images in the splits.
        seed: fixes W and all images.

    Raises:
        ValueError: where a number is not positive, a split has fewer than two images,
            true_latent_dim exceeds side^2, or binarisation is not the default.

    >>> import vae_pyro as vp
    >>> data = vp.data.LinearGaussian(side=4, true_latent_dim=3).load()
    >>> vae = vp.build_vae(3, data.image_shape, likelihood=vp.likelihoods.Normal(None))
    >>> data.log_prob(data.prepared("test", vae)).shape  # the exact log p(x) of each image
    torch.Size([1000])

    Source: Tipping and Bishop (1999), probabilistic principal component analysis.
    """

    side: int = 4
    true_latent_dim: int = 3
    noise_scale: float = 0.2
    num_train: int = 5_000
    num_valid: int = 1_000
    num_test: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("side", "true_latent_dim", "noise_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: must be positive, got {getattr(self, name)}")
        for name in ("num_train", "num_valid", "num_test"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: must be at least 2, got {getattr(self, name)}")
        if self.binarisation != "dynamic":
            raise ValueError("binarisation: these pixels are real-valued; leave it out")
        if self.true_latent_dim > self.side**2:
            raise ValueError(
                f"true_latent_dim: must be at most side^2 = {self.side**2}, got "
                f"{self.true_latent_dim}"
            )

    @property
    def weight(self) -> Tensor:
        """W, float64, ``(side^2, true_latent_dim)``."""
        generator = RandomStream("linear-Gaussian weight", self.seed).generator
        shape = (self.side**2, self.true_latent_dim)
        basis = torch.linalg.qr(torch.randn(shape, generator=generator, dtype=torch.float64)).Q
        weight: Tensor = basis * torch.linspace(1, 0.5, self.true_latent_dim, dtype=torch.float64)
        return weight

    @property
    def bias(self) -> Tensor:
        """b, float64, ``(side^2,)``."""
        return torch.full((self.side**2,), 0.5, dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """The true log p(x), in closed form.

        Args:
            x: ``(N, 1, side, side)``.

        Returns:
            nats, float64, ``(N,)``.
        """
        variance = torch.full_like(self.bias, self.noise_scale**2)
        true = LowRankMultivariateNormal(self.bias, self.weight, variance)
        log_p: Tensor = true.log_prob(x.double().flatten(1).cpu())
        return log_p

    def _read(self) -> Dataset:
        return Dataset(
            train=self._draw("train", self.num_train),
            valid=self._draw("valid", self.num_valid),
            test=self._draw("test", self.num_test),
            num_levels=None,
            log_prob=self.log_prob,
        )

    def _draw(self, split: str, num_images: int) -> Split:
        generator = RandomStream(f"linear-Gaussian {split}", self.seed).generator
        z, noise = (
            torch.randn(num_images, size, generator=generator, dtype=torch.float64)
            for size in (self.true_latent_dim, self.side**2)
        )
        x = z @ self.weight.T + self.bias + self.noise_scale * noise
        images = x.float().reshape(-1, 1, self.side, self.side)
        labels: Tensor = (z[:, 0] > 0).long()
        return Split(images, labels)
