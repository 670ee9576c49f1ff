"""An objective computed once before it is trained: whether it fits, and how long a step is."""

import pyro
import torch
from torch import Tensor

from vae_pyro.compilation.operations import Operations
from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

# Measured: a step of 0.15 G operations takes as long with one thread as with two. Beside two other
# programs on two cores it takes 1.5 times as long as alone with one thread, 2.5 times with two.
_PER_THREAD = 2e8


def try_out(vae: VAE, objective: Objective, x: Tensor) -> None:
    """Compute the objective once, so that parts that do not fit are reported before training.

    Args:
        vae: the pair; unchanged.
        objective: the objective of the training.
        x: a few prepared images, ``(batch, C, H, W)``.

    Raises:
        ConfigError: where the objective does not fit this guide.
    """
    with pyro.get_param_store().scope():
        objective.estimator().loss(vae.model, vae.guide, x)


def threads_for(vae: VAE, objective: Objective, x: Tensor, batch_size: int, available: int) -> int:
    """How many threads train: few where a step is short, because threads wait for each other.

    One thread for every 0.2 G floating-point operations of a step; at most those available.

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
    counter = Operations()
    try:
        with RandomStream("threads", 0).active(), torch.no_grad(), counter:
            try_out(vae, objective, x)
    except (ValueError, RuntimeError):  # the first step reports what is wrong
        return available
    step = 3 * counter.total * batch_size / len(x)  # forwards, and twice as much backwards
    return min(available, max(1, round(step / _PER_THREAD)))
