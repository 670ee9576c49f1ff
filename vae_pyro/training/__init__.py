"""Training: the SVI loop, its optimiser, checkpoints, and ``fit``."""

from vae_pyro.training.fit import Epoch, History, fit

__all__ = ["Epoch", "History", "fit"]
