"""Networks: tensors -> parameters of distributions. No distribution and no objective in here."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
Activation = Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"]


@dataclass(frozen=True)
class Network(ABC):
    """An architecture: builds an encoder and a decoder of one kind."""

    @abstractmethod
    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        """A module from images ``(*batch, C, H, W)`` to ``(*batch, num_outputs)``."""

    @abstractmethod
    def decoder(
        self, latent_dim: int, num_parameters: int, image_shape: tuple[int, int, int]
    ) -> nn.Module:
        """A module from z ``(*batch, latent_dim)`` to ``(*batch, num_parameters, C, H, W)``."""


class Reshape(nn.Module):
    """``(*batch, prod(shape))`` -> ``(*batch, *shape)``, whatever the number of batch axes."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, flat: Tensor) -> Tensor:
        return flat.reshape(*flat.shape[:-1], *self.shape)


@dataclass(frozen=True)
class MLP(Network):
    """Fully connected layers, the decoder mirroring the encoder.

    Args:
        hidden: widths of the hidden layers, from the image's side to the latent's.
        activation: between the layers.

    Raises:
        ValueError: where a width is not positive.
    """

    hidden: tuple[int, ...] = (400, 400)
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"hidden: every width must be at least 1, got {list(self.hidden)}")

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        widths = (math.prod(image_shape), *self.hidden, num_outputs)
        return nn.Sequential(nn.Flatten(-3), *self._layers(widths))

    def decoder(
        self, latent_dim: int, num_parameters: int, image_shape: tuple[int, int, int]
    ) -> nn.Module:
        shape = (num_parameters, *image_shape)
        widths = (latent_dim, *reversed(self.hidden), math.prod(shape))
        return nn.Sequential(*self._layers(widths), Reshape(shape))

    def _layers(self, widths: tuple[int, ...]) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), ACTIVATIONS[self.activation]()]
        return layers[:-1]
