"""One job's VAE, its data, and where they are recorded: training, testing, drawing."""

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console

from vae_pyro.compilation import MIN_STEPS, accelerated, is_repaid
from vae_pyro.config import Config
from vae_pyro.data import Dataset, batches
from vae_pyro.evaluation import (
    Evaluation,
    EvaluationPlan,
    evaluate,
    log_cell_volume,
    posterior_means,
    validate,
)
from vae_pyro.files import write_atomically
from vae_pyro.log_marginal import ImportanceSampling, estimate_together
from vae_pyro.objectives import Objective
from vae_pyro.progress import show_progress
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting import figures as visualization
from vae_pyro.reporting.estimators import comparison, estimators_csv, latent_csv, per_image_csv
from vae_pyro.reporting.tables import print_table, table_markdown
from vae_pyro.tracking import Run
from vae_pyro.training.checkpoints import Checkpoints
from vae_pyro.training.optimizer import FusedAdam
from vae_pyro.training.state import TrainingState
from vae_pyro.training.svi import EpochRecord, train
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class Experiment:
    """What a job does once everything is built.

    Attributes:
        config: the job's configuration.
        dataset: on the job's device.
        vae: likewise, its weights as they were initialised.
        objective: what is maximised.
        questions: what is asked of the trained VAE.
        run: where it is recorded.
        console: where progress is shown.
        output: the job's own folder.
    """

    config: Config
    dataset: Dataset
    vae: VAE
    objective: Objective
    questions: EvaluationPlan
    run: Run
    console: Console
    output: Path

    def evaluate(self, epoch: int) -> Evaluation:
        """Test, draw the bounds, and leave every image's numbers in the job's folder."""
        start = time.perf_counter()
        draws = self.config.evaluation.dequantisations if self._cell_volume else 1
        x = self._held_out("test", draws)
        with self._evaluating_fast(x):
            evaluation = evaluate(
                self.vae,
                x,
                self.questions,
                seed=self.config.seed,
                draws=draws,
                folder=self.output / "evaluation",
                progress=partial(show_progress, console=self.console),
            )
        metrics = evaluation.metrics
        if self.dataset.log_prob is not None:
            metrics["test/log_px_true"] = self.dataset.log_prob(x).mean().item()
        metrics["time/evaluate_seconds"] = time.perf_counter() - start
        self.run.log_metrics(metrics, step=epoch)
        self._draw_bounds(metrics)
        self._keep("per_image.csv", per_image_csv(evaluation))
        self._keep("latent.csv", latent_csv(self.vae, x[: len(x) // draws]))
        if self.questions.estimators:
            self._keep("estimators.csv", estimators_csv(evaluation))
        return evaluation

    def judge(self, epoch: int) -> dict[str, float]:
        """``valid/log_px``, importance sampled: by which models are chosen, the test set unseen."""
        x = self._held_out("valid")
        with self._evaluating_fast(x):
            estimate = estimate_together(
                {"log_px": ImportanceSampling(self.questions.num_samples)},
                self.vae,
                x,
                seed=self.config.seed,
                folder=self.output / "evaluation",
                progress=partial(show_progress, console=self.console),
            )["log_px"].estimate
        metrics = {
            "valid/log_px": estimate.mean(),
            "valid/log_px_std_error": estimate.mean_std_error(),
        }
        self.run.log_metrics(metrics, step=epoch)
        return metrics

    def show(self, evaluation: Evaluation, notes: Sequence[str]) -> None:
        """Print the estimators side by side, where there are more than the usual, and the notes.

        Both become the run's description.
        """
        words = list(notes)
        if self.questions.estimators:
            table = comparison(evaluation, self._cell_volume or 0.0)
            print_table(table, self.console)
            words.insert(0, table_markdown(table))
        self.run.describe("\n\n".join(words))
        for note in notes:
            self._tell(note)

    def _tell(self, note: str) -> None:
        self.console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)

    @property
    def _cell_volume(self) -> float | None:
        return log_cell_volume(self.vae.model.likelihood, self.dataset.image_shape)

    def _keep(self, name: str, text: str) -> None:
        write_atomically(self.output / name, text.encode())
        self.run.log_file(self.output / name)

    def _stream(self, name: str) -> RandomStream:
        return RandomStream(name, self.config.seed, self.dataset.train.images.device)

    def _held_out(self, split: Literal["valid", "test"], draws: int = 1) -> torch.Tensor:
        images = getattr(self.dataset, split).images
        generator = self.dataset.held_out_stream(split).generator
        x = [self.vae.model.likelihood.prepare(images.cpu(), generator) for _ in range(draws)]
        return torch.cat(x).to(images.device)

    def train(self, checkpoints: Checkpoints) -> tuple[dict[str, float], int]:
        """Train, recording every epoch; leaves the VAE with the weights to be kept.

        Args:
            checkpoints: where it goes on from the last one, if there is any, and leaves more.

        Returns:
            the seconds spent on steps and the epoch whose weights are kept; and the last epoch.
        """
        training, likelihood = self.config.training, self.vae.model.likelihood
        streams = {name: self._stream(name) for name in ("batches", "training")}
        order = streams["batches"].generator
        adam = FusedAdam(self.vae.parameters(), training.learning_rate)
        state = TrainingState(self.vae, adam, streams)
        valid_x, test_x = self._held_out("valid"), self._held_out("test")
        on_the_way = snapshot_epochs(training.epochs, training.snapshots) - {training.epochs}
        if (checkpoint := checkpoints.read(self._tell)) is None:
            self._draw(test_x, 0)
        else:
            state.restore(checkpoint)
            self._tell(f"training goes on after epoch {state.epoch}")
            for entry in state.history:  # what the tracker has not, if anything
                self.run.log_metrics(entry["metrics"], entry["step"], entry["time"])
        records = train(
            self.vae,
            self.objective,
            lambda: batches(
                self.dataset.train.images,
                lambda images: likelihood.prepare(images, order),
                training.batch_size,
                order,
            ),
            epochs=0 if state.is_done else training.epochs,
            learning_rate=training.learning_rate,
            noise=streams["training"],
            compiled=not state.is_done and self._compiles(),
            tell=self._tell,
            adam=adam,
            done=state.epoch,
        )
        with (
            show_progress("training", training.epochs, self.console) as report,
            accelerated(
                valid_x.device,
                self.config.evaluation.compile,
                repeats=training.epochs,
                tell=self._tell,
            ),
        ):
            for record in records:
                state.epoch = record.epoch
                state.seconds += record.seconds
                # The same draws every epoch: what moves between epochs is the model.
                with self._stream("validation").active():
                    valid = validate(self.vae, valid_x, training.valid_samples)
                metrics, now = {**_train_metrics(record), **valid}, time.time()
                state.history.append({"step": record.epoch, "time": now, "metrics": metrics})
                self.run.log_metrics(metrics, record.epoch, now)
                # While the objective warms up, a high ELBO is of another one than was asked for.
                settled = self.objective.at_epoch(record.epoch) == self.objective
                if training.keep == "last" or not settled or not valid["valid/elbo"] <= state.best:
                    state.keep_weights(valid["valid/elbo"] if settled else -math.inf)
                report(record.epoch, f"valid ELBO {valid['valid/elbo']:.2f} nats")
                waited = record.epoch - state.kept_epoch
                state.is_done = record.epoch == training.epochs or (
                    training.keep == "best" and waited >= training.patience
                )
                if record.epoch in on_the_way and not state.is_done:
                    self._draw(test_x, record.epoch)
                checkpoints.keep(state.checkpoint())
                if state.is_done:
                    break
        checkpoints.flush()
        if state.epoch < training.epochs:
            self.console.print(
                f"training ended with epoch {state.epoch}: no better valid ELBO since "
                f"{state.kept_epoch}",
                highlight=False,
            )
        self.vae.load_state_dict(state.kept)
        self._draw(test_x, state.epoch)
        trained = {
            "time/train_seconds": state.seconds,
            "train/kept_epoch": float(state.kept_epoch),
        }
        return trained, state.epoch

    def _evaluating_fast(self, x: torch.Tensor, repeats: int = 1) -> AbstractContextManager[None]:
        return accelerated(x.device, self.config.evaluation.compile, repeats, self._tell)

    def _compiles(self) -> bool:
        training = self.config.training
        steps = training.epochs * (len(self.dataset.train) // training.batch_size)
        chosen = is_repaid(training.compile, steps, MIN_STEPS)
        if training.compile == "auto" and not chosen:
            self._tell(
                f"training without compiling: {steps:,} steps do not repay it, {MIN_STEPS:,} would "
                "(training.compile=true compiles)"
            )
        return chosen

    def _draw(self, test_x: torch.Tensor, epoch: int) -> None:
        means = posterior_means(self.vae, test_x)
        labels = self.dataset.test.labels
        with self._stream("pictures").active():
            figures = {
                "samples": visualization.sample_grid(self.vae),
                "reconstructions": visualization.reconstruction_grid(self.vae, test_x[:64]),
                "latent_space": visualization.latent_figure(self.vae, means, labels),
            }
        for key, figure in figures.items():
            pixels = visualization.render(figure)
            self.run.log_image(key, pixels, epoch)
            write_atomically(self.output / f"{key}.png", visualization.png(pixels))

    def _draw_bounds(self, metrics: Mapping[str, float]) -> None:
        def with_error(name: str) -> tuple[float, float]:
            return metrics[f"test/{name}"], metrics[f"test/{name}_std_error"]

        bounds = {k: with_error(f"iwae_{k}") for k in self.config.evaluation.iwae_samples}
        figure = visualization.bounds_figure(
            {**bounds, 1: with_error("elbo")},
            with_error("log_px"),
            self.config.evaluation.num_samples,
        )
        path = self.output / "elbo_vs_iwae.png"
        write_atomically(path, visualization.png(visualization.render(figure)))
        self.run.log_file(path)


def snapshot_epochs(epochs: int, snapshots: int) -> set[int]:
    """0 (before training), and up to ``snapshots`` epochs from 1 to the last.

    They lie ever further apart, because most changes are early.
    """
    steps = snapshots - 1
    return {0, epochs} | {round(epochs ** (i / steps)) for i in range(steps)}


def _train_metrics(record: EpochRecord) -> dict[str, float]:
    metrics = {"train/elbo": record.elbo, "train/elbo_std_error": record.elbo_std_error}
    if record.objective is not None and record.objective_std_error is not None:
        metrics["train/objective"] = record.objective
        metrics["train/objective_std_error"] = record.objective_std_error
    return metrics
