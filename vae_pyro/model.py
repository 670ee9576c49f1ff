"""The generative story: where an image comes from.

A point z is drawn from a standard normal. The decoder, a network, turns z into the parameters of a
distribution over images. The image x is drawn from that distribution. So

    p(x) = integral of p_theta(x | z) p(z) dz,

and this integral over z is the one thing that is hard: everything else below can be computed.
"""

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from vae_pyro.compilation import is_tracing
from vae_pyro.likelihoods import Likelihood


class Model(PyroModule):  # type: ignore[misc]  # Pyro's classes are untyped
    """z ~ N(0, I), x ~ p_theta(x | z): a Pyro program, one independent story per image.

    Args:
        latent_dim: the size of z, D.
        decoder: z ``(*batch, D)`` -> parameters ``(*batch, P, C, H, W)``.
        likelihood: parameters -> p_theta(x | z).

    Source: Kingma and Welling (2014), section 2.
    """

    def __init__(self, latent_dim: int, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = decoder
        self.likelihood = likelihood
        # Follows the weights to their device, so that the prior is drawn where they are.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    def forward(self, x: Tensor | None = None, num_images: int = 1) -> Tensor:
        """Tell the story of every image.

        Args:
            x: images to be explained, ``(batch, C, H, W)``; None to draw new ones.
            num_images: how many to draw where ``x`` is None.

        Returns:
            the images: ``x`` itself, or ``(num_images, C, H, W)`` newly drawn.

        Raises:
            DataError: where ``x`` lies outside the likelihood's support.
        """
        if x is not None:
            if not is_tracing():
                self.likelihood.check(x)
            num_images = len(x)
        with pyro.plate("images", num_images, dim=-1):
            z = pyro.sample("z", self.prior())
            image: Tensor = pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)
        return image

    def prior(self) -> dist.Distribution:
        """p(z) = N(0, I), event shape ``(D,)``."""
        return dist.Normal(self.origin, 1.0, validate_args=False).to_event(1)

    def decode(self, z: Tensor) -> dist.Distribution:
        """p_theta(x | z) for z ``(*batch, D)``: batch shape ``(*batch,)``, event ``(C, H, W)``."""
        return self.likelihood(self.decoder(z))
