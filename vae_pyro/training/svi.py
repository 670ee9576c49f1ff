"""The SVI loop: yields one record per epoch."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor

from vae_pyro.compilation import CompilationError, Outputs, compile_program, keep_freed_memory
from vae_pyro.compilation.precision import fast_float32, threads
from vae_pyro.objectives import Objective, SVILoss
from vae_pyro.randomness import RandomStream
from vae_pyro.training.divergence import Watch
from vae_pyro.training.optimizer import FusedAdam
from vae_pyro.vae import VAE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochRecord:
    """The metrics of one epoch of training.

    Attributes:
        epoch: 1 for the first.
        elbo: mean over the epoch's images of the ELBO's estimate, nats per image, taken while the
            weights moved; the true ELBO, whatever the objective.
        elbo_std_error: of that mean, from the spread between batches. It also contains the
            batches' differences, so it errs on the wide side.
        seconds: spent on the epoch's steps.
        objective: mean of what was maximised, from the same draws; None where that is the ELBO.
        objective_std_error: of that mean, likewise.
    """

    epoch: int
    elbo: float
    elbo_std_error: float
    seconds: float
    objective: float | None = None
    objective_std_error: float | None = None


def train(
    vae: VAE,
    objective: Objective,
    epoch_batches: Callable[[], Iterable[Tensor]],
    *,
    epochs: int,
    learning_rate: float,
    noise: RandomStream,
    compiled: bool = False,
    num_threads: int | None = None,
    adam: FusedAdam | None = None,
    done: int = 0,
) -> Iterator[EpochRecord]:
    """Maximise the objective by ``pyro.infer.SVI`` with Adam, yielding after every epoch.

    An epoch depends on the weights, ``adam``, ``noise`` and the random stream of ``epoch_batches``
    alone. Where these are restored, it is bit-identical.

    Args:
        vae: the pair; its weights are changed in place. In evaluation mode whenever this yields.
        objective: what to maximise.
        epoch_batches: returns an iterator over one epoch of batches, x ``(batch, C, H, W)``.
        epochs: how many passes over the data.
        learning_rate: Adam's.
        noise: the random stream of the guide's samples.
        compiled: whether one compiled graph computes losses and gradients. Batches of another
            shape than the first, and epochs in which the objective warms up, run uncompiled.
        num_threads: that a step runs on; by default as many as outside of the training.
        adam: the optimiser of these weights, where a training continues; a new one by default.
        done: number of epochs that were finished before.

    Raises:
        DivergenceError: at the first step whose objective, or the first epoch whose weights are
            not finite numbers, with the site that broke.
    """
    keep_freed_memory()
    adam = FusedAdam(vae.parameters(), learning_rate) if adam is None else adam
    graph: _Graph | None = None
    for epoch in range(done + 1, epochs + 1):
        start = time.perf_counter()
        vae.train()
        current = objective.at_epoch(epoch)
        loss = current.estimator()
        watch = Watch(vae, noise.device, epoch, learning_rate)
        svi = pyro.infer.SVI(vae.model, vae.guide, adam, loss.loss, watch.over(loss))
        steps: list[Tensor] = []  # nats per image: (ELBO,) or (objective, ELBO)
        sizes: list[int] = []
        # Pyro 1.9's SVI finds parameters through the global store; the weights themselves live in
        # the modules. So an empty store for every epoch, and nothing reaches the next job.
        with (
            pyro.get_param_store().scope(),
            noise.active(),
            fast_float32(noise.device),
            threads(num_threads or torch.get_num_threads()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)")  # the watch reports it
            for x in epoch_batches():
                if compiled and graph is None and current == objective:
                    try:
                        graph = _Graph(vae, loss, x)
                    except CompilationError as error:
                        compiled = False
                        logger.warning("trained without compiling: %s", error)
                watch.next_step(x)
                if graph is not None and x.shape == graph.shape and current == objective:
                    if watch.looks:
                        vae.model.likelihood.check(x)
                    losses, *gradients = graph.run(x)
                    watch.require_finite(losses)
                    adam.step(gradients)
                else:
                    losses = torch.tensor(svi.step(x), dtype=torch.float64).reshape(-1)
                steps.append(losses / -len(x))  # a copy: the next step overwrites the losses
                sizes.append(len(x))
        vae.eval()
        watch.require_finite_epoch(steps)
        *maximised, elbo = (
            _weighted_mean(values, torch.tensor(sizes).double())
            for values in torch.stack([step.cpu() for step in steps], 1).double()
        )
        seconds = time.perf_counter() - start
        yield EpochRecord(epoch, *elbo, seconds, *(maximised[0] if maximised else ()))


class _Graph:
    """Losses and gradients of an objective for batches of one shape, as one compiled graph.

    Raises:
        CompilationError: where it cannot be had.
    """

    def __init__(self, vae: VAE, loss: SVILoss, x: Tensor) -> None:
        def losses_and_gradients(vae: VAE, x: Tensor) -> Outputs:
            surrogate, *losses = loss.tensors(vae.model, vae.guide, x)
            weights = [weight for weight in vae.parameters() if weight.requires_grad]
            gradients = torch.autograd.grad(
                surrogate, weights, allow_unused=True, materialize_grads=True
            )
            return (torch.stack(losses).detach(), *gradients)

        self.shape = x.shape
        self.run = compile_program(losses_and_gradients, vae, [x], key=loss, gradients=True)


def _weighted_mean(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Mean over images of per-batch means, a short last batch counting for its images only."""
    shares = sizes / sizes.sum()
    mean = (shares * values).sum()
    if len(values) == 1:
        return mean.item(), math.nan
    # Unbiased for the variance of sum_b shares_b values_b when equal-sized batches are independent.
    variance = (shares**2 * (values - mean) ** 2).sum() * len(values) / (len(values) - 1)
    return mean.item(), variance.sqrt().item()
