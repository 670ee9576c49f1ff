"""Weights that an earlier job has trained, for one that only evaluates."""

from dataclasses import dataclass
from pathlib import Path

from vae_pyro.errors import CheckpointError
from vae_pyro.reporting.results import JobResult
from vae_pyro.saving import load_model, model_digest, model_folder
from vae_pyro.tracking import FINAL, Run
from vae_pyro.vae import VAE

_OF_TRAINING = "time/train_seconds", "train/kept_epoch"


@dataclass(frozen=True)
class Weights:
    """A trained model on disk.

    Attributes:
        folder: of the job that trained it.
        digest: SHA-256 of the weights.
    """

    folder: Path
    digest: str

    @classmethod
    def of(cls, folder: str) -> "Weights":
        """Those of a job's folder.

        Raises:
            CheckpointError: where there is no trained model.
        """
        return cls(Path(folder), model_digest(model_folder(Path(folder))))

    def give_to(self, vae: VAE, run: Run) -> dict[str, float]:
        """Load them into a VAE of the same shape.

        Args:
            vae: as the configuration builds it.
            run: records what is known of their training.

        Returns:
            ``time/train_seconds`` and ``train/kept_epoch`` of that job; 0 seconds if unknown.

        Raises:
            CheckpointError: where the model is damaged, or of another shape.
        """
        trained = load_model(model_folder(self.folder))
        try:
            vae.load_state_dict(trained.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights of {self.folder} do not fit this configuration: it builds {vae!r}, "
                f"but they are of {trained!r}; use `evaluate`, which takes over its settings"
            ) from error
        earlier = JobResult.read(self.folder)
        known = earlier.metrics if earlier else {}
        metrics = {name: known[name] for name in _OF_TRAINING if name in known}
        metrics = {"time/train_seconds": 0.0} | metrics
        run.log_metrics(metrics, FINAL)
        return metrics
