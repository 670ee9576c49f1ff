"""Likelihoods of binary pixels."""

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from vae_pyro.likelihoods.base import Likelihood, Support


class Bernoulli(Likelihood):
    """log p(x | z) = sum_i x_i log m_i + (1 - x_i) log(1 - m_i), with m = sigmoid(parameters).

    Each pixel is 0 or 1, so p(x | z) is a probability and log p(x) is at most 0 nats.
    """

    support = Support.BINARY

    def forward(self, parameters: Tensor) -> TorchDistribution:
        # x is checked once per call of the model, in words, so torch need not check it again.
        return dist.Bernoulli(logits=parameters.squeeze(-4), validate_args=False).to_event(3)

    def initial_parameters(self, x: Tensor) -> Tensor:
        return torch.logit(x.mean(0), eps=1e-3).unsqueeze(0)
