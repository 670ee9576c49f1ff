"""Adam as one fused call for all weights."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor


class FusedAdam(pyro.optim.PyroOptim):  # type: ignore[misc]  # Pyro's classes are untyped
    """Adam for all weights in one call of PyTorch's fused kernel.

    ``pyro.optim.Adam`` makes one optimiser of every weight, and pays Python for each.

    Args:
        parameters: the weights; those that need no gradient are left alone.
        learning_rate: Adam's.

    Source: Kingma and Ba (2015), algorithm 1, with its default constants.
    """

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        super().__init__(torch.optim.Adam, {"lr": learning_rate})
        self._weights = [weight for weight in parameters if weight.requires_grad]
        self._means = [torch.zeros_like(weight) for weight in self._weights]
        self._squares = [torch.zeros_like(weight) for weight in self._weights]
        device = self._weights[0].device if self._weights else None
        self._count = torch.zeros((), device=device)
        self._learning_rate = learning_rate

    def __call__(self, params: Any, *_args: Any, **_kwargs: Any) -> None:  # noqa: ARG002
        """What ``pyro.infer.SVI`` calls when gradients are known: all weights move."""
        self.step(
            [
                torch.zeros_like(weight) if weight.grad is None else weight.grad
                for weight in self._weights
            ]
        )

    def state(self) -> dict[str, Tensor]:
        """Moments and step count, by name: what the next step depends on. They are not copies."""
        return {
            "count": self._count,
            **{f"means/{i}": mean for i, mean in enumerate(self._means)},
            **{f"squares/{i}": square for i, square in enumerate(self._squares)},
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of another optimiser of the same weights.

        Args:
            state: as returned by ``state``.

        Raises:
            KeyError, RuntimeError: where it belongs to other weights.
        """
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def step(self, gradients: Sequence[Tensor]) -> None:
        """Move every weight against its gradient; both in the order of the weights."""
        self._count += 1
        # The kernel goes through the numbers as they lie in memory.
        alike = [
            gradient
            if gradient.stride() == weight.stride()
            else torch.empty_like(weight).copy_(gradient)
            for weight, gradient in zip(self._weights, gradients, strict=True)
        ]
        with torch.no_grad():
            torch._fused_adam_(
                self._weights,
                alike,
                self._means,
                self._squares,
                [],
                [self._count] * len(self._weights),
                lr=self._learning_rate,
                beta1=0.9,
                beta2=0.999,
                weight_decay=0.0,
                eps=1e-8,
                amsgrad=False,
                maximize=False,
            )
