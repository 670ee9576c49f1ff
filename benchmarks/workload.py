"""The network and images that all contestants share: 784-400-z50, softplus, batches of 256."""

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_pyro.data import MNIST
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE, build_vae

LATENT_DIM = 50
WIDTH = 400
BATCH_SIZE = 256
LEARNING_RATE = 1e-3
NUM_BATCHES = 195  # of 256: what MNIST's 50,000 training images hold, the ragged one left out
LEVELS = 256


@dataclass(frozen=True)
class Workload:
    """The images for training and evaluation.

    Attributes:
        images: ``uint8``, ``(49920, 1, 28, 28)``.
        test_x: binarised test images, ``(10000, 1, 28, 28)``.
    """

    images: Tensor
    test_x: Tensor


def load(device: torch.device) -> Workload:
    dataset = MNIST(root=os.environ.get("VAE_PYRO_DATA", "data")).load()
    test_x = Bernoulli(LEVELS).prepare(
        dataset.test.images, dataset.held_out_stream("test").generator
    )
    images = dataset.train.images[: NUM_BATCHES * BATCH_SIZE]
    return Workload(images.to(device), test_x.to(device))


def build(device: torch.device, latent_dim: int = LATENT_DIM, width: int = WIDTH) -> VAE:
    """The VAE at its initial weights, which are the same for every contestant."""
    with RandomStream("initial weights", 0).active():
        network = MLP((width,), "softplus")
        return build_vae(latent_dim, (1, 28, 28), network, Bernoulli(LEVELS), DiagNormal).to(device)


def layers(vae: VAE) -> list[torch.nn.Linear]:
    """Its affine maps: two of the encoder, then two of the decoder."""
    parts = (*vae.guide.encoder.modules(), *vae.model.decoder.modules())
    return [part for part in parts if isinstance(part, torch.nn.Linear)]
