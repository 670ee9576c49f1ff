"""What SVI maximises. Of all metrics, only ``train/objective`` depends on beta and free bits."""

from vae_pyro.objectives.base import Objective, SVILoss
from vae_pyro.objectives.beta_elbo import BetaELBO
from vae_pyro.objectives.elbo import ELBO, ELBOAnalyticKL
from vae_pyro.objectives.importance_weighted import IWAE, DReG

__all__ = ["ELBO", "IWAE", "BetaELBO", "DReG", "ELBOAnalyticKL", "Objective", "SVILoss"]
