"""Where importance samples come from: the guide as it is, widened, or mixed with the prior."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyro
import torch
import torch.distributions as td
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.guide import CholeskyNormal
from vae_pyro.vae import VAE

Program = Callable[[Tensor], Any]
"""A Pyro program of images x ``(batch, C, H, W)``."""


@dataclass(frozen=True)
class Proposal:
    """r(z | x) = a p(z) + (1 - a) q_s(z | x), with q_s the guide, its scale multiplied by s.

    A guide that is narrower than the posterior leaves weights without a finite variance. Widened,
    it covers the posterior; and mixed with the prior it bounds every weight by p(x | z) / a.

    Args:
        inflation: s; 1 leaves the guide as it is.
        prior_share: a, between 0 and 1; 1 draws from the prior alone.

    Raises:
        ValueError: where a number is out of range.

    Source: Hesterberg (1995), section 2, defensive mixtures.
    """

    inflation: float = 1.0
    prior_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.inflation > 0:
            raise ValueError(f"inflation: must be positive, got {self.inflation}")
        if not 0 <= self.prior_share <= 1:
            raise ValueError(f"prior_share: must lie between 0 and 1, got {self.prior_share}")

    @property
    def is_wider(self) -> bool:
        """Whether it reaches where the guide does not."""
        return self.inflation > 1 or self.prior_share > 0

    def program(self, vae: VAE) -> Program:
        """A Pyro program that draws z as the guide does, from r(z | x)."""
        if self == THE_GUIDE:
            guide: Program = vae.guide
            return guide

        def draw(x: Tensor) -> Tensor:
            with pyro.plate("images", len(x), dim=-1):
                z: Tensor = pyro.sample("z", self._distribution(vae, x))
            return z

        return draw

    def _distribution(self, vae: VAE, x: Tensor) -> td.Distribution:
        prior: td.Distribution = vae.model.prior().expand([len(x)])
        if self.prior_share == 1:
            return prior
        guide = inflate(vae.guide.posterior(x), self.inflation)
        return Mixture(guide, prior, self.prior_share) if self.prior_share else guide


THE_GUIDE = Proposal()
# PyTorch's classes: some of Pyro's distributions are made of them.
_LOCATION_SCALE = (td.Normal, td.Laplace, td.Cauchy, td.Gumbel, dist.Logistic)


def inflate(q: td.Distribution, factor: float) -> td.Distribution:
    """q with its scale multiplied, around its location; for a transformed q, that of its base.

    Args:
        q: a distribution over z: normal, Laplace, Student's t and the like, or made of one by
            transforms (a flow, a log-normal).
        factor: 1 leaves q as it is.

    Raises:
        EstimatorError: where q has no scale.
    """
    if factor == 1:
        return q
    wide: td.Distribution
    if isinstance(q, td.Independent):
        base = inflate(q.base_dist, factor)
        wide = dist.Independent(base, q.reinterpreted_batch_ndims, validate_args=False)
    elif isinstance(q, _LOCATION_SCALE):
        wide = type(q)(q.loc, factor * q.scale, validate_args=False)
    elif isinstance(q, td.StudentT):
        wide = dist.StudentT(q.df, q.loc, factor * q.scale, validate_args=False)
    elif isinstance(q, td.MultivariateNormal):
        wide = CholeskyNormal(q.loc, scale_tril=factor * q.scale_tril, validate_args=False)
    elif isinstance(q, td.TransformedDistribution):
        base = inflate(q.base_dist, factor)
        wide = dist.TransformedDistribution(base, q.transforms, validate_args=False)
    else:
        raise EstimatorError(
            f"inflation: {type(q).__name__} has no scale to multiply; leave inflation at 1, or mix "
            "with the prior (prior_share)"
        )
    return wide


class Mixture(TorchDistribution):  # type: ignore[misc]  # Pyro's classes are untyped
    """a second + (1 - a) first, for distributions of any two kinds with one shape.

    Args:
        first, second: over z, of equal batch and event shapes.
        share: a, strictly between 0 and 1.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    has_rsample = False

    def __init__(self, first: td.Distribution, second: td.Distribution, share: float) -> None:
        self.first, self.second, self.share = first, second, share
        super().__init__(first.batch_shape, first.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.first.support

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Mixture":
        first, second = (q.expand(torch.Size(batch_shape)) for q in (self.first, self.second))
        return Mixture(first, second, self.share)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        z, other = (q.sample(torch.Size(sample_shape)) for q in (self.first, self.second))
        shape = z.shape[: z.dim() - len(self.event_shape)]
        chosen = torch.rand(shape, device=z.device) < self.share
        return torch.where(chosen.reshape(*shape, *(1 for _ in self.event_shape)), other, z)

    def log_prob(self, z: Tensor) -> Tensor:
        share = torch.tensor(self.share, dtype=torch.float64)
        first = self.first.log_prob(z) + torch.log1p(-share).item()
        return torch.logaddexp(first, self.second.log_prob(z) + share.log().item())
