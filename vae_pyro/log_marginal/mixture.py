"""Mixtures of Student t distributions, one for each image, fitted to weighted samples."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_LEAST_FREEDOM = 5.0  # tails that are heavier than a posterior's keep the weights bounded
_RIDGE = 1e-3  # of the diagonal, added to a covariance so that it can be inverted
_TINY = 1e-12
_NO_DENSITY = -1e300  # nats: finite, so that a power of 0 leaves a number
_MUCH = 0.2  # of all weight, for one sample
_LIGHTEST = 0.02  # share that keeps a component alive while others fit better


@dataclass(frozen=True)
class StudentMixture:
    """sum_c v_c t(z | m_c, S_c) for each of B images, S_c the scale matrix.

    Args:
        loc: m, ``(batch, C, D)``.
        scale: S, ``(batch, C, D, D)``.
        share: v, ``(batch, C)``; sums to 1.
    """

    loc: Float[Tensor, "batch components dims"]
    scale: Float[Tensor, "batch components dims dims"]
    share: Float[Tensor, "batch components"]

    @property
    def freedom(self) -> float:
        """Degrees of freedom of every component: 5, or twice the dimensions where these are more.

        In many dimensions fewer would put most samples far from where a normal has its mass.
        """
        return max(_LEAST_FREEDOM, 2.0 * self.loc.shape[-1])

    @cached_property
    def factor(self) -> Float[Tensor, "batch components dims dims"]:
        """The Cholesky factors of S, ``(batch, C, D, D)``."""
        factor: Tensor = torch.linalg.cholesky(self.scale)
        return factor

    def sample(
        self, num_samples: int, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "batch samples dims"]:
        """Independent samples, ``(batch, num_samples, D)``.

        Args:
            num_samples: for each image.
            dtype: of the normal numbers that they are made from; that of ``loc`` by default.
        """
        batch, _, dims = self.loc.shape
        chosen = self.share.multinomial(num_samples, replacement=True)
        normal = torch.randn(
            batch, num_samples, dims, dtype=dtype or self.loc.dtype, device=self.loc.device
        ).to(self.loc.dtype)
        half = torch.full_like(normal[..., 0], self.freedom / 2)
        shrink = (torch._standard_gamma(half) / half).sqrt()[..., None]
        noise = torch.zeros_like(normal)
        for c, factor in enumerate(self.factor.unbind(1)):
            noise += torch.where((chosen == c)[..., None], normal @ factor.mT, 0.0)
        z: Tensor = self.loc.gather(1, chosen[..., None].expand(-1, -1, dims)) + noise / shrink
        return z

    def distances(
        self, z: Float[Tensor, "batch samples dims"]
    ) -> Float[Tensor, "batch components samples"]:
        """(z - m_c)' S_c^-1 (z - m_c), ``(batch, C, samples)``."""
        batch, components, dims = self.loc.shape
        eye = torch.eye(dims, dtype=z.dtype, device=z.device).expand_as(self.factor)
        inverse = torch.linalg.solve_triangular(self.factor, eye, upper=False)
        # One product for all components, because what takes the time is to go through the memory.
        centre = (inverse @ self.loc[..., None]).reshape(batch, 1, components * dims)
        whitened = torch.baddbmm(
            centre, z, inverse.reshape(batch, components * dims, dims).mT, beta=-1
        )
        return whitened.square_().reshape(batch, -1, components, dims).sum(-1).mT.contiguous()

    def log_parts(
        self, distances: Float[Tensor, "batch components samples"]
    ) -> Float[Tensor, "batch components samples"]:
        """log (v_c t_c), nats, at points of these ``distances``."""
        dims, nu = self.loc.shape[-1], self.freedom
        constant = math.lgamma((nu + dims) / 2) - math.lgamma(nu / 2)
        constant -= dims / 2 * math.log(nu * math.pi)
        volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_t = constant - volume[..., None] - (nu + dims) / 2 * torch.log1p(distances / nu)
        log_parts: Tensor = log_t + self.share.log()[..., None]
        return log_parts

    def log_prob(self, z: Float[Tensor, "batch samples dims"]) -> Float[Tensor, "batch samples"]:
        """log density at z, nats, ``(batch, samples)``."""
        return self.log_parts(self.distances(z)).logsumexp(1)

    def widened(self, factor: float) -> "StudentMixture":
        """With every scale matrix multiplied by ``factor``."""
        return StudentMixture(self.loc, factor * self.scale, self.share)

    def where(self, these: Bool[Tensor, " batch"], other: "StudentMixture") -> "StudentMixture":
        """This mixture for some of the images, the other for the rest."""
        return StudentMixture(
            torch.where(these[:, None, None], self.loc, other.loc),
            torch.where(these[:, None, None, None], self.scale, other.scale),
            torch.where(these[:, None], self.share, other.share),
        )

    def reseeded(
        self, z: Float[Tensor, "batch samples dims"], weights: Float[Tensor, "batch samples"]
    ) -> "StudentMixture":
        """With the lightest component moved to a sample that carries much of all weight.

        Such a sample lies where the mixture has too little density, perhaps in another mode.

        Args:
            z: samples, ``(batch, samples, D)``.
            weights: theirs, not tempered, ``(batch, samples)``; they sum to 1.
        """
        if self.loc.shape[1] == 1:
            return self
        heaviest, index = weights.max(1)
        needed = (heaviest > _MUCH)[:, None]
        lightest = torch.nn.functional.one_hot(self.share.argmin(1), self.share.shape[1]).bool()
        moved = (needed & lightest)[..., None]
        rows = torch.arange(len(z), device=z.device)
        there = z[rows, index][:, None]
        width = self.scale[rows, self.share.argmax(1)][:, None]
        share = torch.where(moved[..., 0], _MUCH, self.share)
        return StudentMixture(
            torch.where(moved, there, self.loc),
            torch.where(moved[..., None], width, self.scale),
            share / share.sum(1, keepdim=True),
        )

    def fitted(
        self,
        z: Float[Tensor, "batch samples dims"],
        weights: Float[Tensor, "batch samples"],
        towards: Float[Tensor, "batch components dims dims"],
    ) -> "StudentMixture":
        """After one step of expectation maximisation on weighted samples.

        Args:
            z: samples, ``(batch, samples, D)``.
            weights: theirs, non-negative, ``(batch, samples)``.
            towards: scale matrices that those of the components are drawn towards, the more the
                fewer samples carry a component's weight; ``(batch, C, D, D)``.

        Source: Cappe et al. (2008), section 4.
        """
        dims, nu = z.shape[-1], self.freedom
        distances = self.distances(z)
        belongs = self.log_parts(distances).softmax(1) * weights[:, None]
        mass = belongs.sum(-1)
        pulled = belongs * (nu + dims) / (nu + distances)
        loc = pulled @ z / pulled.sum(-1).clamp(min=_TINY)[..., None]
        scatter = _scatter(z, loc, pulled) / mass.clamp(min=_TINY)[..., None, None]
        effective = mass.square() / belongs.square().sum(-1).clamp(min=_TINY**2)
        trust = (effective / (effective + 6 * (dims + 2)))[..., None, None]
        scale = trust * scatter + (1 - trust) * towards
        alive = mass > _TINY**0.5
        share = mass / mass.sum(-1, keepdim=True) + _LIGHTEST * (self.share > 0)
        return StudentMixture(
            torch.where(alive[..., None], loc, self.loc),
            torch.where(alive[..., None, None], with_ridge(scale), self.scale),
            share / share.sum(-1, keepdim=True),
        )


def _scatter(z: Tensor, loc: Tensor, weights: Tensor) -> Tensor:
    """sum_s w_cs (z_s - m_c) (z_s - m_c)', ``(batch, C, D, D)``, m_c the weighted means.

    About the first mean, which is near, and from there moved to each: one product for all.
    """
    batch, components, dims = loc.shape
    near = z - loc[:, :1]
    weighted = (weights.mT[..., None] * near[:, :, None]).reshape(batch, -1, components * dims)
    about_first = (weighted.mT @ near).reshape(batch, components, dims, dims)
    away = loc - loc[:, :1]
    moved = away[..., :, None] * away[..., None, :]
    return about_first - weights.sum(-1)[..., None, None] * moved


def with_ridge(scale: Float[Tensor, "*batch dims dims"]) -> Float[Tensor, "*batch dims dims"]:
    """Symmetric, and with a little more on the diagonal, so that it can be factorised."""
    scale = (scale + scale.mT) / 2
    diagonal = scale.diagonal(dim1=-2, dim2=-1)
    return scale + torch.diag_embed(_RIDGE * diagonal + _TINY)


def spread_out(
    z: Float[Tensor, "batch samples dims"],
    weights: Float[Tensor, "batch samples"],
    num_components: int,
) -> StudentMixture:
    """A mixture to start from: the heaviest sample, and others far apart from each other.

    Args:
        z: samples, ``(batch, samples, D)``.
        weights: theirs, ``(batch, samples)``; they sum to 1.
        num_components: C.

    Source: Arthur and Vassilvitskii (2007), k-means++, in the metric of the samples' covariance.
    """
    dims = z.shape[-1]
    mean = weights[:, None] @ z
    scale = with_ridge(((z - mean) * weights[..., None]).mT @ (z - mean))
    whitened = torch.linalg.solve_triangular(torch.linalg.cholesky(scale), z.mT, upper=False).mT
    chosen = [weights.argmax(1, keepdim=True)]
    nearest = torch.full_like(weights, math.inf)
    for _ in range(num_components - 1):
        centre = whitened.gather(1, chosen[-1][..., None].expand(-1, -1, dims))
        nearest = torch.minimum(nearest, (whitened - centre).square().sum(-1))
        chosen.append((weights * nearest + weights * _TINY + _TINY**2).multinomial(1))
    index = torch.cat(chosen, 1)
    loc = z.gather(1, index[..., None].expand(-1, -1, dims))
    smaller = (scale / num_components ** (2 / dims))[:, None]
    return StudentMixture(
        loc,
        smaller.expand(-1, num_components, -1, -1).contiguous(),
        torch.full_like(loc[..., 0], 1 / num_components),
    )


def tempered(
    log_w: Float[Tensor, "batch samples"], effective_size: float
) -> Float[Tensor, "batch samples"]:
    """w^b / sum w^b, with the largest b <= 1 that leaves this effective sample size.

    With raw weights, a proposal far from the posterior would be fitted to a few lucky samples.

    Args:
        log_w: log weights, ``(batch, samples)``.
        effective_size: at least 1, below the number of samples.

    Source: Koblents and Miguez (2015), with a power in the place of a cut.
    """
    log_w = log_w.clamp(min=_NO_DENSITY)
    low, high = torch.zeros_like(log_w[:, :1]), torch.ones_like(log_w[:, :1])
    power = high
    for _ in range(20):
        w = (power * log_w).softmax(1)
        enough = 1 / w.square().sum(1, keepdim=True) >= effective_size
        low, high = torch.where(enough, power, low), torch.where(enough, high, power)
        power = (low + high) / 2
        if enough.all() and bool((low == 1).all()):
            break
    return (low * log_w).softmax(1)
