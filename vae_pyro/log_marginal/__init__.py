"""Estimators of log p(x), all with one signature: ``estimator(vae, x)``."""

from vae_pyro.log_marginal.adaptive import AdaptiveImportanceSampling
from vae_pyro.log_marginal.annealed import AIS, AnnealingBudget, ReverseAIS
from vae_pyro.log_marginal.drawing import log_weights
from vae_pyro.log_marginal.elbo import ELBOBound, elbo_parts
from vae_pyro.log_marginal.estimate import Bound, Estimate, PerImage
from vae_pyro.log_marginal.estimator import Estimator, OnProgress
from vae_pyro.log_marginal.exact import Exact
from vae_pyro.log_marginal.importance import (
    GuideEstimator,
    ImportanceSampling,
    IWAEBound,
    PriorSampling,
    WeightEstimator,
)
from vae_pyro.log_marginal.local import LocalELBO
from vae_pyro.log_marginal.pair import Start
from vae_pyro.log_marginal.program import Images, ModelAndGuide, PyroProgram, require_vae
from vae_pyro.log_marginal.proposals import Proposal
from vae_pyro.log_marginal.quadrature import Quadrature
from vae_pyro.log_marginal.summary import WeightSummary
from vae_pyro.log_marginal.together import (
    TimedEstimate,
    bidirectional,
    estimate_together,
)
from vae_pyro.log_marginal.weights import LogWeights
from vae_pyro.progress import ShowProgress

# The earlier names of these classes: existing scripts and configurations use them.
ELBO = ELBOBound
IWAE = IWAEBound

__all__ = [
    "AIS",
    "AdaptiveImportanceSampling",
    "AnnealingBudget",
    "Bound",
    "ELBOBound",
    "Estimate",
    "Estimator",
    "Exact",
    "GuideEstimator",
    "IWAEBound",
    "Images",
    "ImportanceSampling",
    "LocalELBO",
    "LogWeights",
    "ModelAndGuide",
    "OnProgress",
    "PerImage",
    "PriorSampling",
    "Proposal",
    "PyroProgram",
    "Quadrature",
    "ReverseAIS",
    "ShowProgress",
    "Start",
    "TimedEstimate",
    "WeightEstimator",
    "WeightSummary",
    "bidirectional",
    "elbo_parts",
    "estimate_together",
    "log_weights",
    "require_vae",
]
