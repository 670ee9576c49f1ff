"""The pair: a model and the guide that reads it backwards."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vae_pyro.guide import Guide
from vae_pyro.likelihoods import Likelihood
from vae_pyro.model import Model
from vae_pyro.networks import Network


class VAE(nn.Module):
    """A model p(x, z) and its guide q(z | x), two Pyro programs over the same sites.

    Attributes:
        model: call it as a Pyro program, ``vae.model(x)``.
        guide: likewise, ``vae.guide(x)``.
    """

    def __init__(self, model: Model, guide: Guide) -> None:
        super().__init__()
        self.model = model
        self.guide = guide


def build_vae(
    latent_dim: int,
    image_shape: tuple[int, int, int],
    network: Network,
    likelihood: Likelihood,
    guide: type[Guide],
    guide_options: Mapping[str, Any] | None = None,
    train_x: Tensor | None = None,
) -> VAE:
    """Assemble a VAE from one choice of each kind.

    Args:
        latent_dim: the size of z.
        image_shape: ``(C, H, W)``.
        network: builds both the encoder and the decoder.
        likelihood: what the decoder's outputs mean.
        guide: the family of q(z | x).
        guide_options: further keyword arguments of that family.
        train_x: prepared training images, ``(N, C, H, W)``, for a network whose output bias starts
            at what the data say; it starts at zero where they are None.

    Raises:
        ValueError: where an option of the guide is out of range.
    """
    initial = torch.zeros(likelihood.num_parameters, *image_shape)
    if train_x is not None and network.output_bias == "data":
        initial = likelihood.initial_parameters(train_x)
    decoder = network.decoder(latent_dim, initial)
    return VAE(
        Model(latent_dim, decoder, likelihood),
        guide(latent_dim, partial(network.encoder, image_shape), **(guide_options or {})),
    )
