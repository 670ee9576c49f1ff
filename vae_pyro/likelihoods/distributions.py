"""Distributions over one pixel that PyTorch lacks, or computes too roughly for a log p(x).

Each has one set of parameters per pixel and event dimension 0; ``to_event(3)`` makes it a
distribution over images.
"""

from typing import Any

import torch
from pyro.distributions import Beta, Categorical, TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from vae_pyro.likelihoods.preparation import strictly_inside


class PixelDistribution(TorchDistribution):  # type: ignore[misc]  # Pyro's classes are untyped
    """Parameters with names, which are expanded together.

    Args:
        batch_shape: of the distribution.
        parameters: each of shape ``(*batch_shape, ...)``; stored as attributes.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  # PyTorch's own convention
    support = constraints.unit_interval

    def __init__(self, batch_shape: torch.Size, **parameters: Tensor) -> None:
        self._names = tuple(parameters)
        for name, value in parameters.items():
            setattr(self, name, value)
        super().__init__(batch_shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "PixelDistribution":
        """The same distribution, with a larger batch shape."""
        new = type(self).__new__(type(self))
        before = len(self.batch_shape)
        new.__dict__.update(self.__dict__)
        parameters = {
            name: (value := getattr(self, name)).expand(*batch_shape, *value.shape[before:])
            for name in self._names
        }
        PixelDistribution.__init__(new, torch.Size(batch_shape), **parameters)
        return new


class PixelContinuousBernoulli(PixelDistribution):
    """p(x) = exp(eta x) eta / (exp(eta) - 1) on [0, 1].

    This form is exact in float32 for every eta: with a = abs(eta) and d the distance of x from the
    mode, log p = -a d - log((1 - exp(-a)) / a). Near eta = 0, with h = eta / 2, it is a series:
    log p = eta (x - 1/2) - log(sinh(h) / h). PyTorch's distribution clamps the probability, and
    for a > 16 its density does not integrate to 1.

    Args:
        eta: natural parameters ("logits"), of the batch shape.

    Source: Loaiza-Ganem and Cunningham (2019).
    """

    eta: Tensor

    def __init__(self, eta: Tensor) -> None:
        super().__init__(eta.shape, eta=eta)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x in [0, 1]."""
        a = self.eta.abs()
        small = a < 0.2
        h = self.eta / 2
        series = self.eta * (x - 0.5) - (h**2 / 6 - h**4 / 180 + h**6 / 2835)
        safe = torch.where(small, 1.0, a)  # keeps the unused branch's gradient finite
        distance = torch.where(self.eta > 0, 1 - x, x)
        log_norm = torch.log(-torch.expm1(-safe) / safe)
        return torch.where(small, series, -safe * distance - log_norm)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples strictly inside (0, 1), by the inverse of the distribution function."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.eta.dtype, device=self.eta.device)
            # For eta = -a < 0; the density for +a is its mirror image.
            a = self.eta.abs().clamp(min=1e-4)
            x = torch.log1p(u * torch.expm1(-a)) / -a
            return strictly_inside(torch.where(self.eta > 0, 1 - x, x))

    @property
    def mean(self) -> Tensor:
        """1/2 + (coth h - 1/h) / 2."""
        h = self.eta / 2
        small = h.abs() < 0.1
        safe = torch.where(small, 1.0, h)
        series = h / 3 - h**3 / 45 + 2 * h**5 / 945
        return 0.5 + 0.5 * torch.where(small, series, 1 / torch.tanh(safe) - 1 / safe)

    @property
    def variance(self) -> Tensor:
        """(1/h^2 - 1/sinh(h)^2) / 4."""
        h = self.eta / 2
        small = h.abs() < 0.1
        safe = torch.where(small, 1.0, h)
        series = 1 / 3 - h**2 / 15 + 2 * h**4 / 189
        return 0.25 * torch.where(small, series, safe**-2 - torch.sinh(safe) ** -2)


class PixelBeta(PixelDistribution):
    """p(x) = x^(a - 1) (1 - x)^(b - 1) / B(a, b) on (0, 1), computed in float64.

    log B(a, b) is a difference of log-gammas that grow with a and b. In float32 its error would be
    a tenth of a nat per pixel at a = b = 10^5.

    Args:
        concentration1: a, of the batch shape.
        concentration0: b, likewise.
    """

    concentration1: Tensor
    concentration0: Tensor

    def __init__(self, concentration1: Tensor, concentration0: Tensor) -> None:
        super().__init__(
            concentration1.shape, concentration1=concentration1, concentration0=concentration0
        )

    def _exact(self) -> Any:
        return Beta(self.concentration1.double(), self.concentration0.double(), validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density at x in (0, 1), in the dtype of the parameters."""
        a, b, x = self.concentration1.double(), self.concentration0.double(), x.double()
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        log_p = (a - 1) * torch.log(x) + (b - 1) * torch.log1p(-x) - log_norm
        return log_p.to(self.concentration1.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples strictly inside (0, 1)."""
        with torch.no_grad():
            x: Tensor = self._exact().sample(torch.Size(sample_shape))
            return strictly_inside(x.to(self.concentration1.dtype))

    @property
    def mean(self) -> Tensor:
        """a / (a + b)."""
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def variance(self) -> Tensor:
        """a b / ((a + b)^2 (a + b + 1))."""
        total = self.concentration1 + self.concentration0
        return self.mean * (1 - self.mean) / (total + 1)


class PixelLevels(PixelDistribution):
    """A distribution over x = level / (L - 1), level = 0 .. L - 1; sums to 1 over the levels.

    Args:
        num_levels: L.
        batch_shape, parameters: as in ``PixelDistribution``.
    """

    def __init__(self, num_levels: int, batch_shape: torch.Size, **parameters: Tensor) -> None:
        self.num_levels = num_levels
        super().__init__(batch_shape, **parameters)


class PixelCategorical(PixelLevels):
    """P(level = l) = softmax(logits)_l.

    Args:
        logits: ``(*batch_shape, L)``.
    """

    logits: Tensor

    def __init__(self, logits: Tensor) -> None:
        super().__init__(logits.shape[-1], logits.shape[:-1], logits=logits)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the level that x = level / (L - 1) stands for."""
        level = torch.round(x * (self.num_levels - 1)).long()
        shape = torch.broadcast_shapes(level.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, -1)
        chosen = logits.gather(-1, level.expand(shape).unsqueeze(-1)).squeeze(-1)
        return chosen - self.logits.logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples x = level / (L - 1)."""
        with torch.no_grad():
            levels: Tensor = Categorical(logits=self.logits, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            return levels.to(self.logits.dtype) / (self.num_levels - 1)

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        x = torch.linspace(0, 1, self.num_levels).to(self.logits)
        return self.logits.softmax(-1) @ x


class PixelLogisticMixture(PixelLevels):
    """P(level) = sum_k pi_k [F((x + h - mu_k) / s_k) - F((x - h - mu_k) / s_k)].

    F is the logistic function, h = 1 / (2 (L - 1)) half the distance of two levels; the lowest
    level takes all mass below its upper edge, the highest all above its lower edge, so that the
    levels' probabilities sum to 1. With sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a))
    the logarithm needs no approximation in the tails.

    Args:
        num_levels: L.
        logits: of pi, ``(*batch_shape, components)``.
        loc: mu, likewise, in units of x.
        scale: s, likewise, positive.

    Source: Salimans et al. (2017), section 2.1.
    """

    logits: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(self, num_levels: int, logits: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__(num_levels, loc.shape[:-1], logits=logits, loc=loc, scale=scale)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log probability of the level that x = level / (L - 1) stands for."""
        x = x.unsqueeze(-1)
        half = 0.5 / (self.num_levels - 1)
        above_lowest, below_highest = x > half, x < 1 - half
        upper = (x + half - self.loc) / self.scale
        lower = (x - half - self.loc) / self.scale
        log_mass = torch.where(below_highest, logsigmoid(upper), 0.0)
        log_mass = log_mass + torch.where(above_lowest, logsigmoid(-lower), 0.0)
        log_width = torch.log(-torch.expm1(-2 * half / self.scale))
        log_mass = log_mass + torch.where(above_lowest & below_highest, log_width, 0.0)
        return torch.logsumexp(self.logits.log_softmax(-1) + log_mass, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples x = level / (L - 1): a component, a logistic number, its nearest level."""
        with torch.no_grad():
            which: Tensor = Categorical(logits=self.logits, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            shape = (*which.shape, self.loc.shape[-1])
            loc, scale = (
                parameter.expand(shape).gather(-1, which.unsqueeze(-1)).squeeze(-1)
                for parameter in (self.loc, self.scale)
            )
            # The open interval keeps logit(u) finite.
            u = torch.rand(which.shape, dtype=loc.dtype, device=loc.device).clamp(
                2**-24, 1 - 2**-24
            )
            steps = self.num_levels - 1
            return torch.round((loc + scale * torch.logit(u)) * steps).clamp(0, steps) / steps

    @property
    def mean(self) -> Tensor:
        """E[x] = sum_l P(X >= l) / (L - 1), l = 1 .. L - 1."""
        total, weight, steps = torch.zeros(()), self.logits.softmax(-1), self.num_levels - 1
        for level in range(1, self.num_levels):
            above = torch.sigmoid((self.loc - (level - 0.5) / steps) / self.scale)
            total = total + (weight * above).sum(-1)
        return total / steps
