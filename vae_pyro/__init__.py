"""Variational autoencoders as Pyro programs, and log p(x) that can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vae_pyro.vae import VAE

__version__ = "0.1.0"


def load(source: str | Path, *, tracking_uri: str | None = None, device: str = "cpu") -> VAE:
    """A trained VAE, ready to be asked; neither Hydra nor, for a folder, MLflow is needed.

    Args:
        source: ``runs:/<run id>`` of a finished job in MLflow (with or without ``/model``), or a
            folder: a job's own, or the ``model`` folder in it.
        tracking_uri: where the run is recorded; by default $MLFLOW_TRACKING_URI, else
            ``sqlite:///mlflow.db``.
        device: where the VAE is wanted.

    Raises:
        CheckpointError: where there is no trained model, or it is damaged.
        TrackingError: where the tracking store does not answer.
    """
    from vae_pyro.saving import load_model  # torch is slow to import; --help needs none of it
    from vae_pyro.tracking import downloaded

    text = str(source)
    if text.startswith("runs:/"):
        run_id = text.removeprefix("runs:/").removesuffix("/model")
        with downloaded(run_id, "model", tracking_uri) as model:
            return load_model(model, device)
    folder = Path(source)
    return load_model(folder / "model" if (folder / "model").is_dir() else folder, device)
