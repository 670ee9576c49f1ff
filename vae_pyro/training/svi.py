"""The SVI loop: yields one record per epoch."""

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import pyro
import pyro.infer
import pyro.optim
import torch
from torch import Tensor

from vae_pyro.compilation import CompilationError, Outputs, compile_program, keep_freed_memory
from vae_pyro.compilation.precision import Precision, fast_arithmetic, threads
from vae_pyro.compilation.processes import Aside, num_processes
from vae_pyro.errors import WorkerError
from vae_pyro.files import private_folder
from vae_pyro.objectives import Objective, SVILoss
from vae_pyro.randomness import RandomStream
from vae_pyro.training.divergence import Watch
from vae_pyro.training.updates import Updates
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
    learning_rate: float | Callable[[int, int], float],
    noise: RandomStream,
    compiled: bool = False,
    last_batch: int = 0,
    num_threads: int | None = None,
    precision: Precision = "float32",
    updates: Updates | None = None,
    done: int = 0,
) -> Iterator[EpochRecord]:
    """Maximise the objective by ``pyro.infer.SVI``, yielding after every epoch.

    An epoch depends on the weights, ``updates``, ``noise`` and the random stream of
    ``epoch_batches`` alone. Where these are restored, it is bit-identical.

    Args:
        vae: the pair; its weights are changed in place. In evaluation mode whenever this yields.
        objective: what to maximise.
        epoch_batches: returns an iterator over one epoch of batches, x ``(batch, C, H, W)``.
        epochs: how many passes over the data.
        learning_rate: of every step; or a function of the finished epochs and the finished steps of
            this epoch.
        noise: the random stream of the guide's samples.
        compiled: whether a compiled graph computes losses and gradients, for batches of the first
            one's shape. Epochs whose objective is another one run uncompiled; those of a warm-up
            differ in a number alone, with which the graph is called.
        last_batch: images of a shorter last batch, where that has a graph of its own; else 0.
        num_threads: that a step runs on; by default as many as outside of the training.
        precision: of matrix products; see ``fast_arithmetic``.
        updates: of these weights, where a training continues; by default new ones, with Adam.
        done: number of epochs that were finished before.

    Raises:
        DivergenceError: at the first step whose objective, or the first epoch whose weights are
            not finite numbers, with the site that broke.
    """
    keep_freed_memory()
    updates = Updates(vae.parameters()) if updates is None else updates
    checked: Tensor | None = None
    can_share = num_processes(noise.device) > 1
    graphs = _Graphs(vae, objective, compiled=compiled, last_batch=last_batch, can_share=can_share)
    for epoch in range(done + 1, epochs + 1):
        start = time.perf_counter()
        vae.train()
        current = objective.at_epoch(epoch)
        loss = current.estimator()
        form, values = current.compiled_as()
        numbers = [torch.tensor(value, device=noise.device) for value in values]
        watch = Watch(vae, noise.device, epoch)
        svi = pyro.infer.SVI(vae.model, vae.guide, updates, loss.loss, watch.over(loss))
        steps: list[Tensor] = []  # nats per image: (ELBO,) or (objective, ELBO)
        sizes: list[int] = []
        # Pyro 1.9's SVI finds parameters through the global store; the weights themselves live in
        # the modules. So an empty store for every epoch, and nothing reaches the next job.
        with (
            pyro.get_param_store().scope(),
            noise.active(),
            fast_arithmetic(noise.device, precision),
            threads(num_threads or torch.get_num_threads()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)")  # the watch reports it
            for x in epoch_batches():
                graph = graphs.of(x, form)
                rate = (
                    learning_rate(epoch - 1, len(steps))
                    if callable(learning_rate)
                    else learning_rate
                )
                updates.begin_step(rate, len(x))
                watch.next_step(x, rate)
                if graph is not None:
                    # Of several batches that were prepared at once, each is a part of the whole.
                    whole = x if x._base is None else x._base
                    if watch.looks and whole is not checked:
                        vae.model.likelihood.check(whole)
                        checked = whole
                    losses, *gradients = graph(x, *numbers)
                    watch.require_finite(losses)
                    updates.step(gradients)
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


class _Graphs:
    """Losses and gradients of an objective as compiled graphs, one for each shape of batches.

    Args:
        vae: the pair.
        objective: of the training.
        compiled: whether there are any.
        last_batch: images of a shorter last batch, which has a graph, too; 0 if it has none.
        can_share: whether another process may make that one, while this makes the first.
    """

    def __init__(
        self, vae: VAE, objective: Objective, *, compiled: bool, last_batch: int, can_share: bool
    ) -> None:
        self._vae = vae
        self._form, self._numbers = objective.compiled_as()
        self._sizes = {last_batch} if compiled else set()
        self._is_first = compiled
        self._can_share = can_share
        self._by_shape: dict[torch.Size, Callable[..., Outputs]] = {}

    def of(self, x: Tensor, form: Objective) -> Callable[..., Outputs] | None:
        """Of batches like this one, as ``graph_of``; None where they are not compiled.

        Args:
            x: a batch.
            form: of this epoch's objective, as ``compiled_as`` returns it.
        """
        if form != self._form:
            return None
        if self._is_first or (x.shape not in self._by_shape and len(x) in self._sizes):
            try:
                with self._last_one_made_aside(x):
                    self._by_shape[x.shape] = self._made(x)
            except CompilationError as error:
                self._sizes = set()
                logger.warning("trained without compiling: %s", error)
            self._is_first = False
        return self._by_shape.get(x.shape)

    def _made(self, x: Tensor) -> Callable[..., Outputs]:
        numbers = [torch.tensor(number, device=x.device) for number in self._numbers]
        return graph_of(self._vae, self._form.estimator(), x, *numbers)

    @contextmanager
    def _last_one_made_aside(self, x: Tensor) -> Iterator[None]:
        """Meanwhile, the graph of the last batch is made; it is then found on disk."""
        others = [x[:size] for size in self._sizes if 0 < size < len(x)]
        aside: Aside[None] = Aside()

        def make() -> None:
            self._made(others[0])

        # A process that is forked has one thread, and a graph is made for a number of threads.
        is_found = torch.get_num_threads() == 1 and private_folder() is not None
        if others and self._is_first and self._can_share and is_found:
            with suppress(WorkerError):
                aside.begin(make)
        try:
            yield
            with suppress(WorkerError, CompilationError):  # it is tried again when it is needed
                if aside.is_busy:
                    aside.result()
        finally:
            aside.stop()


def graph_of(vae: VAE, loss: SVILoss, x: Tensor, *numbers: Tensor) -> Callable[..., Outputs]:
    """Losses and gradients of an objective for batches of one shape, as one compiled graph.

    The losses are sums over images, the gradients those of their mean.

    Args:
        vae: the pair.
        loss: of the objective.
        x: an example.
        numbers: those of the objective that a call gives, as examples; see ``compiled_as``.

    Returns:
        x, numbers -> the losses as one tensor, and a gradient for each trained weight. The next
        call overwrites them.

    Raises:
        CompilationError: where it cannot be had.
    """

    def losses_and_gradients(vae: VAE, x: Tensor, *numbers: Tensor) -> Outputs:
        surrogate, *losses = loss.tensors(vae.model, vae.guide, x, *numbers)
        surrogate = surrogate / len(x)
        weights = [weight for weight in vae.parameters() if weight.requires_grad]
        gradients = torch.autograd.grad(
            surrogate, weights, allow_unused=True, materialize_grads=True
        )
        return (torch.stack(losses).detach(), *gradients)

    return compile_program(losses_and_gradients, vae, [x, *numbers], key=loss, gradients=True)


def _weighted_mean(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Mean over images of per-batch means, a short last batch counting for its images only."""
    shares = sizes / sizes.sum()
    mean = (shares * values).sum()
    if len(values) == 1:
        return mean.item(), math.nan
    # Unbiased for the variance of sum_b shares_b values_b when equal-sized batches are independent.
    variance = (shares**2 * (values - mean) ** 2).sum() * len(values) / (len(values) - 1)
    return mean.item(), variance.sqrt().item()
