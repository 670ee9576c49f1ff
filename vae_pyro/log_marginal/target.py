"""Where the posterior of an image lies: places that are tried, gradients, and weighed samples."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_pyro.compilation import Outputs, compiled, is_compiling
from vae_pyro.log_marginal.chunking import rows_per_chunk
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.hamiltonian import AnnealingPath
from vae_pyro.log_marginal.match import match
from vae_pyro.log_marginal.mixture import StudentMixture, spread_out, tempered, with_ridge
from vae_pyro.log_marginal.program import Images, ModelAndGuide

_GUIDE_DRAWS = 256  # to find mean and width of the guide; they are not decoded
_GOOD_PLACES = 5  # effective number of places among which starts are chosen
_SAME_PLACE = 4.0  # squared distance per dimension, in a component's own scale
_LEAST_GUIDE, _MOST_GUIDE = 0.05, 0.5  # share of the samples
_LEAST_EVIDENCE = -4.0  # nats below the best mode, at which a mode's share no longer falls


@dataclass(frozen=True)
class Points:
    """Samples and what is known of them, each ``(batch, samples)`` but z ``(batch, samples, D)``.

    Attributes:
        z: float64.
        log_guide: log q(z | x).
        log_prior: log p(z).
        log_joint: log p(x, z).
    """

    z: Tensor
    log_guide: Tensor
    log_prior: Tensor
    log_joint: Tensor

    def joined(self, other: "Points") -> "Points":
        """The samples of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Points(*(torch.cat(pair, 1) for pair in pairs))


@dataclass(frozen=True)
class AdaptedProposal:
    """r(z): prior, guide and the fitted mixture.

    Attributes:
        mixture: for each image.
        prior_share: a.
        guide_share: b, ``(batch,)``.
    """

    mixture: StudentMixture
    prior_share: float
    guide_share: Tensor

    def log_prob(self, points: Points) -> Tensor:
        """log r(z), ``(batch, samples)``."""
        parts = torch.stack(
            [
                points.log_prior + math.log(self.prior_share),
                points.log_guide + self.guide_share.log()[:, None],
                self.mixture.log_prob(points.z)
                + (1 - self.prior_share - self.guide_share).log()[:, None],
            ]
        )
        return parts.logsumexp(0)

    def better_guide_share(self, points: Points, weights: Tensor) -> Tensor:
        """One step of expectation maximisation for b, ``(batch,)``."""
        from_guide = points.log_guide + self.guide_share.log()[:, None] - self.log_prob(points)
        share = (weights * from_guide.exp()).sum(1)
        return share.clamp(_LEAST_GUIDE, _MOST_GUIDE)


class Target:
    """p(x, z) of a few images, and the prior and the guide to draw from.

    Args:
        vae: the pair.
        x: the images.
        times: how many such batches there are, which decides on compiling.
    """

    def __init__(self, vae: ModelAndGuide, x: Images, times: int) -> None:
        self.x = x
        self._dtype = pair_of(vae).draw_start(x[:1], "prior", 1).dtype
        self._vae, self._times = vae, times
        self._pair = pair_of(vae)
        self._at_once = max(1, rows_per_chunk(vae, x) // len(x))

    def draw(self, proposal: AdaptedProposal, num_samples: int) -> Points:
        """Samples of the proposal, decoded."""
        fitted = proposal.mixture.sample(num_samples)
        prior, guide = (
            self._pair.draw_start(self.x, start, num_samples).double().transpose(0, 1)
            for start in ("prior", "guide")
        )
        u = torch.rand_like(fitted[..., :1])
        b = proposal.prior_share + proposal.guide_share[:, None, None]
        z = torch.where(u < proposal.prior_share, prior, torch.where(u < b, guide, fitted))
        return self._decoded(z.to(self._dtype))

    def starts(self, places: Tensor, number: int) -> StudentMixture:
        """Where to look for modes: the guide, and the best places, far from each other.

        Args:
            places: that are tried, ``(M, D)``.
            number: of starts, the guide's counted.

        Returns:
            as many components, each of the guide's width.
        """
        guide = self._pair.draw_start(self.x, "guide", _GUIDE_DRAWS)
        loc, scale = guide.double().mean(0)[:, None], torch.diag_embed(guide.double().var(0))
        if number > 1:
            parts = places.split(self._at_once)
            log_joint = torch.cat([self._pair.log_joint_at(self.x, part) for part in parts])
            weights = tempered(log_joint.T.nan_to_num(-math.inf), _GOOD_PLACES)
            each = places.double().expand(len(self.x), -1, -1)
            loc = torch.cat([loc, spread_out(each, weights, number - 1).loc], 1)
        share = torch.full_like(loc[..., 0], 1 / number)
        scales = with_ridge(scale)[:, None].expand(-1, number, -1, -1)
        return StudentMixture(loc, scales.contiguous(), share)

    def matched(self, starts: StudentMixture, rounds: int, batch: int) -> StudentMixture:
        """Every component moved to a mode by gradients; of those that meet, the best is kept.

        Args:
            starts: from ``starts``.
            rounds: of gradients.
            batch: gradients a round, for each image and start.
        """
        images, number, dims = starts.loc.shape
        path = AnnealingPath(self._vae, self.x, "prior", self._times * rounds)
        loc, covariance = starts.loc.flatten(0, 1), starts.scale.flatten(0, 1)
        elbo = torch.full_like(loc[:, 0], -math.inf)
        for round_ in range(1, rounds + 1):
            factor = torch.linalg.cholesky(covariance)
            noise = torch.randn(len(loc), batch, dims, dtype=loc.dtype, device=loc.device)
            z = (loc[:, None] + noise @ factor.mT).to(self._dtype)
            rows = z.reshape(images, number * batch, dims).transpose(0, 1).contiguous()
            point = path.at(rows)
            gradient = point.grad_joint.transpose(0, 1).reshape(z.shape).double()
            log_joint = point.log_joint.T.reshape(len(z), batch).double()
            # Up to a constant, the evidence lower bound of this normal.
            elbo = log_joint.mean(1) + factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            # A step from where the decoder overflows is not made.
            usable = elbo.isfinite() & gradient.isfinite().flatten(1).all(1)
            finite = torch.where(usable[:, None, None], gradient, 0.0)
            new = match(loc, covariance, z.double(), finite, batch * dims / round_)
            loc = torch.where(usable[:, None], new[0], loc)
            covariance = torch.where(usable[:, None, None], with_ridge(new[1]), covariance)
        elbo = elbo.nan_to_num(-math.inf).reshape(images, number)
        found = StudentMixture(
            loc.reshape(images, number, dims),
            covariance.reshape(images, number, dims, dims),
            torch.ones_like(elbo),
        )
        return _distinct(found, elbo)

    def _decoded(self, z: Tensor) -> Points:
        def evaluate(vae: ModelAndGuide, x: Tensor, z: Tensor) -> Outputs:
            log_guide, log_likelihood, log_prior = pair_of(vae).log_densities(x, z, "guide")
            return log_guide, log_prior, log_likelihood + log_prior

        rows = z.transpose(0, 1)
        at_once = min(self._at_once, len(rows))
        calls = self._times * math.ceil(len(rows) / at_once)
        parts = []
        for start in range(0, len(rows), at_once):
            # A graph is of one shape: the last part repeats the last sample.
            stop = start + at_once if is_compiling(calls) else min(start + at_once, len(rows))
            index = torch.arange(start, stop, device=z.device).clamp(max=len(rows) - 1)
            inputs = [self.x, rows[index]]
            run = compiled(
                evaluate, self._pair.programs, inputs, key="log p(x, z) and log q(z)", calls=calls
            )
            parts.append(run(*inputs))
        columns = (torch.cat(column)[: len(rows)].T.double() for column in zip(*parts, strict=True))
        log_guide, log_prior, log_joint = columns
        # Where the decoder overflows there is no density.
        return Points(z.double(), log_guide, log_prior, log_joint.nan_to_num(-math.inf))


def _distinct(found: StudentMixture, elbo: Tensor) -> StudentMixture:
    """Shares by the components' evidence; none for one that lies within a better one."""
    order = elbo.argsort(1, descending=True)
    dims = found.loc.shape[-1]
    loc = found.loc.gather(1, order[..., None].expand_as(found.loc))
    scale = found.scale.gather(1, order[..., None, None].expand_as(found.scale))
    sorted_ = StudentMixture(loc, scale, found.share)
    within = sorted_.distances(loc) < _SAME_PLACE * dims  # (image, of the component, this mean)
    kept = ~within.triu(1).any(1)
    kept[:, 0] = True
    log_share = elbo.gather(1, order)
    best = log_share[:, :1].nan_to_num(0.0, 0.0, 0.0)
    share = (log_share - best).clamp(_LEAST_EVIDENCE, 0.0).exp() * kept
    return StudentMixture(loc, scale, share / share.sum(1, keepdim=True))
