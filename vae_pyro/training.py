"""The SVI loop. It yields one record per epoch, and knows nothing of who listens."""

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

from vae_pyro.errors import DivergenceError
from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training gave.

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
) -> Iterator[EpochRecord]:
    """Maximise the objective by ``pyro.infer.SVI`` with Adam, yielding after every epoch.

    Args:
        vae: the pair; its weights are changed in place. In evaluation mode whenever this yields.
        objective: what to maximise.
        epoch_batches: gives the batches of one epoch, x ``(batch, C, H, W)``, anew at each call.
        epochs: how many passes over the data.
        learning_rate: Adam's.
        noise: where the guide's draws come from.

    Raises:
        DivergenceError: at the first step whose objective, or the first epoch whose weights are
            not finite numbers.
    """
    adam = pyro.optim.Adam({"lr": learning_rate, "fused": True})
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        vae.train()
        estimator = objective.at_epoch(epoch).estimator()
        svi = pyro.infer.SVI(vae.model, vae.guide, adam, estimator)
        steps: list[tuple[float, ...]] = []  # nats per image: (ELBO,) or (objective, ELBO)
        sizes: list[int] = []
        # Pyro 1.9's SVI finds parameters through the global store; the weights themselves live in
        # the modules. So an empty store for every epoch, and nothing reaches the next job.
        with pyro.get_param_store().scope(), noise.active(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Encountered (NaN|[+-]inf)")  # told below
            for x in epoch_batches():
                losses = svi.step(x)
                losses = losses if isinstance(losses, tuple) else (losses,)
                steps.append(tuple(-loss / len(x) for loss in losses))
                sizes.append(len(x))
                for name, value in zip(("ELBO", "objective"), steps[-1][::-1], strict=False):
                    if not math.isfinite(value):
                        raise _divergence(
                            f"the {name} became {value}", epoch, len(steps), learning_rate
                        )
        vae.eval()
        if not all(parameter.isfinite().all() for parameter in vae.parameters()):
            raise _divergence("a weight is no longer finite", epoch, len(steps), learning_rate)
        *maximised, elbo = (
            _weighted_mean(torch.tensor(values).double(), torch.tensor(sizes).double())
            for values in zip(*steps, strict=True)
        )
        seconds = time.perf_counter() - start
        yield EpochRecord(epoch, *elbo, seconds, *(maximised[0] if maximised else ()))


def try_out(vae: VAE, objective: Objective, x: Tensor) -> None:
    """Compute the objective once, so that parts that do not go together are told of at once.

    Args:
        vae: the pair; unchanged.
        objective: what is to be maximised.
        x: a few prepared images, ``(batch, C, H, W)``.

    Raises:
        ConfigError: where the objective cannot be had of this guide.
    """
    with pyro.get_param_store().scope():
        objective.estimator().loss(vae.model, vae.guide, x)


def _divergence(what: str, epoch: int, step: int, learning_rate: float) -> DivergenceError:
    return DivergenceError(
        f"{what} in epoch {epoch}, step {step}: try a smaller training.learning_rate "
        f"(it is {learning_rate:g})"
    )


def _weighted_mean(values: Tensor, sizes: Tensor) -> tuple[float, float]:
    """Mean over images of per-batch means, a short last batch counting for its images only."""
    shares = sizes / sizes.sum()
    mean = (shares * values).sum()
    if len(values) == 1:
        return mean.item(), math.nan
    # Unbiased for the variance of sum_b shares_b values_b when equal-sized batches are independent.
    variance = (shares**2 * (values - mean) ** 2).sum() * len(values) / (len(values) - 1)
    return mean.item(), variance.sqrt().item()
