"""Checks the shapes in annotations at every call: to be imported before vae_pyro."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float too
install_import_hook(["vae_pyro.likelihoods", "vae_pyro.log_marginal"], f"{__name__}.checked")
