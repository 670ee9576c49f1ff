"""Optimisers: how the gradients of a step move the weights."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

State = Mapping[str, list[Tensor]]
"""What an optimiser remembers, by name: a tensor for each weight, in their order."""


@dataclass(frozen=True)
class Optimizer(ABC):
    """A choice for ``optimizer=``: one class, and one YAML file that names it.

    Gradients are those of the objective's mean over the images of a batch.

    Args:
        weight_decay: each step also shrinks the weights; see the subclass.
        max_grad_norm: gradients with a larger Euclidean norm, over all weights together, are scaled
            down to it; None for no limit.

    Raises:
        ValueError: where a number is out of range.
    """

    weight_decay: float = field(default=0.0, kw_only=True)
    max_grad_norm: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        limit = self.max_grad_norm
        _require("max_grad_norm", limit, limit is None or 0 < limit < math.inf, "positive, or null")

    @abstractmethod
    def new_state(self, weights: list[Tensor]) -> State:
        """The state before the first step."""

    @abstractmethod
    def step(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        state: State,
        learning_rate: float,
    ) -> None:
        """Move every weight against its gradient, and update the state, both in place.

        Args:
            weights: detached from any graph.
            gradients: of the weights, in the same order and memory layout.
            state: as returned by ``new_state``.
            learning_rate: of this step.
        """


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, in PyTorch's fused kernel; ``weight_decay`` times the weight is added to its gradient.

    The kernel is called for all weights at once. ``torch.optim.Adam`` gives the same bits, but
    its Python code takes 0.2 ms a step.

    Args:
        betas: decay of the first and second moments, each from 0 to below 1.
        eps: added to the square root of the second moment.
        weight_decay, max_grad_norm: see ``Optimizer``.

    Raises:
        ValueError: where a number is out of range.

    Source: Kingma and Ba (2015), algorithm 1.

    >>> import vae_pyro as vp
    >>> vp.training.Adam(betas=(0.9, 0.99)).betas
    (0.9, 0.99)
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range = all(0 <= beta < 1 for beta in self.betas)
        _require("betas", self.betas, in_range, "two numbers, each from 0 to below 1")
        _require("eps", self.eps, 0 < self.eps < math.inf, "a positive number")

    def new_state(self, weights: list[Tensor]) -> State:
        return {
            "means": [torch.zeros_like(weight) for weight in weights],
            "squares": [torch.zeros_like(weight) for weight in weights],
            "count": [torch.zeros((), device=weights[0].device)] if weights else [],
        }

    def step(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        state: State,
        learning_rate: float,
    ) -> None:
        (count,) = state["count"]
        count += 1
        self._kernel()(
            weights,
            gradients,
            state["means"],
            state["squares"],
            [],
            [count] * len(weights),
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )

    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adam_


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam whose weights also shrink by the factor 1 - learning rate x ``weight_decay`` each step.

    Args:
        betas, eps: see ``Adam``.
        weight_decay, max_grad_norm: see ``Optimizer``.

    Raises:
        ValueError: where a number is out of range.

    Source: Loshchilov and Hutter (2019), algorithm 2.

    >>> import vae_pyro as vp
    >>> vp.training.AdamW(weight_decay=0.1).weight_decay
    0.1
    """

    weight_decay: float = field(default=0.01, kw_only=True)

    def _kernel(self) -> Callable[..., None]:
        return torch._fused_adamw_


@dataclass(frozen=True)
class SGD(Optimizer):
    """w <- w - learning rate x v, where v <- momentum x v + gradient.

    ``weight_decay`` times the weight is added to its gradient. With Nesterov's momentum, the
    weights move by gradient + momentum x v.

    Args:
        momentum: from 0 to below 1.
        nesterov: needs momentum.
        weight_decay, max_grad_norm: see ``Optimizer``.

    Raises:
        ValueError: where a number is out of range.

    Source: Sutskever et al. (2013), section 2, as ``torch.optim.SGD`` has it.

    >>> import vae_pyro as vp
    >>> vp.training.SGD(momentum=0.9, nesterov=True).momentum
    0.9
    """

    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        possible = self.momentum > 0 or not self.nesterov
        _require("nesterov", self.nesterov, possible, "false where momentum is 0")

    def new_state(self, weights: list[Tensor]) -> State:
        return {"momentum": [torch.zeros_like(w) for w in weights]} if self.momentum else {}

    def step(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        state: State,
        learning_rate: float,
    ) -> None:
        torch._fused_sgd_(
            weights,
            gradients,
            state.get("momentum", []),
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            lr=learning_rate,
            dampening=0.0,
            nesterov=self.nesterov,
            maximize=False,
            is_first_step=False,  # the momentum is zero then
        )


def _require(name: str, value: object, condition: bool, wanted: str) -> None:
    if not condition:
        raise ValueError(f"{name}: must be {wanted}, got {value}")
