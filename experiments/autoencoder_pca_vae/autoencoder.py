"""An autoencoder in PyTorch: the two networks of the VAE, squared error, no distribution."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_pyro.data import Dataset
from vae_pyro.data.dataset import batches
from vae_pyro.networks import Network
from vae_pyro.randomness import RandomStream


@dataclass(frozen=True)
class Autoencoder:
    """x -> code -> x.

    Attributes:
        encoder: images ``(N, C, H, W)`` -> codes ``(N, D)``.
        decoder: codes -> images, with an axis of one parameter, ``(N, 1, C, H, W)``.
    """

    encoder: nn.Module
    decoder: nn.Module

    def encode(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> ``(N, D)``."""
        codes: Tensor = self.encoder(x)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """``(N, D)`` -> ``(N, C, H, W)``."""
        images: Tensor = self.decoder(codes).squeeze(-4)
        return images


def train(
    network: Network,
    dataset: Dataset,
    prepare: Callable[[Tensor, torch.Generator], Tensor],
    latent_dim: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Autoencoder:
    """Train by Adam on the mean squared error, step size falling to 0; keep the best epoch.

    Args:
        network: builds encoder and decoder.
        dataset: on the device where it is trained.
        prepare: images of the data set -> x, with new dequantisation in every epoch.
        latent_dim: the size of the code, D.
        epochs: passes over the training images.
        batch_size: images per step.
        learning_rate: Adam's, at the start.
        seed: of weights, order and dequantisation.
    """
    device = dataset.train.images.device
    with RandomStream("autoencoder weights", seed).active():
        encoder = network.encoder(dataset.image_shape, latent_dim)
        decoder = network.decoder(latent_dim, torch.zeros(1, *dataset.image_shape))
    both = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).to(device)
    found = Autoencoder(encoder, decoder)
    steps = epochs * -(-len(dataset.train) // batch_size)
    optimiser = torch.optim.Adam(both.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = RandomStream("autoencoder batches", seed, device).generator
    valid = prepare(dataset.valid.images, generator)
    best, least = copy.deepcopy(both.state_dict()), float("inf")
    for _ in range(epochs):
        for x in batches(
            dataset.train.images, lambda i: prepare(i, generator), batch_size, generator
        ):
            optimiser.zero_grad()
            mean_squared_error(found, x).backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            error = mean_squared_error(found, valid).item()
        if error < least:
            best, least = copy.deepcopy(both.state_dict()), error
    both.load_state_dict(best)
    return found


def mean_squared_error(autoencoder: Autoencoder, x: Tensor) -> Tensor:
    """Per pixel, a scalar."""
    return (autoencoder.decode(autoencoder.encode(x)) - x).square().mean()
