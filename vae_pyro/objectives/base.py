"""What every objective has, and what SVI needs of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pyro.infer
import torch
from torch import Tensor

from vae_pyro.guide import Guide
from vae_pyro.model import Model


@dataclass(frozen=True)
class Objective(ABC):
    """A choice for ``objective=``: one class, and one YAML file that names it.

    Args:
        num_particles: samples of z per image and step.

    Raises:
        ValueError: where ``num_particles`` is not positive.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles: must be at least 1, got {self.num_particles}")

    @abstractmethod
    def estimator(self) -> "SVILoss":
        """Pyro's estimator of this objective, the loss of ``pyro.infer.SVI``.

        Its losses are sums over the batch. Where the objective is not the ELBO, it returns two
        losses: (-objective, -ELBO).
        """

    def at_epoch(self, epoch: int) -> Self:  # noqa: ARG002
        """The objective of one epoch; the first epoch is 1."""
        return self

    def shortened(self, fraction: float) -> Self:  # noqa: ARG002
        """The same for this share of the epochs: a warm-up takes this share of its epochs."""
        return self

    def compiled_as(self) -> tuple[Self, tuple[float, ...]]:
        """What a compiled step is made of, and the numbers that it is called with.

        Objectives that differ in these numbers alone, as those of a warm-up, share one step.
        """
        return self, ()


class SVILoss(pyro.infer.ELBO, ABC):  # type: ignore[misc]  # Pyro's classes are untyped
    """A loss for ``pyro.infer.SVI`` whose steps can be compiled."""

    @abstractmethod
    def tensors(
        self, model: Model, guide: Guide, x: Tensor, *numbers: Tensor
    ) -> tuple[Tensor, ...]:
        """The losses of one set of samples, each a scalar: a sum over the batch.

        ``loss_and_grads`` differentiates the first, and returns the others or the only one. They
        are tensors, because a tracer cannot read their values and reading them waits for the GPU.
        So are ``numbers``, those of the objective's ``compiled_as``; without them, its own are
        taken.
        """


# model, guide, x, numbers of the objective -> what to differentiate and the objective, both
# (batch,); log w, (K, batch)
Surrogate = Callable[..., tuple[Tensor, Tensor, Tensor]]


class WeightsLoss(SVILoss):
    """A function of the importance weights as a loss for ``pyro.infer.SVI``."""

    def __init__(self, surrogate: Surrogate) -> None:
        super().__init__(max_plate_nesting=1)
        self._surrogate = surrogate

    def loss(self, model: Model, guide: Guide, x: Tensor) -> tuple[float, float]:
        """(-objective, -ELBO), each a sum over the batch, from one set of samples."""
        with torch.no_grad():
            _, objective, elbo = self.tensors(model, guide, x)
        return objective.item(), elbo.item()

    def loss_and_grads(self, model: Model, guide: Guide, x: Tensor) -> tuple[float, float]:
        """As ``loss``; gradients of -objective are added to the parameters' ``grad``."""
        surrogate, objective, elbo = self.tensors(model, guide, x)
        surrogate.backward()
        return objective.item(), elbo.item()

    def tensors(
        self, model: Model, guide: Guide, x: Tensor, *numbers: Tensor
    ) -> tuple[Tensor, ...]:
        surrogate, objective, log_w = self._surrogate(model, guide, x, *numbers)
        return -surrogate.sum(), -objective.sum(), -log_w.mean(0).sum()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("weights are read by vae_pyro.log_marginal.weights")
