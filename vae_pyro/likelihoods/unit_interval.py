"""Densities of dequantised pixels between 0 and 1."""

import math

import torch
from jaxtyping import Float
from pyro.distributions import Distribution
from torch import Tensor

from vae_pyro.likelihoods.base import Likelihood, Support
from vae_pyro.likelihoods.distributions import PixelBeta, PixelContinuousBernoulli

_LOG_MAX_CONCENTRATION = math.log(1e6)


class ContinuousBernoulli(Likelihood):
    """p(x_i | z) = C(eta_i) exp(eta_i x_i) on (0, 1): a normalised Bernoulli formula, a density.

    Its variance follows from its mean and is never small, so it fits sharp grey values badly.

    Source: Loaiza-Ganem and Cunningham (2019).

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.ContinuousBernoulli(17)(torch.zeros(1, 1, 8, 8))
    >>> p_x.log_prob(torch.full((1, 8, 8), 0.3))  # uniform where eta = 0
    tensor(0.)
    """

    support = Support.UNIT_INTERVAL

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        return PixelContinuousBernoulli(parameters.squeeze(-4)).to_event(3)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """The eta whose mean is the training mean, by Newton's method."""
        target = x.double().mean(0)
        eta = torch.zeros_like(target)
        for _ in range(50):
            p = PixelContinuousBernoulli(eta)
            eta = eta + ((target - p.mean) / p.variance).clamp(-2, 2)
        return eta.to(x.dtype).unsqueeze(0)


class Beta(Likelihood):
    """p(x_i | z) = Beta(nu m + 1e-3, nu (1 - m) + 1e-3), with m = sigmoid and nu = exp of outputs.

    The concentration nu is at most 10^6, so at the mean m = 1/2 the standard deviation is at least
    5e-4, well below a level's width. The 1e-3 keeps both parameters above zero.

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.Beta(17)(torch.zeros(2, 1, 8, 8))
    >>> p_x.mean.unique()
    tensor([0.5000])
    """

    support = Support.UNIT_INTERVAL
    num_parameters = 2

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        logit, log_concentration = parameters.unbind(-4)
        concentration = log_concentration.clamp(max=_LOG_MAX_CONCENTRATION).exp()
        return PixelBeta(
            concentration * torch.sigmoid(logit) + 1e-3,
            concentration * torch.sigmoid(-logit) + 1e-3,
        ).to_event(3)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """Mean and variance of each pixel over the training images, by the method of moments."""
        mean, variance = x.mean(0), x.var(0).clamp(min=1e-6)
        concentration = (mean * (1 - mean) / variance - 1).clamp(min=0.1)
        return torch.stack([torch.logit(mean), concentration.log()])
