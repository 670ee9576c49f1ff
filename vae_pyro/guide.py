"""The guide q_phi(z | x): which z may have led to this image, as the encoder sees it."""

from abc import abstractmethod

import pyro
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus


class Guide(PyroModule):  # type: ignore[misc]  # Pyro's classes are untyped
    """q_phi(z | x): one distribution over z per image, its parameters read off by the encoder.

    A subclass is a choice for ``guide=``: one class, and one YAML file that names it.

    Args:
        latent_dim: the size of z, D.
        encoder: images ``(*batch, C, H, W)`` -> ``(*batch, num_outputs(D))``.
    """

    def __init__(self, latent_dim: int, encoder: nn.Module) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = encoder

    @classmethod
    @abstractmethod
    def num_outputs(cls, latent_dim: int) -> int:
        """How many numbers the encoder must give per image."""

    @abstractmethod
    def posterior(self, x: Tensor) -> TorchDistribution:
        """q_phi(z | x) for x ``(batch, C, H, W)``: batch shape ``(batch,)``, event ``(D,)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Draw a z for every image of x ``(batch, C, H, W)``; returns ``(batch, D)``."""
        with pyro.plate("images", len(x), dim=-1):
            z: Tensor = pyro.sample("z", self.posterior(x))
        return z


class DiagNormal(Guide):
    """q(z | x) = N(z | mu(x), diag(sigma(x)^2)), with sigma = softplus(s) + 1e-4.

    The small floor keeps log q finite in float32 whatever the encoder says.

    Source: Kingma and Welling (2014), equation 9.
    """

    @classmethod
    def num_outputs(cls, latent_dim: int) -> int:
        return 2 * latent_dim

    def posterior(self, x: Tensor) -> TorchDistribution:
        loc, raw_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, softplus(raw_scale) + 1e-4, validate_args=False).to_event(1)
