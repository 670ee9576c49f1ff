"""The integral over z by a grid, where z has so few dimensions that a grid can be afforded."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vae_pyro.compilation import Outputs, accelerated, compiled, is_compiling
from vae_pyro.errors import EstimatorError
from vae_pyro.log_marginal.chunking import rows_per_chunk
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate, concatenate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress
from vae_pyro.log_marginal.program import Images, ModelAndGuide, require_vae
from vae_pyro.log_marginal.weights import log_joint
from vae_pyro.vae import VAE

MAX_DIM = 3
# Where posteriors are looked for: the prior leaves 1e-15 outside.
_HALF_WIDTH = 8.0
_SEARCH_POINTS = {1: 1025, 2: 129, 3: 49}  # per axis
_FIRST_POINTS = {1: 257, 2: 33, 3: 17}
_LAST_POINTS = {1: 4097, 2: 257, 3: 65}
# Nats below the peak at which the integrand is taken to be nothing: e^-25 of its height.
_NEGLIGIBLE = 25.0
_CUT_OFF = 1e-9  # nats: what such heights add up to outside the box
_IMAGES_AT_ONCE = {1: 100, 2: 100, 3: 25}
# Parts that a grid is split into along each axis, to compare the parts with the whole. A kink can
# leave two parts equal and both wrong; among four that did not happen.
_PARTS = {1: 4, 2: 2, 3: 2}
# With kinks in two dimensions, 5 of 350 errors exceeded the largest change, by up to 2.04 times.
_SAFETY = 2.0
_MAX_MOVES = 30  # of the box around the posterior
_TYPICAL_GRIDS = 20  # of the first size, per image: to see beforehand whether compiling pays


@dataclass(frozen=True)
class Quadrature(Estimator):
    """log of the integral of p(x | z) p(z) dz by the trapezoidal rule, for up to 3 dimensions.

    A coarse grid over the prior, and the guide's mean as one more point, find where p(x, z) is more
    than e^-25 of its highest value. Grids over the box around that place move its sides in and out
    until it holds just that, and one takes the integral. The guide's samples are not used, so that
    the guide can be compared with the result.

    For an integrand that is smooth and vanishes at the border, the rule's error falls exponentially
    in the number of points. A ReLU decoder has kinks, and there the error falls with the square of
    the step, and changes its sign with the place of a kink between two points. To estimate the
    error, each axis is split into every second point and the points between them, or into four
    such parts where z has one dimension. Each combination of parts is a coarser grid of its own.
    The grid is made twice as fine until each of these coarser grids gives log p(x) within
    ``tolerance`` of the whole. One coarser grid would not do: by chance it can agree with the whole
    where both are wrong.

    Limit: a second mode is not found where it is so narrow that neither a point of the coarse grid
    nor the guide's mean comes within 25 nats of the highest value.

    ``std_error`` is twice the largest of these differences, plus what is cut off and the rounding
    of the model's precision. It is a bound rather than a typical error: in tests on steep ReLU
    decoders the error was within it for more than 99% of images, and typically a twentieth of it.
    It exceeds twice ``tolerance`` where the finest grid does not suffice, and is infinite where no
    box could be found.

    >>> import torch
    >>> from vae_pyro.log_marginal import Quadrature
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> Quadrature()(vae, x).bound.name
    'NUMERIC'

    Args:
        tolerance: by how many nats a coarser grid may differ.

    Raises:
        ValueError: where ``tolerance`` is not positive.

    Source: Trefethen and Weideman (2014), section 5.
    """

    tolerance: float = 1e-3
    budget_for_all: ClassVar[float] = 4e12  # about a minute on two cores

    def __post_init__(self) -> None:
        if not self.tolerance > 0:
            raise ValueError(f"tolerance: must be positive, got {self.tolerance}")

    def check(self, vae: ModelAndGuide) -> None:
        vae = require_vae(vae, "quadrature")
        if vae.model.latent_dim > MAX_DIM:
            raise EstimatorError(
                f"quadrature needs a latent_dim of at most {MAX_DIM}, and this model has "
                f"{vae.model.latent_dim}: a grid would need more points than can be computed. Use "
                "AIS, or importance sampling with more samples"
            )

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        vae = require_vae(vae, "quadrature")
        self.check(vae)
        pair_of(vae).check(x)
        parts: list[Estimate] = []
        done = 0
        with torch.no_grad(), accelerated(x.device):
            at_once = min(_IMAGES_AT_ONCE[vae.model.latent_dim], rows_per_chunk(vae, x))
            for images in x.split(at_once):
                parts.append(self._integrate(vae, images))
                done += len(images)
                if on_progress is not None:
                    worst = parts[-1].std_error.max().item()
                    on_progress(done / len(x), f"error at most {worst:.1e} nats")
        return concatenate(parts)

    def _integrate(self, vae: VAE, x: Tensor) -> Estimate:
        lower, upper, found, evaluations = _find_box(vae, x)
        dims, points = vae.model.latent_dim, _FIRST_POINTS[vae.model.latent_dim]
        value, error = torch.empty(2, len(x), dtype=torch.float64)
        left = torch.arange(len(x))
        while len(left):
            grid = _Grid(lower[left], upper[left], points)
            log_f = _evaluate(vae, x, grid, left)
            evaluations[left] += points**dims
            value[left] = grid.log_integral(log_f)
            change = grid.largest_change(log_f)
            rounding = torch.finfo(x.dtype).eps * value[left].abs()
            error[left] = _SAFETY * change + _CUT_OFF + rounding
            left = left[change > self.tolerance] if points < _LAST_POINTS[dims] else left[:0]
            points = 2 * points - 1
        error = torch.where(found, error, torch.inf)
        return Estimate(value, error, Bound.NUMERIC, evaluations=evaluations.mean().item())


def _find_box(vae: VAE, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Corners ``(N, D)`` of boxes that hold what is not negligible, and little else.

    Returns:
        lower and upper corners; whether the box was found; decoder evaluations, each ``(N,)``.
    """
    dims = vae.model.latent_dim
    corner = torch.full((1, dims), _HALF_WIDTH, dtype=torch.float64)
    search = _Grid(-corner, corner, _SEARCH_POINTS[dims])
    log_f = _search(vae, x, search)
    # A narrow peak between the nodes of the coarse grid may lie at the guide's mean.
    mean = vae.guide.posterior_mean(x)
    log_likelihood, log_prior = log_joint(vae, x, mean)
    log_mean = (log_likelihood.double() + log_prior.double()).cpu()
    lower, upper, _ = search.support(log_f, log_mean)
    known = (log_mean > log_f.max(0).values - _NEGLIGIBLE)[:, None]
    at_mean = mean.double().cpu()
    lower = torch.where(known, torch.minimum(lower, at_mean - search.step), lower)
    upper = torch.where(known, torch.maximum(upper, at_mean + search.step), upper)

    points = _FIRST_POINTS[dims]
    evaluations = torch.full((len(x),), search.points**dims / len(x) + 1).double()
    moving = torch.arange(len(x))
    for _ in range(_MAX_MOVES):
        grid = _Grid(lower[moving], upper[moving], points)
        evaluations[moving] += points**dims
        new_lower, new_upper, cut = grid.support(_evaluate(vae, x, grid, moving))
        shrunk = (new_upper - new_lower).prod(-1) < (grid.upper - grid.lower).prod(-1) / 2
        lower[moving], upper[moving] = new_lower, new_upper
        moving = moving[cut | shrunk]
        if not len(moving):
            break
    found = torch.ones(len(x), dtype=torch.bool)
    found[moving] = False
    return lower, upper, found, evaluations


@dataclass(frozen=True)
class _Grid:
    """``points`` per axis from ``lower`` to ``upper``, both ``(N, D)``: one box per image."""

    lower: Tensor
    upper: Tensor
    points: int

    @property
    def step(self) -> Tensor:
        """``(N, D)``."""
        return (self.upper - self.lower) / (self.points - 1)

    def nodes(self, index: Tensor, box: Tensor) -> Tensor:
        """Some of the ``points ** D`` nodes, in row-major order, of some of the boxes.

        Args:
            index: which node, ``(...)``.
            box: of which box, likewise.

        Returns:
            ``(..., D)``.
        """
        dims = self.lower.shape[1]
        digits = [index // self.points**axis % self.points for axis in reversed(range(dims))]
        return self.lower[box] + torch.stack(digits, -1) * self.step[box]

    def log_integral(self, log_f: Tensor, start: tuple[int, ...] = (), every: int = 1) -> Tensor:
        """log of the sum over the nodes times a cell's volume, ``(N,)``.

        Args:
            log_f: at the nodes, ``(points ** D, N)``.
            start: the first point of each axis to use; without it, the first of all.
            every: use every second (third, ..) point of each axis only.
        """
        start = start or (0,) * self.lower.shape[1]
        axes = self._by_axis(log_f)[tuple(slice(first, None, every) for first in start)]
        return axes.flatten(0, -2).logsumexp(0) + (every * self.step).log().sum(-1)

    def largest_change(self, log_f: Tensor) -> Tensor:
        """How far the coarser grids that make up this one are from it, at most, in nats, ``(N,)``.

        Args:
            log_f: at the nodes, ``(points ** D, N)``.
        """
        dims = self.lower.shape[1]
        starts = itertools.product(range(_PARTS[dims]), repeat=dims)
        parts = torch.stack([self.log_integral(log_f, s, _PARTS[dims]) for s in starts])
        return (parts - self.log_integral(log_f)).abs().amax(0)

    def support(
        self, log_f: Tensor, highest: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Corners of the box that holds what is not negligible, a step wider on every side.

        Args:
            log_f: at the nodes, ``(points ** D, N)``.
            highest: of log f elsewhere, ``(N,)``.

        Returns:
            lower and upper corners, ``(N, D)``; and whether this grid cut something off, in which
            case the box is twice as wide on that side.
        """
        dims = self.lower.shape[1]
        peak = log_f.max(0).values
        peak = peak if highest is None else torch.maximum(peak, highest)
        kept = self._by_axis(log_f > torch.minimum(peak - _NEGLIGIBLE, log_f.max(0).values - 1e-9))
        along = [
            kept.movedim(axis, 0).flatten(1, -2).any(1) if dims > 1 else kept
            for axis in range(dims)
        ]  # each (points, N)
        first = torch.stack([any_kept.byte().argmax(0) for any_kept in along], -1)
        last = torch.stack([any_kept.flip(0).byte().argmax(0) for any_kept in along], -1)
        width = self.upper - self.lower
        lower = torch.where(first == 0, self.lower - width, self.lower + (first - 1) * self.step)
        upper = torch.where(last == 0, self.upper + width, self.upper - (last - 1) * self.step)
        return lower, upper, ((first == 0) | (last == 0)).any(-1)

    def _by_axis(self, log_f: Tensor) -> Tensor:
        return log_f.reshape(*[self.points] * self.lower.shape[1], -1)


def _search(vae: VAE, x: Tensor, grid: _Grid) -> Tensor:
    """log p(x_i, z) at the nodes of one box for all images, each decoded once.

    Returns:
        float64, ``(points ** D, N)``.
    """

    def evaluate(vae: VAE, x: Tensor, z: Tensor) -> Outputs:
        log_likelihood, log_prior = log_joint(vae, x, z)
        return (log_likelihood.double() + log_prior.double(),)

    total = grid.points ** grid.lower.shape[1]
    at_once = max(1, rows_per_chunk(vae, x) // len(x))
    calls = math.ceil(total / at_once)
    log_f = torch.empty(total, len(x), dtype=torch.float64)
    for start in range(0, total, at_once):
        # A graph is of one shape: the last part repeats the last node.
        stop = start + at_once if is_compiling(calls) else min(start + at_once, total)
        index = torch.arange(start, stop).clamp(max=total - 1)
        z = grid.nodes(index, torch.zeros_like(index))[:, None].to(x)
        run = compiled(evaluate, vae, [x, z], key="search", calls=calls)
        log_f[start:stop] = run(x, z)[0][: total - start]
    return log_f


def _evaluate(vae: VAE, x: Tensor, grid: _Grid, image: Tensor) -> Tensor:
    """log p(x_i, z) at every node of the box of every selected image.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        grid: one box for each of the n selected images.
        image: which they are, ``(n,)``.

    Returns:
        float64, ``(points ** D, n)``.
    """

    def evaluate(vae: VAE, x: Tensor, z: Tensor, image: Tensor) -> Outputs:
        log_likelihood, log_prior = log_joint(vae, x.index_select(0, image), z)
        return (log_likelihood.double() + log_prior.double(),)

    dims = grid.lower.shape[1]
    total = grid.points**dims * len(image)
    rows = rows_per_chunk(vae, x)
    calls = math.ceil(_TYPICAL_GRIDS * len(x) * _FIRST_POINTS[dims] ** dims / rows)
    log_f = torch.empty(total, dtype=torch.float64)
    for start in range(0, total, rows):
        # A graph is of one shape: the last part repeats the last pair.
        stop = start + rows if is_compiling(calls) else min(start + rows, total)
        pair = torch.arange(start, stop).clamp(max=total - 1)
        box = pair % len(image)
        z = grid.nodes(pair // len(image), box).to(x)
        inputs = [x, z, image[box].to(x.device)]
        run = compiled(evaluate, vae, inputs, key="nodes", calls=calls)
        log_f[start:stop] = run(*inputs)[0][: total - start]
    return log_f.reshape(-1, len(image))
