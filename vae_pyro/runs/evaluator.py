"""Evaluate: the metrics of the trained VAE, and every image's numbers as tables."""

import time
from dataclasses import dataclass
from pathlib import Path

from vae_pyro.compilation import accelerated
from vae_pyro.config import EvaluationConfig
from vae_pyro.evaluation import Evaluation, evaluate, log_cell_volume
from vae_pyro.evaluation.names import merge, set_apart
from vae_pyro.files import write_atomically
from vae_pyro.log_marginal import estimate_together
from vae_pyro.progress import ShowProgress
from vae_pyro.reporting.estimators import estimators_csv, latent_csv, per_image_csv
from vae_pyro.runs.pictures import draw_bounds
from vae_pyro.runs.preparation import Parts
from vae_pyro.tracking import FINAL, Run

CACHE_FOLDER = "evaluation"
"""Holds what is already estimated while a job evaluates; removed when it has finished."""
FILES = (CACHE_FOLDER, "per_image.csv", "latent.csv", "estimators.csv")
"""What this module writes into a job's folder."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates the VAE of a job, and records it.

    Attributes:
        parts: of the job.
        options: the group ``evaluation`` of its configuration.
        seed: of the evaluation.
        folder: the job's own.
        progress: shows how far the evaluation is.
    """

    parts: Parts
    options: EvaluationConfig
    seed: int
    folder: Path
    progress: ShowProgress

    def evaluate(self, run: Run) -> tuple[Evaluation, dict[str, float]]:
        """All metrics of the test set; tables and chart are left in the job's folder.

        Args:
            run: records metrics and files.

        Returns:
            the evaluation; and its metrics with the job's own (``time/evaluate_seconds``, ..).
        """
        start = time.perf_counter()
        parts = self.parts
        # A density is averaged over several dequantisations of the images.
        draws = self.options.dequantisations if self.log_cell_volume else 1
        x = parts.dataset.prepared("test", parts.vae, draws=draws)
        with accelerated(x.device, self.options.compile):
            evaluation = evaluate(
                parts.vae,
                x,
                parts.plan,
                seed=self.seed,
                draws=draws,
                folder=self.folder / CACHE_FOLDER,
                progress=self.progress,
            )
        own = {}
        if parts.dataset.log_prob is not None:
            own["test/log_px_true"] = parts.dataset.log_prob(x).mean().item()
        own["time/evaluate_seconds"] = time.perf_counter() - start
        metrics = merge(evaluation.metrics, own)
        run.log_metrics(set_apart(metrics), FINAL)
        is_trusted = evaluation.estimates["log_px"].estimate.is_trusted
        run.tag("log_px_trusted", "yes" if is_trusted else "no")
        draw_bounds(
            metrics,
            self.options.iwae_samples,
            self.options.num_samples,
            run=run,
            folder=self.folder,
        )
        self._keep(run, "per_image.csv", per_image_csv(evaluation))
        self._keep(run, "latent.csv", latent_csv(parts.vae, x[: len(x) // draws]))
        if parts.plan.estimators:
            self._keep(run, "estimators.csv", estimators_csv(evaluation))
        return evaluation, metrics

    def validation_log_px(self, run: Run) -> dict[str, float]:
        """``valid/log_px`` as ``test/log_px``: a search chooses models by it, not by test data.

        Args:
            run: records it.
        """
        parts = self.parts
        x = parts.dataset.prepared("valid", parts.vae)
        with accelerated(x.device, self.options.compile):
            estimate = estimate_together(
                {"log_px": parts.plan.standard["log_px"]},
                parts.vae,
                x,
                seed=self.seed,
                folder=self.folder / CACHE_FOLDER,
                progress=self.progress,
            )["log_px"].estimate
        metrics = {
            "valid/log_px": estimate.mean(),
            "valid/log_px_std_error": estimate.mean_std_error(),
        }
        run.log_metrics(metrics, FINAL)
        return metrics

    @property
    def log_cell_volume(self) -> float | None:
        """See ``vae_pyro.evaluation.log_cell_volume``."""
        return log_cell_volume(self.parts.likelihood, self.parts.dataset.image_shape)

    def _keep(self, run: Run, name: str, text: str) -> None:
        write_atomically(self.folder / name, text.encode())
        run.log_file(self.folder / name)
