"""Sums and integrals of p(x | z) over one pixel, and of q(z | x) over two dimensions."""

import math
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.nn.functional import logsigmoid

from vae_pyro.likelihoods import Likelihood, Support
from vae_pyro.likelihoods.distributions import PixelBeta, PixelContinuousBernoulli

_STANDARD_DEVIATIONS = 12.0
_SAMPLES = 4096  # of q, to place the grid
_AT_ONCE = 20_000  # points of a grid


@dataclass(frozen=True)
class Integral:
    """An integral over the values of one pixel, each ``(batch, C, H, W)``.

    Attributes:
        value: 1 for a distribution; includes ``unreachable``.
        unreachable: the mass nearer to 0 or 1 than the smallest number, by formula.
    """

    value: Tensor
    unreachable: Tensor


def over_pixels(likelihood: Likelihood, parameters: Tensor, points: int) -> Integral:
    """The sum or integral over x of p(x | z), for every pixel by itself.

    Pixels are independent given z, so an image's integral is the product.

    Args:
        likelihood: gives parameters their meaning.
        parameters: decoder outputs, ``(batch, P, C, H, W)``; in their precision densities are
            computed, and added up in float64.
        points: of the line over which a density is integrated, odd.
    """
    pixels = likelihood(parameters).base_dist
    if likelihood.support in (Support.BINARY, Support.LEVELS):
        levels = 2 if likelihood.support is Support.BINARY else likelihood.num_levels
        assert levels is not None
        total = sum(
            _density(pixels, torch.full(pixels.batch_shape, level / (levels - 1)), parameters)
            for level in range(levels)
        )
        assert isinstance(total, Tensor)
        return Integral(total, torch.zeros_like(total))
    if likelihood.support is Support.UNIT_INTERVAL:
        return _over_unit_interval(pixels, parameters, points)
    loc, scale = pixels.mean.double(), pixels.stddev.double()
    t = _line(_STANDARD_DEVIATIONS, loc, points)
    values = torch.stack([_density(pixels, loc + scale * at, parameters) for at in t[:, 0]])
    total = (_simpson(t) * values * scale).sum(0)
    return Integral(total, torch.zeros_like(total))


def over_z(q: TorchDistribution, points: int) -> tuple[float, float]:
    """The integral of a q(z | x) of one x over two-dimensional z, by a grid.

    The grid is placed by the mean and covariance of samples; apart from these only log q is used.

    Args:
        q: batch shape ``(1,)``, event shape ``(2,)``.
        points: of each axis, odd.

    Returns:
        the integral, and how much it changes if every second point is left out.
    """
    samples = q.sample((_SAMPLES,))[:, 0]
    factor = torch.linalg.cholesky(samples.double().T.cov())
    axis = _line(_STANDARD_DEVIATIONS, samples[0, 0].double(), points)
    t = torch.cartesian_prod(axis, axis)
    z = samples.double().mean(0) + t @ factor.T
    log_q = [q.log_prob(part) for part in z[:, None].to(samples.dtype).split(_AT_ONCE)]
    density = torch.cat(log_q).double().exp().reshape(points, points)
    cell = (axis[1] - axis[0]) ** 2 * factor.diagonal().prod()
    total = (density.sum() * cell).item()
    return total, abs(total - (density[::2, ::2].sum() * 4 * cell).item())


def log_integral_of_bernoulli_formula(logits: Tensor) -> Tensor:
    """log of the integral over x in (0, 1) of m^x (1 - m)^(1 - x), with m = sigmoid(logits)."""
    norm = -PixelContinuousBernoulli(logits).log_prob(torch.zeros_like(logits))
    return norm + logsigmoid(-logits)


def _over_unit_interval(pixels: TorchDistribution, like: Tensor, points: int) -> Integral:
    """With x = sigmoid(u), u = centre + width sinh(t); x > 1/2 as the mirror image of x < 1/2.

    Close to 1 there are few numbers, close to 0 many.
    """
    smallest = math.log(torch.finfo(like.dtype).tiny)  # of numbers that keep all their digits
    if isinstance(pixels, PixelBeta):
        a, b = pixels.concentration1.double(), pixels.concentration0.double()
        mirrored: TorchDistribution = PixelBeta(pixels.concentration0, pixels.concentration1)
        centre, width = (a / b).log(), (1 / a + 1 / b).sqrt()
        log_norm = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
        tails = sum((c * smallest - c.log() - log_norm).exp() for c in (a, b))
        assert isinstance(tails, Tensor)
    else:
        assert isinstance(pixels, PixelContinuousBernoulli)
        eta = pixels.eta.double()
        mirrored = PixelContinuousBernoulli(-pixels.eta)
        centre, width = eta.sign() * torch.log1p(eta.abs()), torch.ones_like(eta)
        tails = torch.zeros_like(eta)
    lowest = torch.asinh((smallest - centre) / width)
    highest = torch.asinh((-smallest - centre) / width)
    share = _line(1.0, centre, points)
    weight, total = _simpson(share), torch.zeros_like(centre)
    for at, by in zip(share[:, 0], weight[:, 0], strict=True):
        t = (lowest + highest) / 2 + (highest - lowest) / 2 * at
        u = centre + width * t.sinh()
        x = torch.sigmoid(-u.abs())
        density = torch.where(u > 0, _density(mirrored, x, like), _density(pixels, x, like))
        slope = x * (1 - x) * width * t.cosh() * (highest - lowest) / 2
        total += by * density * slope
    return Integral(total + tails, tails)


def _density(pixels: TorchDistribution, x: Tensor, like: Tensor) -> Tensor:
    """p at x in the precision of ``like``, as float64."""
    return pixels.log_prob(x.to(like)).double().exp()


def _line(reach: float, like: Tensor, points: int) -> Tensor:
    """Points from -reach to reach, ``(points, 1, .. 1)``; like float64 numbers."""
    line = torch.linspace(-reach, reach, points, dtype=like.dtype, device=like.device)
    return line.reshape(-1, *[1] * like.dim())


def _simpson(t: Tensor) -> Tensor:
    """Weights of Simpson's rule at equidistant points, in their shape."""
    weights = torch.ones_like(t)
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return weights * (t[1] - t[0]) / 3
