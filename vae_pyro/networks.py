"""Networks: tensors -> parameters of distributions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, one_hot

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}
MAX_WIDTH = 10**9
"""A wider layer is refused at once; a narrower one where it does not fit into memory."""
_MAX_DEPTH = 1_000
OutputBias = Literal["zero", "data"]
Activation = Literal["elu", "gelu", "relu", "silu", "softplus", "tanh"]
Initialisation = Literal["pytorch", "glorot", "he"]


@dataclass(frozen=True)
class Network(ABC):
    """An architecture: builds an encoder and a decoder of one kind.

    Args:
        output_bias: the initial bias of the decoder's output layer: ``zero``, or the parameters
            that fit the training ``data`` without z (for Bernoulli, Burda et al., 2016).
    """

    output_bias: OutputBias = field(default="zero", kw_only=True)

    @abstractmethod
    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        """A module from images ``(*batch, C, H, W)`` to ``(*batch, num_outputs)``."""

    @abstractmethod
    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        """A module from z ``(*batch, latent_dim)`` to parameters ``(*batch, P, C, H, W)``.

        Args:
            latent_dim: the size of z.
            initial: the output layer's initial bias, ``(P, C, H, W)``.
        """


@dataclass(frozen=True)
class Linear(Network):
    """An affine encoder and decoder. With ``NormalLearnedScale``: probabilistic PCA."""

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(-3), nn.Linear(math.prod(image_shape), num_outputs))

    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        return nn.Sequential(*_output(nn.Linear(latent_dim, initial.numel()), initial))


@dataclass(frozen=True)
class MLP(Network):
    """Fully connected layers, the decoder mirroring the encoder.

    Args:
        hidden: widths of the hidden layers, from the image to z in the encoder.
        activation: after each of them.
        initialisation: ``pytorch``: that of ``torch.nn.Linear``. ``glorot``: zero biases, uniform
            weights with variance 2 / (inputs + outputs). ``he``, of hidden layers only: zero
            biases, normal weights with variance 2 / inputs (He et al., 2015).
        output_bias: see ``Network``.

    Raises:
        ValueError: where a width is not positive or too large, or there are none or too many.

    >>> import vae_pyro as vp
    >>> vp.build_vae(2, (1, 8, 8), vp.networks.MLP(hidden=(30, 20), activation="tanh"))
    VAE(latent_dim=2, image_shape=(1, 8, 8), Bernoulli, DiagNormal, 5,328 weights)
    """

    hidden: tuple[int, ...] = (400, 400)
    activation: Activation = "relu"
    initialisation: Initialisation = "pytorch"

    def __post_init__(self) -> None:
        _require_widths("hidden", self.hidden)

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        widths = (math.prod(image_shape), *self.hidden)
        last = self._linear(widths[-1], num_outputs, is_last=True)
        return nn.Sequential(nn.Flatten(-3), *self._layers(widths), last)

    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        widths = (latent_dim, *reversed(self.hidden))
        layers, last = self._layers(widths), self._linear(widths[-1], initial.numel(), is_last=True)
        return nn.Sequential(*layers, *_output(last, initial))

    def _layers(self, widths: Sequence[int]) -> list[nn.Module]:
        act = ACTIVATIONS[self.activation]
        return [layer for pair in pairwise(widths) for layer in (self._linear(*pair), act())]

    def _linear(self, num_inputs: int, num_outputs: int, *, is_last: bool = False) -> nn.Linear:
        layer = nn.Linear(num_inputs, num_outputs)
        if self.initialisation == "glorot":
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        elif self.initialisation == "he" and not is_last:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        return layer


@dataclass(frozen=True)
class Conv(Network):
    """A residual convolutional network, for images of any size, grey or in colour.

    Every stage of the encoder halves the image (28, 14, 7), every stage of the decoder doubles it,
    and each has one residual block. The blocks start as the identity. So no normalisation layer is
    needed, whose statistics would make the images of a batch depend on each other.

    Args:
        channels: of each stage, from the image to z in the encoder.
        activation: between convolutions.
        output_bias: see ``Network``.

    Raises:
        ValueError: as ``MLP``.

    >>> import vae_pyro as vp
    >>> vp.build_vae(2, (3, 32, 32), vp.networks.Conv(channels=(8, 16)))
    VAE(latent_dim=2, image_shape=(3, 32, 32), Bernoulli, DiagNormal, 26,380 weights)

    Source: He et al. (2016), identity mappings; the start, Zhang et al. (2019), Fixup.
    """

    channels: tuple[int, ...] = (32, 64)
    activation: Activation = "silu"

    def __post_init__(self) -> None:
        _require_widths("channels", self.channels)

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        act = ACTIVATIONS[self.activation]
        layers: list[nn.Module] = []
        for before, after in pairwise((image_shape[0], *self.channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), Residual(after, act)]
        height, width = self._sizes(*image_shape[1:])[-1]
        return nn.Sequential(
            OverBatchAxes(nn.Sequential(*layers, act()), event_dim=3),
            nn.Flatten(-3),
            nn.Linear(self.channels[-1] * height * width, num_outputs),
        )

    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        num_parameters, colours, height, width = initial.shape
        sizes = self._sizes(height, width)[::-1]
        first, act = (self.channels[-1], *sizes[0]), ACTIVATIONS[self.activation]
        layers: list[nn.Module] = [Residual(self.channels[-1], act)]
        for (before, after), size in zip(
            pairwise((*reversed(self.channels), self.channels[0])), sizes[1:], strict=True
        ):
            layers += [Resize(size), nn.Conv2d(before, after, 3, padding=1), Residual(after, act)]
        last = nn.Conv2d(self.channels[0], num_parameters * colours, 3, padding=1, bias=False)
        return nn.Sequential(
            nn.Linear(latent_dim, math.prod(first)),
            Reshape(first),
            OverBatchAxes(nn.Sequential(*layers, act(), last), event_dim=3),
            Reshape(tuple(initial.shape), event_dim=3),
            Bias(initial),
        )

    def _sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of the image and after each stage, rounded up."""
        sizes = [(height, width)]
        for _ in self.channels:
            height, width = -(-height // 2), -(-width // 2)
            sizes.append((height, width))
        return sizes


class Reshape(nn.Module):
    """Reshapes the last ``event_dim`` axes; there can be any number of batch axes."""

    def __init__(self, shape: tuple[int, ...], event_dim: int = 1) -> None:
        super().__init__()
        self.shape = shape
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[: -self.event_dim], *self.shape)


class Bias(nn.Module):
    """Adds a learned number to every output: each pixel has its own."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(initial.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Resize(nn.Module):
    """Nearest-neighbour scaling of ``(N, C, H, W)`` to a given height and width."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return interpolate(x, size=self.size)


class Residual(nn.Module):
    """x + conv(act(conv(act(x)))); the last convolution starts at zero."""

    def __init__(self, channels: int, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        first = nn.Conv2d(channels, channels, 3, padding=1)
        self.branch = nn.Sequential(activation(), first, activation(), last)

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.branch(x)
        return x + change


class OverBatchAxes(nn.Module):
    """Applies a module that takes one batch axis to a tensor with any number of them.

    Args:
        module: from ``(N, ...)`` to ``(N, ...)``.
        event_dim: how many axes of its input are not batch axes.
    """

    def __init__(self, module: nn.Module, event_dim: int) -> None:
        super().__init__()
        self.module = module
        self.event_dim = event_dim

    def forward(self, x: Tensor) -> Tensor:
        batch, event = x.shape[: -self.event_dim], x.shape[-self.event_dim :]
        y: Tensor = self.module(x.reshape(-1, *event))
        return y.reshape(*batch, *y.shape[1:])


class Label:
    """The classes y that a conditional VAE's networks have as inputs; None outside ``given``."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.y: Tensor | None = None

    def append_to(self, inputs: Tensor, event_dim: int) -> Tensor:
        """``inputs`` with the one-hot y appended along the first of their event axes."""
        if self.y is None:
            raise ValueError("y: a conditional VAE is used within `with conditional.given(y)`")
        axis = inputs.ndim - event_dim
        y = one_hot(self.y.to(inputs.device), self.num_classes).to(inputs)
        y = y.expand(*inputs.shape[:axis], -1)
        y = y.reshape(*y.shape, *[1] * (event_dim - 1))
        return torch.cat([inputs, y.expand(*y.shape[: axis + 1], *inputs.shape[axis + 1 :])], axis)


@dataclass(frozen=True)
class LabelledNetwork(Network):
    """Another network, with the one-hot y among the inputs of its encoder and decoder."""

    network: Network
    label: Label

    def encoder(self, image_shape: tuple[int, int, int], num_outputs: int) -> nn.Module:
        channels, height, width = image_shape
        wider = (channels + self.label.num_classes, height, width)
        return WithLabel(self.network.encoder(wider, num_outputs), self.label, event_dim=3)

    def decoder(self, latent_dim: int, initial: Tensor) -> nn.Module:
        inputs = latent_dim + self.label.num_classes
        return WithLabel(self.network.decoder(inputs, initial), self.label, event_dim=1)


class WithLabel(nn.Module):
    """A module with the one-hot y among its inputs."""

    def __init__(self, module: nn.Module, label: Label, event_dim: int) -> None:
        super().__init__()
        self.module = module
        self.label = label
        self.event_dim = event_dim

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.module(self.label.append_to(inputs, self.event_dim))
        return outputs


def _output(layer: nn.Linear, initial: Tensor) -> tuple[nn.Linear, Reshape]:
    with torch.no_grad():
        layer.bias.copy_(initial.flatten())
    return layer, Reshape(tuple(initial.shape))


def _require_widths(name: str, widths: Sequence[int]) -> None:
    if not 1 <= len(widths) <= _MAX_DEPTH or not all(1 <= w <= MAX_WIDTH for w in widths):
        shown = ", ".join(map(str, widths[:10])) + (", ..." if len(widths) > 10 else "")
        raise ValueError(
            f"{name}: needs one or more numbers (at most {_MAX_DEPTH:,}), each from 1 to "
            f"{MAX_WIDTH:,}, got [{shown}] (network=linear has no hidden layer)"
        )
