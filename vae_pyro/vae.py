"""The pair: a model and the guide that reads it backwards."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

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


class ConditionalVAE(nn.Module):
    """z ~ N(0, I), x ~ p_theta(x | z, y), and the guide q_phi(z | x, y), for a class y.

    y enters as one-hot numbers: further inputs of the decoder, and further channels, constant over
    the image, of the encoder. For a given y it is an ordinary VAE, to be trained, sampled and
    asked for log p(x | y) like any other, within ``given``.

    Args:
        num_classes: y is a whole number from 0 to num_classes - 1.
        latent_dim: the size of z.
        image_shape: ``(C, H, W)``.
        network: builds both the encoder and the decoder.
        likelihood: what the decoder's outputs mean.
        guide: the family of q(z | x, y).
        guide_options: further keyword arguments of that family.

    Source: Sohn et al. (2015), with a prior of z that does not depend on y.
    """

    def __init__(
        self,
        num_classes: int,
        latent_dim: int,
        image_shape: tuple[int, int, int],
        network: Network,
        likelihood: Likelihood,
        guide: type[Guide],
        guide_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._told = _Told(num_classes)
        told = _TellingNetwork(network=network, told=self._told)
        self.vae = build_vae(latent_dim, image_shape, told, likelihood, guide, guide_options)

    @contextmanager
    def given(self, y: int | Tensor) -> Iterator[VAE]:
        """The VAE of p(x | y), within.

        Args:
            y: one class for all images; or one for every image of a batch, int64 ``(batch,)``, for
                training, where every x that the VAE is given has these classes in this order.

        Raises:
            ValueError: where y is no class.
        """
        classes = torch.as_tensor(y)
        if classes.min() < 0 or classes.max() >= self._told.num_classes:
            raise ValueError(f"y: must be from 0 to {self._told.num_classes - 1}, got {y}")
        before, self._told.y = self._told.y, classes
        try:
            yield self.vae
        finally:
            self._told.y = before


class _Told:
    """What the networks of one VAE are told at the moment."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.y: Tensor | None = None

    def one_hot(self, like: Tensor, event_dim: int) -> Tensor:
        """``(*batch, num_classes)``, the batch axes being those of ``like``.

        Raises:
            ValueError: outside ``given``.
        """
        if self.y is None:
            raise ValueError("y: a conditional VAE is used within `with conditional.given(y)`")
        batch = like.shape[: like.ndim - event_dim]
        return one_hot(self.y.to(like.device), self.num_classes).to(like).expand(*batch, -1)


@dataclass(frozen=True)
class _TellingNetwork(Network):
    """Another network, told y."""

    network: Network
    told: _Told

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        channels, height, width = image_shape
        wider = (channels + self.told.num_classes, height, width)
        return _WithClass(self.network.encoder(wider, num_outputs), self.told, event_dim=3)

    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        inputs = latent_dim + self.told.num_classes
        return _WithClass(self.network.decoder(inputs, initial), self.told, event_dim=1)


class _WithClass(nn.Module):
    """Puts y beside the inputs of a module, along their first event axis."""

    def __init__(self, module: nn.Module, told: _Told, event_dim: int) -> None:
        super().__init__()
        self.module = module
        self._told = told
        self._event_dim = event_dim

    def forward(self, inputs: Tensor) -> Tensor:
        batch = inputs.shape[: inputs.ndim - self._event_dim]
        y = self._told.one_hot(inputs, self._event_dim)
        rest = inputs.shape[len(batch) + 1 :]
        y = y.reshape(*y.shape, *[1] * len(rest)).expand(*y.shape, *rest)
        outputs: Tensor = self.module(torch.cat([inputs, y], dim=-self._event_dim))
        return outputs
