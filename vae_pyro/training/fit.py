"""``fit``: train a VAE on a data set. The command's trainer and notebooks use the same function."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from rich.console import Console

from vae_pyro.compilation import MIN_CALLS, MIN_STEPS, Mode, accelerated, is_repaid
from vae_pyro.compilation.precision import Precision
from vae_pyro.data import Dataset, batches
from vae_pyro.errors import ConfigError
from vae_pyro.evaluation import validate
from vae_pyro.objectives import ELBO, Objective
from vae_pyro.progress import ShowProgress, no_progress, show_progress
from vae_pyro.randomness import RandomStream
from vae_pyro.training.checkpoints import Checkpoints
from vae_pyro.training.early_stopping import EarlyStopping, Keep
from vae_pyro.training.history import Epoch, History
from vae_pyro.training.optimizers import Adam, Optimizer
from vae_pyro.training.schedules import Constant, Schedule
from vae_pyro.training.state import TrainingState
from vae_pyro.training.svi import EpochRecord, train
from vae_pyro.training.trial import threads_for
from vae_pyro.training.updates import Updates
from vae_pyro.vae import VAE

logger = logging.getLogger(__name__)


def fit(
    vae: VAE,
    data: Dataset,
    objective: Objective | None = None,
    *,
    epochs: int = 200,
    seed: int = 0,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    fraction: float = 1.0,
    ema_decay: float | None = None,
    valid_samples: int = 5,
    keep: Keep = "best",
    patience: int = 50,
    precision: Precision = "float32",
    compile_training: Mode = "auto",
    compile_validation: Mode = "auto",
    checkpoints: Checkpoints | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _epoch: None,
    progress: ShowProgress | bool = True,
) -> History:
    """Maximise the objective by SVI, and keep the weights with the best valid ELBO.

    >>> import vae_pyro as vp
    >>> data = vp.data.Digits().load()
    >>> likelihood = vp.likelihoods.Bernoulli(data.num_levels)
    >>> vae = vp.build_vae(latent_dim=2, image_shape=data.image_shape, likelihood=likelihood)
    >>> history = vp.fit(vae, data, vp.objectives.ELBO(), epochs=2, seed=0, progress=False)
    >>> len(history["valid/elbo"])
    2

    Training, validation and batches have random streams of their own, all fixed by ``seed``. So the
    result does not depend on what else draws random numbers, and ``python run.py`` with the same
    settings gives the same weights.

    Args:
        vae: its weights are changed in place. It is left in evaluation mode on its own device.
        data: training and validation images.
        objective: what is maximised; the ELBO where it is None. ``valid/elbo`` is the true ELBO,
            whatever the objective.
        epochs: passes over the training images, at most. More than before continue a training
            that ended, where ``checkpoints`` hold it.
        seed: of all random numbers of the training; the initial weights are those of ``vae``.
        batch_size: images per step.
        learning_rate: of the optimiser, before the schedule.
        optimizer: ``vae_pyro.training.Adam()`` where it is None.
        schedule: what the learning rate is multiplied by; where it is None, it is constant.
        fraction: trains this share of ``epochs``, above 0 and at most 1, through all of the
            schedule: its milestones, and a warm-up of the objective, are scaled likewise.
        ema_decay: validates and keeps an exponential moving average of the weights with this decay
            per step, for instance 0.999; None for the weights themselves.
        valid_samples: z's per validation image and epoch, at least 2.
        keep: ``best``: the weights of the epoch with the highest valid ELBO; ``last``: of the last.
        patience: with ``best``, training stops after so many epochs without a better valid ELBO.
        precision: of matrix products in training steps: ``float32``, or ``bfloat16``, which is
            faster on processors that have units for it. Weights, sums, validation and evaluation
            are float32 in any case.
        compile_training: whether a step runs as one compiled graph; ``auto`` where there are enough
            steps to repay the seconds of compiling.
        compile_validation: the same for validation.
        checkpoints: continued from the last one, where there is one; more are written there. With
            them, an interrupted call loses little: the same call continues.
        on_epoch: called after every epoch, before its checkpoint; first with epoch 0, or with every
            restored epoch.
        progress: True shows a bar on a terminal and a few lines elsewhere.

    Returns:
        the metrics of every epoch.

    Raises:
        ConfigError: where a number is out of range, or the objective does not fit the guide.
        DataError: where the data do not fit the VAE.
        DivergenceError: at the first step whose objective is not a finite number.
        CheckpointError: where a checkpoint belongs to another training.
    """
    _require_numbers(epochs, batch_size, valid_samples, patience)
    _require_in_range(learning_rate, fraction, ema_decay)
    _require_chosen(keep, precision)
    objective = ELBO() if objective is None else objective
    optimizer = Adam() if optimizer is None else optimizer
    schedule = Constant() if schedule is None else schedule
    _require_kinds(vae, data, objective, optimizer, schedule)
    of_schedule, epochs = epochs, shortened(epochs, fraction)
    if epochs < of_schedule:
        objective = objective.shortened(epochs / of_schedule)
    device = vae.device
    valid_x = data.prepared("valid", vae)
    data = data.for_likelihood(vae.likelihood).to(device)
    streams = {name: RandomStream(name, seed, device) for name in ("batches", "training")}
    stopping = EarlyStopping(epochs, keep, patience)
    settings = {
        "seed": seed,
        "objective": repr(objective),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "valid_samples": valid_samples,
        "keep": keep,
        "patience": patience,
        "precision": precision,
        "optimizer": repr(optimizer),
        "schedule": repr(schedule),
        "fraction": fraction,
        "ema_decay": ema_decay,
    }
    if schedule.depends_on_epochs:
        settings["epochs"] = epochs
    updates = Updates(vae.parameters(), optimizer, ema_decay)
    state = TrainingState(vae, updates, streams, settings=settings)
    restored = _restore(state, checkpoints)
    state.is_done = bool(restored) and stopping.is_over(state)
    for epoch in restored or [Epoch(0, {}, time.time())]:
        on_epoch(epoch)
    order = streams["batches"].generator
    rate = partial(
        schedule.learning_rate,
        learning_rate,
        steps=-(-len(data.train) // batch_size),
        epochs=of_schedule,
        length=of_schedule / epochs,
    )
    records = train(
        vae,
        objective,
        lambda: batches(
            data.train.images,
            lambda images: vae.likelihood.prepare(images, order),
            batch_size,
            order,
        ),
        epochs=0 if state.is_done else epochs,
        learning_rate=rate,
        noise=streams["training"],
        compiled=not state.is_done
        and _is_compiled(compile_training, epochs * (len(data.train) // batch_size)),
        precision=precision,
        last_batch=len(data.train) % batch_size if epochs >= MIN_CALLS else 0,
        num_threads=threads_for(vae, objective, valid_x, batch_size, state.threads),
        updates=updates,
        done=state.epoch,
    )
    with (
        _evaluation_mode_after(vae),
        _shown(progress)("training", epochs) as report,
        accelerated(device, compile_validation, repeats=epochs),
    ):
        report(state.epoch, "")
        for record in records:
            state.epoch, state.seconds = record.epoch, state.seconds + record.seconds
            with updates.averaged():
                # The same samples every epoch: what changes between epochs is the model.
                with RandomStream("validation", seed, device).active():
                    valid = validate(vae, valid_x, valid_samples)
                state.add_metrics({**_train_metrics(record), **valid})
                is_settled = objective.at_epoch(record.epoch) == objective
                stopping.update(state, valid["valid/elbo"], is_settled=is_settled)
                report(record.epoch, f"valid ELBO {valid['valid/elbo']:.2f} nats")
                on_epoch(_epoch(state.history[-1], is_last=state.is_done))
            if checkpoints is not None and (state.is_done or checkpoints.are_due()):
                checkpoints.keep(state.checkpoint())
            if state.is_done:
                break
    if checkpoints is not None:
        checkpoints.flush()
    if state.epoch < epochs:
        logger.info(
            "training ended with epoch %d: no better valid ELBO since %d",
            state.epoch,
            state.kept_epoch,
        )
    vae.load_state_dict(state.kept)
    return History([_epoch(entry) for entry in state.history], state.kept_epoch, state.seconds)


def shortened(epochs: int, fraction: float) -> int:
    """How many epochs a fraction of a schedule has: at least one."""
    return max(1, round(fraction * epochs))


def _restore(state: TrainingState, checkpoints: Checkpoints | None) -> list[Epoch]:
    """Continue from the last checkpoint; returns its epochs, none where there is none."""
    checkpoint = None if checkpoints is None else checkpoints.read()
    if checkpoint is None:
        return []
    state.restore(checkpoint)
    logger.info("training continues after epoch %d", state.epoch)
    return [_epoch(entry, is_restored=True) for entry in state.history]


@contextmanager
def _evaluation_mode_after(vae: VAE) -> Iterator[None]:
    """Also where the training is interrupted, as in a notebook."""
    try:
        yield
    finally:
        vae.eval()


def _require_numbers(epochs: int, batch_size: int, valid_samples: int, patience: int) -> None:
    for name, value, least in (
        ("epochs", epochs, 1),
        ("batch_size", batch_size, 1),
        ("valid_samples", valid_samples, 2),
        ("patience", patience, 1),
    ):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"{name}: must be a whole number from {least} up, got {value!r}")


def _require_in_range(learning_rate: float, fraction: float, ema_decay: float | None) -> None:
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning_rate: must be a positive number, got {learning_rate}")
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction: must be above 0 and at most 1, got {fraction}")
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ConfigError(f"ema_decay: must be between 0 and 1, or None, got {ema_decay}")


def _require_chosen(keep: str, precision: str) -> None:
    if keep not in ("best", "last"):
        raise ConfigError(f"keep: must be 'best' or 'last', got {keep!r}")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision: must be 'float32' or 'bfloat16', got {precision!r}")


def _require_kinds(
    vae: object, data: object, objective: object, optimizer: object, schedule: object
) -> None:
    for name, given, kind, example in (
        ("vae", vae, VAE, "build_vae(...)"),
        ("data", data, Dataset, "data.Digits().load()"),
        ("objective", objective, Objective, "objectives.ELBO()"),
        ("optimizer", optimizer, Optimizer, "training.Adam()"),
        ("schedule", schedule, Schedule, "training.Cosine()"),
    ):
        if not isinstance(given, kind):
            raise ConfigError(
                f"{name}: must be of class {kind.__name__}, such as vae_pyro.{example}, got "
                f"{type(given).__name__}"
            )


def _epoch(entry: Mapping[str, Any], *, is_restored: bool = False, is_last: bool = False) -> Epoch:
    return Epoch(entry["step"], entry["metrics"], entry["time"], is_restored, is_last)


def _is_compiled(mode: Mode, steps: int) -> bool:
    chosen = is_repaid(mode, steps, MIN_STEPS)
    if mode == "auto" and not chosen:
        logger.info(
            "training without compiling: %s steps do not repay it, %s would "
            "(training.compile=true compiles)",
            f"{steps:,}",
            f"{MIN_STEPS:,}",
        )
    return chosen


def _shown(progress: ShowProgress | bool) -> ShowProgress:
    if progress is True:
        return partial(show_progress, console=Console())
    return no_progress if progress is False else progress


def _train_metrics(record: EpochRecord) -> dict[str, float]:
    metrics = {"train/elbo": record.elbo, "train/elbo_std_error": record.elbo_std_error}
    if record.objective is not None and record.objective_std_error is not None:
        metrics["train/objective"] = record.objective
        metrics["train/objective_std_error"] = record.objective_std_error
    return metrics
