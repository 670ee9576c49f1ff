"""The generative story: where an image comes from.

A point z is drawn from a standard normal. The decoder, a network, computes from z the parameters
of a distribution over images. The image x is drawn from that distribution. So

    p(x) = integral of p_theta(x | z) p(z) dz.

This integral over z is the hard part: all else in this module can be computed exactly.
"""

import pyro
import torch
from pyro import distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from vae_pyro.compilation import is_tracing
from vae_pyro.likelihoods import Likelihood


class Model(PyroModule):  # type: ignore[misc]  # Pyro's classes are untyped
    """z ~ N(0, I), x ~ p_theta(x | z): a Pyro program; the images are independent.

    Args:
        latent_dim: the size of z, D.
        decoder: z ``(*batch, D)`` -> parameters ``(*batch, P, C, H, W)``.
        likelihood: parameters -> p_theta(x | z).

    Source: Kingma and Welling (2014), section 2.

    >>> import vae_pyro as vp
    >>> from pyro import poutine
    >>> model = vp.build_vae(latent_dim=2, image_shape=(1, 8, 8)).model
    >>> trace = poutine.trace(model).get_trace(num_images=5)
    >>> trace.nodes["z"]["value"].shape, trace.nodes["x"]["value"].shape
    (torch.Size([5, 2]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(self, latent_dim: int, decoder: nn.Module, likelihood: Likelihood) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.decoder = decoder
        self.likelihood = likelihood
        # A buffer moves with the weights, so the prior is on their device and has their dtype.
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    def forward(self, x: Tensor | None = None, num_images: int = 1) -> Tensor:
        """Draw z, then x, for every image.

        Args:
            x: observed images, ``(batch, C, H, W)``; None to sample new ones.
            num_images: how many to sample where ``x`` is None.

        Returns:
            the images: ``x`` itself, or new ones, ``(num_images, C, H, W)``.

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
