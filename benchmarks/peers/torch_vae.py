"""Training with PyTorch and with Pyro as users write it, from the same initial weights."""

from collections.abc import Callable, Iterator
from functools import partial

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from benchmarks import workload
from benchmarks.workload import BATCH_SIZE, LATENT_DIM, LEARNING_RATE, LEVELS
from vae_pyro.data import batches
from vae_pyro.guide import MIN_SCALE
from vae_pyro.likelihoods.preparation import binarise

Epoch = Callable[[], float]
"""Trains for one epoch, and returns the mean ELBO of that epoch in nats per image."""


class Encoder(nn.Module):
    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, raw_scale = self.second(softplus(self.first(x))).chunk(2, -1)
        return loc, softplus(raw_scale) + MIN_SCALE


class Decoder(nn.Module):
    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, z: Tensor) -> Tensor:
        logits: Tensor = self.second(softplus(self.first(z)))
        return logits


def parts(device: torch.device) -> tuple[Encoder, Decoder]:
    first, second, third, fourth = workload.layers(workload.build(device))
    return Encoder(first, second), Decoder(third, fourth)


def binarised_batches(images: Tensor) -> Iterator[Tensor]:
    grey = images.flatten(1)
    for index in torch.randperm(len(grey), device=grey.device).split(BATCH_SIZE):
        yield torch.bernoulli(grey[index] / 255.0)


def stock_pyro(images: Tensor) -> Epoch:
    """``pyro.infer.SVI`` with ``pyro.optim.Adam`` and ``Trace_ELBO``."""
    encoder, decoder = parts(images.device)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x)):
            prior = dist.Normal(x.new_zeros(len(x), LATENT_DIM), x.new_ones(len(x), LATENT_DIM))
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x)).to_event(1))

    adam = pyro.optim.Adam({"lr": LEARNING_RATE})
    svi = pyro.infer.SVI(model, guide, adam, pyro.infer.Trace_ELBO())

    def epoch() -> float:
        total = 0.0
        with pyro.get_param_store().scope():
            for x in binarised_batches(images):
                total -= svi.step(x)
        return total / len(images)

    return epoch


def by_hand(images: Tensor, *, compiled: bool) -> Epoch:
    """The ELBO written out, its KL from the same sample as in ``Trace_ELBO``; eager or compiled.

    It uses this program's batches and a fused Adam, so that only the step is compared.
    """
    encoder, decoder = parts(images.device)
    weights = [*encoder.parameters(), *decoder.parameters()]
    adam = torch.optim.Adam(weights, lr=LEARNING_RATE, fused=True)
    generator = torch.Generator(images.device).manual_seed(0)
    prepare = partial(binarise, num_levels=LEVELS, generator=generator)

    def negative_elbo(x: Tensor) -> Tensor:
        loc, scale = encoder(x)
        e = torch.randn_like(loc)
        z = loc + scale * e
        log_likelihood = -binary_cross_entropy_with_logits(decoder(z), x, reduction="sum")
        log_ratio = 0.5 * (e.square() - z.square()).sum() + scale.log().sum()
        negative: Tensor = -log_likelihood - log_ratio
        return negative

    loss_of = torch.compile(negative_elbo) if compiled else negative_elbo

    def epoch() -> float:
        total = torch.zeros((), device=images.device)
        for batch in batches(images, prepare, BATCH_SIZE, generator):
            x = batch.flatten(1)
            adam.zero_grad(set_to_none=True)
            loss = loss_of(x)
            loss.backward()
            adam.step()
            total -= loss.detach()
        return total.item() / len(images)

    return epoch
