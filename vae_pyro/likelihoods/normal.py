"""Normal densities of dequantised or real-valued pixels."""

import torch
from jaxtyping import Float
from pyro import distributions as dist
from pyro.distributions import Distribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_pyro.likelihoods.base import Likelihood, Support, inverse_softplus
from vae_pyro.likelihoods.checks import require_positive


def _normal(loc: Tensor, scale: Tensor | float) -> Distribution:
    return dist.Normal(loc, scale, validate_args=False).to_event(3)


class Normal(Likelihood):
    """p(x | z) = N(x | f(z), scale^2 I), with a fixed scale; log p(x | z) includes the constant.

    The scale decides how much log p(x) a sharper image gains; ``NormalLearnedScale`` learns it.

    Args:
        num_levels: how many values a pixel of the data can have; None for real-valued pixels.
        scale: the standard deviation of every pixel, in units of x, which ranges from 0 to 1.

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.Normal(17, scale=0.1)(torch.zeros(1, 1, 8, 8))
    >>> p_x.log_prob(torch.zeros(1, 8, 8))  # 64 log(1 / (0.1 sqrt(2 pi)))
    tensor(88.5534)
    """

    support = Support.REAL

    def __init__(self, num_levels: int | None, scale: float = 0.1) -> None:
        super().__init__(num_levels)
        require_positive("scale", scale)
        self.scale = scale

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        return _normal(parameters.squeeze(-4), self.scale)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        return x.mean(0, keepdim=True)


class NormalLearnedScale(Likelihood):
    """p(x | z) = N(x | f(z), s^2 I) with one s for all pixels and images, learned with the rest.

    s = softplus(raw) + min_scale. With a linear decoder this is probabilistic PCA (Tipping and
    Bishop, 1999). The best s is the root mean squared error of the reconstructions.

    Args:
        num_levels: how many values a pixel of the data can have; None for real-valued pixels.
        initial_scale: s before training, above ``min_scale``.
        min_scale: lower bound of s. The default is about the standard deviation that
            dequantisation gives a pixel of 256 levels, 1 / (256 sqrt(12)).

    >>> import vae_pyro as vp
    >>> round(vp.likelihoods.NormalLearnedScale(17, initial_scale=0.2).scale.item(), 4)
    0.2
    """

    support = Support.REAL

    def __init__(
        self, num_levels: int | None, initial_scale: float = 0.3, min_scale: float = 1e-3
    ) -> None:
        super().__init__(num_levels)
        require_positive("min_scale", min_scale)
        if not initial_scale > min_scale:
            raise ValueError(
                f"initial_scale: must be above min_scale={min_scale}, got {initial_scale}"
            )
        self.min_scale = min_scale
        start = torch.tensor(initial_scale - min_scale)
        self.raw_scale = nn.Parameter(inverse_softplus(start))

    @property
    def scale(self) -> Tensor:
        """s, a scalar."""
        return softplus(self.raw_scale) + self.min_scale

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        return _normal(parameters.squeeze(-4), self.scale)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        return x.mean(0, keepdim=True)


class NormalHeteroscedastic(Likelihood):
    """p(x_i | z) = N(x_i | f_mu(z)_i, f_sigma(z)_i^2), sigma = softplus(output) + min_scale.

    The lower bound keeps the density of a pixel that never changes finite. Dequantised pixels of L
    levels have a standard deviation of at least 1 / (L sqrt(12)), which is above the bound.

    Args:
        num_levels: how many values a pixel of the data can have; None for real-valued pixels.
        min_scale: lower bound of every sigma.

    >>> import torch, vae_pyro as vp
    >>> p_x = vp.likelihoods.NormalHeteroscedastic(17)(torch.zeros(2, 1, 8, 8))
    >>> p_x.variance.shape
    torch.Size([1, 8, 8])
    """

    support = Support.REAL
    num_parameters = 2

    def __init__(self, num_levels: int | None, min_scale: float = 1e-3) -> None:
        super().__init__(num_levels)
        require_positive("min_scale", min_scale)
        self.min_scale = min_scale

    def forward(
        self, parameters: Float[Tensor, "*batch parameters channels height width"]
    ) -> Distribution:
        loc, raw_scale = parameters.unbind(-4)
        return _normal(loc, softplus(raw_scale) + self.min_scale)

    def initial_parameters(
        self, x: Float[Tensor, "images channels height width"]
    ) -> Float[Tensor, "parameters channels height width"]:
        """Mean and standard deviation of each pixel over the training images."""
        above_floor = (x.std(0) - self.min_scale).clamp(min=1e-4)
        return torch.stack([x.mean(0), inverse_softplus(above_floor)])
