"""The updates of all weights in a training: the optimiser's steps, and the weights' average."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from vae_pyro.training.optimizers import Adam, Optimizer


class Updates(pyro.optim.PyroOptim):  # type: ignore[misc]  # Pyro's classes are untyped
    """Moves all weights together, one step at a time.

    ``pyro.optim.Adam`` makes one optimiser of every weight, and pays Python for each.

    Args:
        parameters: the weights; those that need no gradient are left alone.
        optimizer: how they move; Adam by default.
        ema_decay: of the moving average of the weights; None for no average. In step t it is at
            most (1 + t) / (10 + t), so that the first weights are soon forgotten.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        optimizer: Optimizer | None = None,
        ema_decay: float | None = None,
    ) -> None:
        super().__init__(torch.optim.SGD, {})  # what it would make of each parameter is not used
        self._weights = [weight for weight in parameters if weight.requires_grad]
        self._optimizer = Adam() if optimizer is None else optimizer
        self._state = self._optimizer.new_state(self._weights)
        self._ema_decay = ema_decay
        self._average = [] if ema_decay is None else [w.detach().clone() for w in self._weights]
        self._averaged = torch.zeros((), dtype=torch.int64)  # steps
        self._learning_rate = 0.0
        self._num_images = 1

    def begin_step(self, learning_rate: float, num_images: int) -> None:
        """Tell what holds for the next step.

        Args:
            learning_rate: of this step.
            num_images: over which ``pyro.infer.SVI`` sums the gradients.
        """
        self._learning_rate = learning_rate
        self._num_images = num_images

    def __call__(self, params: Any, *_args: Any, **_kwargs: Any) -> None:  # noqa: ARG002
        """What ``pyro.infer.SVI`` calls when gradients are known: all weights move."""
        self.step(
            [
                torch.zeros_like(weight)
                if weight.grad is None
                else weight.grad.div_(self._num_images)
                for weight in self._weights
            ]
        )

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move every weight.

        Args:
            gradients: of the mean over images, in the order of the weights.
        """
        # The kernels go through the numbers as they lie in memory.
        alike = [
            gradient
            if gradient.stride() == weight.stride()
            else torch.empty_like(weight).copy_(gradient)
            for weight, gradient in zip(self._weights, gradients, strict=True)
        ]
        with torch.no_grad():
            if (limit := self._optimizer.max_grad_norm) is not None:
                scale = (limit / (get_total_norm(alike) + 1e-6)).clamp(max=1.0)
                alike = list(torch._foreach_mul(alike, scale))
            self._optimizer.step(self._weights, alike, self._state, self._learning_rate)
            if self._ema_decay is not None:
                self._averaged += 1
                steps = self._averaged.item()
                decay = min(self._ema_decay, (1 + steps) / (10 + steps))
                torch._foreach_lerp_(self._average, self._weights, 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """In the block, the weights are their average, where there is one."""
        if self._ema_decay is None:
            yield
            return
        with torch.no_grad():
            before = [weight.clone() for weight in self._weights]
            torch._foreach_copy_(self._weights, self._average)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights, before)

    def state(self) -> dict[str, Tensor]:
        """What the next step depends on besides the weights, by name. They are not copies."""
        groups: dict[str, Sequence[Tensor]] = dict(self._state)
        if self._ema_decay is not None:
            groups |= {"average": self._average, "averaged": [self._averaged]}
        return {
            f"{name}/{number}": tensor
            for name, tensors in groups.items()
            for number, tensor in enumerate(tensors)
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of other updates of the same weights.

        Args:
            state: as returned by ``state``.

        Raises:
            KeyError, RuntimeError: where it belongs to other weights.
        """
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
