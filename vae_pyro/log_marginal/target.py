"""Where the posterior of an image lies: places that are tried, gradients, and weighed samples."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_pyro.compilation import Outputs, compiled, is_compiling
from vae_pyro.log_marginal.chunking import rows_per_chunk
from vae_pyro.log_marginal.climb import Slope, climb
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.hamiltonian import AnnealingPath
from vae_pyro.log_marginal.match import match
from vae_pyro.log_marginal.mixture import StudentMixture, spread_out, tempered, with_ridge
from vae_pyro.log_marginal.program import Images, ModelAndGuide

_GUIDE_DRAWS = 256  # to find mean and width of the guide; they are not decoded
_GOOD_PLACES = 5  # effective number of places among which starts are chosen
_SAME_PLACE = 4.0  # squared distance, in standard deviations of a mode
_LEAST_GUIDE, _MOST_GUIDE = 0.05, 0.5  # share of the samples
_LEAST_EVIDENCE = -4.0  # nats below the highest mode, at which a share no longer falls


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

    def better_guide_share(self, points: Points, log_prob: Tensor, weights: Tensor) -> Tensor:
        """One step of expectation maximisation for b, ``(batch,)``; ``log_prob`` of the points."""
        from_guide = points.log_guide + self.guide_share.log()[:, None] - log_prob
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
        fitted = proposal.mixture.sample(num_samples, self._dtype)
        prior, guide = (
            self._pair.draw_start(self.x, start, num_samples).double().transpose(0, 1)
            for start in ("prior", "guide")
        )
        u = torch.rand_like(fitted[..., :1])
        b = proposal.prior_share + proposal.guide_share[:, None, None]
        z = torch.where(u < proposal.prior_share, prior, torch.where(u < b, guide, fitted))
        return self._decoded(z.to(self._dtype))

    def matched(self, rounds: int, batch: int) -> StudentMixture:
        """One component for each image: the guide's normal, moved to a mode by gradients.

        Args:
            rounds: of gradients.
            batch: gradients a round, for each image.
        """
        guide = self._pair.draw_start(self.x, "guide", _GUIDE_DRAWS).double()
        loc, covariance = guide.mean(0), with_ridge(torch.diag_embed(guide.var(0)))
        images, dims = loc.shape
        slope = self._slope(rounds)
        for round_ in range(1, rounds + 1):
            factor = torch.linalg.cholesky(covariance)
            noise = torch.randn(images, batch, dims, dtype=loc.dtype, device=loc.device)
            z = (loc[:, None] + noise @ factor.mT).to(self._dtype).double()
            log_joint, gradient = slope(z)
            # A step from where the decoder overflows is not made.
            usable = log_joint.isfinite().all(1)
            new = match(loc, covariance, z, gradient, batch * dims / round_)
            loc = torch.where(usable[:, None], new[0], loc)
            covariance = torch.where(usable[:, None, None], with_ridge(new[1]), covariance)
        share = torch.ones_like(loc[:, :1])
        return StudentMixture(loc[:, None], covariance[:, None].contiguous(), share)

    def modes(
        self, found: StudentMixture, places: Tensor, number: int, steps: int, kept: int
    ) -> StudentMixture:
        """The modes that are reached uphill from the one that is known, and from good places.

        Args:
            found: one component for each image, near a mode.
            places: z's that are tried, ``(M, D)``; the first half is of one kind, and the rest of
                another, and two thirds of the starts are of the first kind.
            number: of the places to start from.
            steps: gradients for each start.
            kept: how many modes are returned for each image, the highest first. Where there are
                fewer, the others have no share.
        """
        parts = places.split(self._at_once)
        log_joint = torch.cat([self._pair.log_joint_at(self.x, part) for part in parts])
        kinds = zip(
            log_joint.T.nan_to_num(-math.inf).tensor_split([len(places) // 2], 1),
            places.double().tensor_split([len(places) // 2]),
            (number - number // 3, number // 3),
            strict=True,
        )
        starts = [found.loc]
        for log_joint, kind, some in kinds:
            if some:
                each = kind.expand(len(self.x), -1, -1)
                starts.append(spread_out(each, tempered(log_joint, _GOOD_PLACES), some).loc)
        loc, height = climb(self._slope(steps), torch.cat(starts, 1), found.scale[:, 0], steps)
        return _distinct(loc, height.nan_to_num(-math.inf), found.scale, kept)

    def _slope(self, times: int) -> Slope:
        """log p(x, z) and its gradient in z; this batch of images evaluates it so many times."""
        path = AnnealingPath(self._vae, self.x, "prior", self._times * times)

        def slope(z: Tensor) -> tuple[Tensor, Tensor]:
            point = path.at(z.to(self._dtype).transpose(0, 1).contiguous())
            log_joint = point.log_joint.T.double()
            gradient = point.grad_joint.transpose(0, 1).double()
            usable = log_joint.isfinite() & gradient.isfinite().all(-1)
            return (
                torch.where(usable, log_joint, -math.inf),
                torch.where(usable[..., None], gradient, 0.0),
            )

        return slope

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


def _distinct(loc: Tensor, height: Tensor, scale: Tensor, kept: int) -> StudentMixture:
    """The highest points, each far from those before it; shares by height, all of one scale."""
    batch, number, dims = loc.shape
    each = StudentMixture(loc, scale.expand(-1, number, -1, -1), torch.ones_like(height))
    near = each.distances(loc) < _SAME_PLACE + dims / 4  # (batch, of this point, that point)
    rows = torch.arange(batch, device=loc.device)
    left = height
    chosen, heights = [], []
    for _ in range(kept):
        best = left.argmax(1)
        chosen.append(best)
        heights.append(left[rows, best])
        left = left.masked_fill(near[rows, best], -math.inf)
    index, relative = torch.stack(chosen, 1), torch.stack(heights, 1) - heights[0][:, None]
    # Nothing is left of a mode that is a repetition. The first stays, whatever it is.
    share = relative.clamp(min=_LEAST_EVIDENCE).exp() * relative.isfinite()
    share[:, 0] = 1.0
    return StudentMixture(
        loc.gather(1, index[..., None].expand(-1, -1, dims)),
        scale.expand(-1, kept, -1, -1).contiguous(),
        share / share.sum(1, keepdim=True),
    )
