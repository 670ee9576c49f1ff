"""Train: ``fit`` with a run that records every epoch, pictures on the way, and checkpoints."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vae_pyro.compilation import Mode
from vae_pyro.config import TrainingConfig
from vae_pyro.progress import ShowProgress
from vae_pyro.runs.pictures import Pictures, draw_training, snapshot_epochs
from vae_pyro.runs.preparation import Parts
from vae_pyro.tracking import FINAL, Run
from vae_pyro.training import Epoch, History, fit
from vae_pyro.training.checkpoints import FOLDER, Checkpoints
from vae_pyro.training.fit import shortened

FILES = (FOLDER,)
"""What this module writes into a job's folder."""


@dataclass(frozen=True)
class Trainer:
    """Trains the VAE of a job, and records it.

    Attributes:
        parts: of the job.
        options: the group ``training`` of its configuration.
        fraction: of its epochs and of its schedule that is trained.
        compile_validation: whether validation is compiled, as ``evaluation.compile`` says.
        seed: of the training.
        folder: the job's own.
        progress: shows how far the training is.
    """

    parts: Parts
    options: TrainingConfig
    fraction: float
    compile_validation: Mode
    seed: int
    folder: Path
    progress: ShowProgress

    def train(self, run: Run, checkpoints: Checkpoints) -> dict[str, float]:
        """Train, or continue; the VAE is left with the weights that are kept.

        Args:
            run: records every epoch's metrics, and pictures.
            checkpoints: continued from the last one, where there is one.

        Returns:
            ``time/train_seconds`` and ``train/kept_epoch``.
        """
        options, parts = self.options, self.parts
        test_x = parts.dataset.prepared("test", parts.vae)
        snapshots = snapshot_epochs(shortened(options.epochs, self.fraction), options.snapshots)
        labels = parts.dataset.test.labels
        pictures = Pictures(parts.vae, test_x, labels, seed=self.seed, run=run, folder=self.folder)
        # Else a job killed meanwhile would continue after an epoch without its pictures.
        checkpoints.wait_for(lambda: pictures.are_awaited)

        def record(epoch: Epoch) -> None:
            if epoch.metrics:
                run.log_metrics(epoch.metrics, epoch.number, epoch.time)
            pictures.record(wait=epoch.is_last)
            if epoch.number in snapshots and not (epoch.is_restored or epoch.is_last):
                pictures.draw(epoch.number)

        try:
            history = self._fit(checkpoints, record)
            pictures.draw(history.epochs[-1].number)
            pictures.record()
            pictures.finish()
        finally:
            pictures.give_up()
        by_epoch = {name: history[name] for name in history.epochs[0].metrics}
        draw_training(by_epoch, history.kept_epoch, run=run, folder=self.folder)
        metrics = {
            "time/train_seconds": history.seconds,
            "train/kept_epoch": float(history.kept_epoch),
        }
        run.log_metrics(metrics, FINAL)
        return metrics

    def _fit(self, checkpoints: Checkpoints, on_epoch: Callable[[Epoch], None]) -> History:
        options, parts = self.options, self.parts
        return fit(
            parts.vae,
            parts.dataset,
            parts.objective,
            epochs=options.epochs,
            seed=self.seed,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            optimizer=parts.optimizer,
            schedule=parts.schedule,
            fraction=self.fraction,
            ema_decay=options.ema_decay,
            valid_samples=options.valid_samples,
            keep=options.keep,
            patience=options.patience,
            precision=options.precision,
            compile_training=options.compile,
            compile_validation=self.compile_validation,
            checkpoints=checkpoints,
            on_epoch=on_epoch,
            progress=self.progress,
        )
