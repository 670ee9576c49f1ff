"""How many threads train: few where a step is short, because threads that meet have to wait."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import try_out
from vae_pyro.vae import VAE

# Measured: a step of 0.15 G operations takes as long with one thread as with two. Beside two other
# programs on two cores it takes 1.5 times as long as alone with one thread, 2.5 times with two.
_PER_THREAD = 2e8


def threads_for(vae: VAE, objective: Objective, x: Tensor, batch_size: int, available: int) -> int:
    """One thread for every 0.2 G floating-point operations of a step; at most those available.

    It depends on the networks, the objective and the batch size alone, and not on a clock: the same
    training takes the same number each time, and with it gives the same bits.

    Args:
        vae: the pair; unchanged.
        objective: of the training.
        x: some prepared images, ``(N, C, H, W)``.
        batch_size: images per step.
        available: threads that PyTorch uses now.
    """
    if vae.device.type != "cpu" or available == 1:
        return available
    x = x[:batch_size]
    counter = _Operations()
    try:
        with RandomStream("threads", 0).active(), torch.no_grad(), counter:
            try_out(vae, objective, x)
    except (ValueError, RuntimeError):  # the first step reports what is wrong
        return available
    step = 3 * counter.total * batch_size / len(x)  # forwards, and twice as much backwards
    return min(available, max(1, round(step / _PER_THREAD)))


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Compute with so many threads; then with as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and convolutions."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the operation, and count it."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if name in ("mm", "bmm"):
            self.total += 2 * args[0].numel() * args[1].shape[-1]
        elif name in ("addmm", "baddbmm"):
            self.total += 2 * args[1].numel() * args[2].shape[-1]
        elif name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            places = x if transposed else result
            self.total += 2 * weight.numel() * places.numel() / places.shape[1]
        return result
