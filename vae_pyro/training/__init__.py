"""Training: the SVI loop, optimisers, learning-rate schedules, checkpoints, and ``fit``."""

from vae_pyro.training.fit import fit
from vae_pyro.training.history import Epoch, History
from vae_pyro.training.optimizers import SGD, Adam, AdamW, Optimizer
from vae_pyro.training.schedules import Burda, Constant, Cosine, MultiStep, Schedule

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Burda",
    "Constant",
    "Cosine",
    "Epoch",
    "History",
    "MultiStep",
    "Optimizer",
    "Schedule",
    "fit",
]
