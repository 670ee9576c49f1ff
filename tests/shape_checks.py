"""Checks the shape annotations of the estimators in every test: to be imported before vae_pyro."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is wanted
install_import_hook("vae_pyro.log_marginal", f"{__name__}.checked")
