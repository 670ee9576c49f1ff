"""What people ask about p(x), answered by measurements: ``python -m experiments``."""

from vae_pyro.cli import startup

startup.prepare()  # each of these commands begins here, before torch is imported
