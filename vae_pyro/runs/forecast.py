"""How long a job would take: measured on a few steps and images, and recorded nowhere."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

from torch import Tensor

from vae_pyro.compilation import MIN_CALLS, MIN_STEPS, accelerated, is_repaid
from vae_pyro.compilation.processes import num_processes
from vae_pyro.config import Config, parse_config
from vae_pyro.data import Split
from vae_pyro.evaluation import log_cell_volume
from vae_pyro.log_marginal import AIS, Estimator, estimate_together
from vae_pyro.log_marginal.together import IMAGES_PER_CHUNK
from vae_pyro.runs.preparation import Parts, prepare
from vae_pyro.training import fit
from vae_pyro.training.fit import shortened

_STEPS = 20  # of an epoch
_EPOCHS = 4  # the first one holds what happens once, such as compiling
_LONG_ENOUGH = 3.0  # seconds, of an estimator
_CHEAP = 60.0  # seconds for all images; as ``Estimator.budget_for_all``, which counts


@dataclass(frozen=True)
class Forecast:
    """Seconds that a job would take on this machine as it is now.

    Attributes:
        training: of all epochs; early stopping may end it sooner.
        evaluation: of the trained VAE.
    """

    training: float
    evaluation: float

    @property
    def together(self) -> float:
        """Seconds of the whole job, without its start of a few seconds."""
        return self.training + self.evaluation


def forecast(tree: Mapping[str, Any], choices: Mapping[str, str]) -> Forecast:
    """Prepare a job as if it were to run, and measure a small part of it.

    What happens once is counted once; the rest grows with the number of steps and images.

    Args:
        tree: the resolved configuration as plain nested dictionaries.
        choices: the option chosen in every group, by group.

    Raises:
        UserError: as the job would: the configuration is checked by preparing it.
    """
    config = parse_config(tree)
    parts = prepare(config, choices)
    return Forecast(0.0 if config.weights else _training(parts, config), _evaluation(parts, config))


def _training(parts: Parts, config: Config) -> float:
    options, data = config.training, parts.dataset
    epochs = shortened(options.epochs, config.recipe.fraction)
    steps = -(-len(data.train) // options.batch_size)
    share = min(1.0, _STEPS / steps)

    def some(split: Split) -> Split:
        number = max(2, round(share * len(split)))
        return Split(split.images[:number], split.labels[:number])

    times: list[float] = []
    all_steps = epochs * (len(data.train) // options.batch_size)
    fit(
        parts.vae,
        replace(data, train=some(data.train), valid=some(data.valid)),
        parts.objective,
        epochs=_EPOCHS,
        seed=config.seed,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        optimizer=parts.optimizer,
        ema_decay=options.ema_decay,
        valid_samples=options.valid_samples,
        keep="last",
        precision=options.precision,
        compile_training=is_repaid(options.compile, all_steps, MIN_STEPS),
        compile_validation=is_repaid(config.evaluation.compile, epochs, MIN_CALLS),
        on_epoch=lambda _epoch: times.append(time.perf_counter()),
        progress=False,
    )
    first, *others = (after - before for before, after in pairwise(times))
    epoch = median(others)
    return max(0.0, first - epoch) + epochs * epoch / share


def _evaluation(parts: Parts, config: Config) -> float:
    options, plan = config.evaluation, parts.plan
    is_density = log_cell_volume(parts.likelihood, parts.dataset.image_shape)
    draws = options.dequantisations if is_density else 1
    x = parts.dataset.prepared("test", parts.vae)
    bounds = dict(plan.standard)
    log_px = {"log_px": bounds.pop("log_px")}
    again = min(plan.repeated_images, len(x))
    seconds = _estimating(bounds, draws * len(x), parts, config, x)
    seconds += _estimating(log_px, draws * len(x) + again, parts, config, x)
    for name, estimator in plan.estimators.items():
        chosen = draws * len(x[: plan.num_images])
        if isinstance(estimator, AIS):
            chosen += 2 * plan.simulated_images  # from below and from above
        own = _estimating({name: estimator}, chosen, parts, config, x)
        for_all = own * draws * len(x) / chosen
        seconds += for_all if estimator.budget_for_all and for_all < _CHEAP else own
    return seconds


def _estimating(
    estimators: Mapping[str, Estimator], number: int, parts: Parts, config: Config, x: Tensor
) -> float:
    """Seconds for so many images: begin with as many as all processes take at a time.

    The estimators must share one pass.
    """
    chunk = IMAGES_PER_CHUNK[x.device.type]
    few = x[: min(number, chunk * num_processes(x.device))]
    clock = _Stopwatch()
    repeats = -(-number // len(few))
    with accelerated(x.device, config.evaluation.compile, repeats), suppress(_EnoughError):
        estimate_together(estimators, parts.vae, few, seed=config.seed, progress=clock)
    return clock.seconds(number)


class _EnoughError(Exception):
    """Ends a pass that was measured long enough."""


class _Stopwatch:
    """Shows no progress, but times it, and ends the work after some seconds."""

    def __init__(self) -> None:
        self._points: list[tuple[float, int]] = []  # time, and images done

    @contextmanager
    def __call__(self, _label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        self._points.append((time.perf_counter(), 0))
        yield self._report
        self._points.append((time.perf_counter(), total))

    def seconds(self, number: int) -> float:
        """What so many images take: until the first report once, the rest in proportion."""
        (start, _), *points = self._points
        begun, first = points[0]
        ended, last = points[-1]
        if last == first:
            return (ended - start) * number / last
        return begun - start + (number - first) * (ended - begun) / (last - first)

    def _report(self, done: int, _state: str) -> None:
        if not done:
            return
        self._points.append((time.perf_counter(), done))
        begun, first = self._points[1]
        if done > first and time.perf_counter() - begun > _LONG_ENOUGH:
            raise _EnoughError
