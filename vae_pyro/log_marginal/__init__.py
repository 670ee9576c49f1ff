"""The family of answers to "what is log p(x)?", all with one signature: ``estimator(vae, x)``."""

from vae_pyro.log_marginal.elbo import ELBO, elbo_parts
from vae_pyro.log_marginal.estimate import Bound, Estimate, Estimator
from vae_pyro.log_marginal.importance import IWAE, ImportanceSampling, estimate_together
from vae_pyro.log_marginal.weights import LogWeights, log_weights

__all__ = [
    "ELBO",
    "IWAE",
    "Bound",
    "Estimate",
    "Estimator",
    "ImportanceSampling",
    "LogWeights",
    "elbo_parts",
    "estimate_together",
    "log_weights",
]
