"""p_theta(x | z): the decoder's outputs are the parameters of a distribution over images."""

from vae_pyro.likelihoods.base import Likelihood, Support
from vae_pyro.likelihoods.binary import Bernoulli
from vae_pyro.likelihoods.levels import Categorical, DiscretizedLogisticMixture
from vae_pyro.likelihoods.normal import Normal, NormalHeteroscedastic, NormalLearnedScale
from vae_pyro.likelihoods.preparation import binarise, dequantise
from vae_pyro.likelihoods.unit_interval import Beta, ContinuousBernoulli

__all__ = [
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Likelihood",
    "Normal",
    "NormalHeteroscedastic",
    "NormalLearnedScale",
    "Support",
    "binarise",
    "dequantise",
]
