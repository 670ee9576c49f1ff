"""Questions about p(x), answered by measurement: ``python -m experiments``."""

from vae_pyro.cli import startup

startup.prepare()  # before torch is imported
