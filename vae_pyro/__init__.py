"""Variational autoencoders as Pyro programs, and log p(x) that can be trusted.

>>> import vae_pyro as vp
>>> data = vp.data.Digits().load()
>>> bernoulli = vp.likelihoods.Bernoulli(data.num_levels)
>>> vae = vp.build_vae(latent_dim=2, image_shape=data.image_shape, likelihood=bernoulli)
>>> x = data.prepared("test", vae)
>>> x.shape, vae.encode(x).mean.shape
(torch.Size([300, 1, 8, 8]), torch.Size([300, 2]))
"""

from __future__ import annotations

import difflib
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vae_pyro import data, guide, likelihoods, log_marginal, networks, objectives, training
    from vae_pyro.evaluation.comparison import compare
    from vae_pyro.training.fit import fit
    from vae_pyro.vae import VAE, build_vae

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "__version__",
    "build_vae",
    "compare",
    "data",
    "fit",
    "guide",
    "likelihoods",
    "load",
    "log_marginal",
    "networks",
    "objectives",
    "training",
]

_HOMES = {
    "VAE": "vae_pyro.vae",
    "build_vae": "vae_pyro.vae",
    "compare": "vae_pyro.evaluation.comparison",
    "fit": "vae_pyro.training.fit",
}


def __getattr__(name: str) -> Any:
    """Imports what is used at its first use: torch is slow to import, and --help needs none."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"vae_pyro.{name}")
    close = difflib.get_close_matches(name, __all__)
    names = f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(__all__)}"
    raise AttributeError(f"vae_pyro has no attribute {name!r}; {names}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)


def load(source: str | Path, *, tracking_uri: str | None = None, device: str = "cpu") -> VAE:
    """A trained VAE, in evaluation mode.

    Hydra is not needed, and MLflow only for a run.

    Args:
        source: a run of MLflow, as its id (32 hexadecimal digits) or ``runs:/<id>``, with or
            without ``/model``; or a job's folder, or the ``model`` folder in it.
        tracking_uri: where the run is recorded; by default $MLFLOW_TRACKING_URI, else
            ``sqlite:///mlflow.db``.
        device: where the VAE is to be.

    Raises:
        CheckpointError: where there is no trained model, or it is damaged; for a sweep's folder,
            with its jobs' folders, one of which is to be given.
        TrackingError: where the tracking store does not respond or has no such run.

    >>> import vae_pyro as vp
    >>> vp.load("outputs/2026-01-31/12-00-00")  # doctest: +SKIP
    VAE(latent_dim=10, image_shape=(1, 8, 8), Bernoulli, DiagNormal, 384,884 weights)
    """
    from vae_pyro.saving import MODEL_FOLDER, load_model, model_folder
    from vae_pyro.tracking import downloaded

    text = str(source)
    is_id = re.fullmatch("[0-9a-f]{32}(/model)?", text) is not None and not Path(text).exists()
    if text.startswith("runs:/") or is_id:
        run_id = text.removeprefix("runs:/").removesuffix("/").removesuffix("/model")
        with downloaded(run_id, MODEL_FOLDER, tracking_uri) as model:
            return load_model(model, device)
    return load_model(model_folder(Path(source)), device)
