"""Likelihoods of binary pixels."""

import torch
from jaxtyping import Float
from pyro import distributions as dist
from pyro.distributions import Distribution
from torch import Tensor

from vae_pyro.likelihoods.base import Likelihood, Support


class Bernoulli(Likelihood):
    """log p(x | z) = sum_i x_i log m_i + (1 - x_i) log(1 - m_i), with m = sigmoid(parameters).

    Each pixel is 0 or 1, so p(x | z) is a probability and log p(x) is at most 0 nats.

    Args:
        num_levels: how many values a pixel of the data can have, 2 where they are binary already.

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.Bernoulli(2)(torch.zeros(1, 1, 8, 8))
    >>> p_x.log_prob(torch.ones(1, 8, 8))  # 64 log(1/2)
    tensor(-44.3614)
    """

    support = Support.BINARY

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        # The model checks x, once per call and with a better message than torch's.
        return dist.Bernoulli(logits=parameters.squeeze(-4), validate_args=False).to_event(3)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        return torch.logit(x.mean(0), eps=1e-3).unsqueeze(0)
