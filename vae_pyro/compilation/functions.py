"""Functions as Inductor vectorises them on a CPU, to float accuracy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def log1p(x: Tensor) -> Tensor:
    """log(1 + x) to float accuracy from operations that Inductor vectorises on a CPU.

    With u = 1 + x rounded, log(u) x / (u - 1): the rounding of u cancels.

    Source: Kahan, as in Goldberg (1991), theorem 4.
    """
    u = 1 + x
    return torch.where(u == 1, x, torch.log(u) * (x / (u - 1)))


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, likewise: (u - 1) x / log(u) with u = exp(x).

    Source: Higham (2002), section 1.14.1.
    """
    u = torch.exp(x)
    away = torch.where((u == 1) | (u == 0) | u.isinf(), 0.5, u)  # keeps the unused branch finite
    middle = (away - 1) * (x / torch.log(away))
    return torch.where(u == 1, x, torch.where((u == 0) | u.isinf(), u - 1, middle))


def log1p_of_share(x: Tensor) -> Tensor:
    """log(1 + x) for x from 0 to 1, as of exp(-abs(y)), where softplus needs it.

    2 artanh(s) with s = x / (2 + x) <= 1/3, by the first seven terms of artanh's series: the next
    one is below 2e-8 of the sum. Faster than a logarithm; of wider floats, the logarithm is taken.
    """
    if x.dtype != torch.float32:
        return log1p(x)
    s = x / (2 + x)
    square = s * s
    series = torch.full_like(square, 1 / 13)
    for n in (11, 9, 7, 5, 3, 1):
        series = series * square + 1 / n
    return 2 * s * series


def softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:  # noqa: ARG001
    """log(1 + exp(beta x)) / beta; it needs no threshold."""
    y = beta * x if beta != 1 else x
    value = y.clamp(min=0) + log1p_of_share(torch.exp(-y.abs()))
    return value / beta if beta != 1 else value


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    share = torch.exp(-x.abs())  # the second output is an input of PyTorch's gradient
    return x.clamp(max=0) - log1p_of_share(share), share


def _cross_entropy(
    logits: Tensor,
    x: Tensor,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: int = 1,
) -> Any:
    if weight is not None or pos_weight is not None or reduction != 0:
        return NotImplemented
    return softplus(logits) - x * logits


def _affine(bias: Tensor, x: Tensor, weight: Tensor, beta: float = 1, alpha: float = 1) -> Any:
    """The kernel of the activation then adds the bias, which saves one pass over the memory."""
    return torch.mm(x, weight) + bias if beta == alpha == 1 else NotImplemented


# Inductor's C++ computes softplus and similar functions one number at a time: five times as slow.
ON_CPU: dict[Any, Callable[..., Any]] = {
    _aten.log1p.default: log1p,
    _aten.expm1.default: expm1,
    _aten.softplus.default: softplus,
    _aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    _aten.binary_cross_entropy_with_logits.default: _cross_entropy,
    _aten.addmm.default: _affine,
}
