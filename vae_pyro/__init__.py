"""Variational autoencoders as Pyro programs, and log p(x) that can be trusted."""

__version__ = "0.1.0"
