"""Normal densities, of dequantised pixels or of real-valued data."""

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_pyro.likelihoods.base import Likelihood, Support, inverse_softplus
from vae_pyro.likelihoods.checks import require_positive


def _normal(loc: Tensor, scale: Tensor | float) -> TorchDistribution:
    return dist.Normal(loc, scale, validate_args=False).to_event(3)


class Normal(Likelihood):
    """p(x | z) = N(x | f(z), scale^2 I), constant included, with a scale that is given.

    Squared error is its logarithm only up to that constant and that scale, and the scale decides
    how much a sharp image is worth: compare ``normal_learned_scale``.

    Args:
        scale: the standard deviation of every pixel, in units of x, which ranges from 0 to 1.
    """

    support = Support.REAL

    def __init__(self, num_levels: int | None, scale: float = 0.1) -> None:
        super().__init__(num_levels)
        require_positive("scale", scale)
        self.scale = scale

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return _normal(parameters.squeeze(-4), self.scale)

    def initial_parameters(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


class NormalLearnedScale(Likelihood):
    """p(x | z) = N(x | f(z), s^2 I) with one s for all pixels and images, learned with the rest.

    s = softplus(raw) + min_scale. With a linear decoder this is probabilistic PCA (Tipping and
    Bishop, 1999); the best s is the root mean squared error of the reconstructions.

    Args:
        initial_scale: where s starts, above ``min_scale``.
        min_scale: s is never below it. The default is about what a pixel of 256 levels varies
            by its dequantisation alone, 1 / (256 sqrt(12)).
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

    def forward(self, parameters: Tensor) -> TorchDistribution:
        return _normal(parameters.squeeze(-4), self.scale)

    def initial_parameters(self, x: Tensor) -> Tensor:
        return x.mean(0, keepdim=True)


class NormalHeteroscedastic(Likelihood):
    """p(x_i | z) = N(x_i | f_mu(z)_i, f_sigma(z)_i^2), sigma = softplus(output) + min_scale.

    Without a lower bound on sigma the density of a pixel that never changes would grow without
    limit; dequantised pixels do vary, by 1 / (L sqrt(12)), and the bound lies below that.

    Args:
        min_scale: no sigma is below it.
    """

    support = Support.REAL
    num_parameters = 2

    def __init__(self, num_levels: int | None, min_scale: float = 1e-3) -> None:
        super().__init__(num_levels)
        require_positive("min_scale", min_scale)
        self.min_scale = min_scale

    def forward(self, parameters: Tensor) -> TorchDistribution:
        loc, raw_scale = parameters.unbind(-4)
        return _normal(loc, softplus(raw_scale) + self.min_scale)

    def initial_parameters(self, x: Tensor) -> Tensor:
        """Mean and standard deviation of each pixel over the training images."""
        above_floor = (x.std(0) - self.min_scale).clamp(min=1e-4)
        return torch.stack([x.mean(0), inverse_softplus(above_floor)])
