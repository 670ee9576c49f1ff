"""The family of answers to "what is log p(x)?", all with one signature: ``estimator(vae, x)``."""

from vae_pyro.log_marginal.annealed import AIS, ReverseAIS
from vae_pyro.log_marginal.drawing import log_weights
from vae_pyro.log_marginal.elbo import ELBOBound, elbo_parts
from vae_pyro.log_marginal.estimate import Bound, Estimate, Estimator, PerImage
from vae_pyro.log_marginal.exact import Exact
from vae_pyro.log_marginal.importance import ImportanceSampling, IWAEBound, PriorSampling
from vae_pyro.log_marginal.local import LocalELBO
from vae_pyro.log_marginal.program import PyroProgram
from vae_pyro.log_marginal.quadrature import Quadrature
from vae_pyro.log_marginal.together import TimedEstimate, bidirectional, estimate_together
from vae_pyro.log_marginal.weights import LogWeights

# The earlier names of these classes: existing scripts and configurations name them.
ELBO = ELBOBound
IWAE = IWAEBound

__all__ = [
    "AIS",
    "ELBO",
    "IWAE",
    "Bound",
    "ELBOBound",
    "Estimate",
    "Estimator",
    "Exact",
    "IWAEBound",
    "ImportanceSampling",
    "LocalELBO",
    "LogWeights",
    "PerImage",
    "PriorSampling",
    "PyroProgram",
    "Quadrature",
    "ReverseAIS",
    "TimedEstimate",
    "bidirectional",
    "elbo_parts",
    "estimate_together",
    "log_weights",
]
