"""Probabilities of the grey (or colour) levels themselves."""

import torch
from jaxtyping import Float
from pyro.distributions import Distribution
from torch import Tensor
from torch.nn.functional import softplus

from vae_pyro.likelihoods.base import Likelihood, Support, inverse_softplus
from vae_pyro.likelihoods.checks import require_positive
from vae_pyro.likelihoods.distributions import PixelCategorical, PixelLogisticMixture


class Categorical(Likelihood):
    """P(level of pixel i = l | z) = softmax(outputs of pixel i)_l, over all L levels.

    It ignores the order of the levels and can have any shape; it needs L outputs per pixel.

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.Categorical(17)(torch.zeros(17, 1, 8, 8))
    >>> p_x.log_prob(torch.ones(1, 8, 8))  # 64 log(1/17)
    tensor(-181.3257)

    Source: van den Oord et al. (2016), pixel recurrent networks: pixels as discrete variables.
    """

    support = Support.LEVELS

    def __init__(self, num_levels: int | None) -> None:
        super().__init__(num_levels)
        assert num_levels is not None
        self.num_parameters = num_levels

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        return PixelCategorical(parameters.movedim(-4, -1)).to_event(3)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """Log frequency of each level at each pixel; one is added to every count."""
        levels = torch.round(x * (self.num_parameters - 1)).long()
        counts = x.new_ones(self.num_parameters, *x.shape[1:])
        counts.scatter_add_(0, levels, torch.ones_like(x))
        return (counts / (len(x) + self.num_parameters)).log()


class DiscretizedLogisticMixture(Likelihood):
    """P(level = l | z) = the mass of a mixture of logistic densities between l - 1/2 and l + 1/2.

    The lowest and the highest level get the tails. Each pixel and channel has a mixture of its own
    and is independent given z. Scales are softplus(output) + min_scale.

    Args:
        num_levels: how many values a pixel of the data can have, L.
        num_components: logistic densities per pixel and channel.
        min_scale: lower bound of every scale, in units of x, which ranges from 0 to 1.

    >>> import torch, vae_pyro as vp
    >>> likelihood = vp.likelihoods.DiscretizedLogisticMixture(17, num_components=3)
    >>> p_x = likelihood(torch.zeros(likelihood.num_parameters, 1, 1, 1))
    >>> levels = torch.arange(17).reshape(17, 1, 1, 1) / 16
    >>> round(p_x.log_prob(levels).exp().sum().item(), 4)
    1.0

    Source: Salimans et al. (2017), section 2.1, without its links between channels.
    """

    support = Support.LEVELS

    def __init__(
        self, num_levels: int | None, num_components: int = 5, min_scale: float = 1e-3
    ) -> None:
        super().__init__(num_levels)
        require_positive("num_components", num_components)
        require_positive("min_scale", min_scale)
        self.num_components = num_components
        self.min_scale = min_scale
        self.num_parameters = 3 * num_components

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        assert self.num_levels is not None
        logits, loc, raw_scale = parameters.movedim(-4, -1).chunk(3, dim=-1)
        return PixelLogisticMixture(
            self.num_levels, logits, loc, softplus(raw_scale) + self.min_scale
        ).to_event(3)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """Equal weights, equidistant means in [0, 1], scales of half their distance."""
        k = self.num_components
        loc = (torch.arange(k, device=x.device) + 0.5) / k
        scale = inverse_softplus(torch.full((k,), 0.5 / k, device=x.device))
        start = torch.cat([torch.zeros_like(loc), loc, scale])
        return start.to(x.dtype).reshape(-1, 1, 1, 1).expand(-1, *x.shape[1:])
