"""Adaptive importance sampling: a proposal that is fitted to every image before it is used.

The encoder serves all images with one network, so for many of them its Gaussian is too narrow or
lies beside the posterior. Here a part of the budget is spent on finding the posterior of each
image. The rest is drawn from what was found, and weighed as in plain importance sampling.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.log_marginal.chunking import num_alike
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate, concatenate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress, part_of
from vae_pyro.log_marginal.mixture import StudentMixture, spread_out, tempered
from vae_pyro.log_marginal.program import Images, ModelAndGuide
from vae_pyro.log_marginal.running import RunningWeights
from vae_pyro.log_marginal.target import AdaptedProposal, Target

LEAST_EVALUATIONS = 100
"""With fewer there is nothing left to draw from what was fitted."""
_LOW = 3  # dimensions, in which samples of the prior find modes
# Shares of the budget, in few dimensions and in more; a gradient is counted as two evaluations.
_SEARCHING_SHARE = {True: 0.2, False: 0.04}
_MATCHING_SHARE = {True: 0.15, False: 0.22}
_CLIMBING_SHARE = {True: 0.12, False: 0.08}  # at most
_FITTING_SHARE = {True: 0.3, False: 0.4}
_MATCHING_ROUNDS = 10
_CLIMBING_STEPS = 12
_MOST_STARTS = 12
_MODES = {True: 3, False: 2}  # components of the fit
_FITTING_ROUNDS = 5
_EM_STEPS = 3  # between two rounds
_PRIOR_SHARE = {True: 0.2, False: 0.05}  # in few dimensions, and in more
_WIDER = {True: 1.2, False: 1.3}  # than what fits: narrow proposals have heavy weights
_NUMBERS_AT_ONCE = 2**21


@dataclass(frozen=True)
class AdaptiveImportanceSampling(Estimator):
    """log (1/K) sum_k p(x, z_k) / r(z_k), z_k ~ r: r is a mixture that was fitted to this image.

    r(z) = a p(z) + b q(z | x) + (1 - a - b) sum_c v_c t(z | m_c, S_c). It is found in three phases,
    none of whose samples enter the estimate. So, given r, the weights are independent, their mean
    is unbiased for p(x), and ``std_error`` and k-hat have their usual meaning.

    1. Matching: the guide's normal is moved to a mode of the posterior by gradients of log p(x, z),
       see ``vae_pyro.log_marginal.match``.
    2. Climbing: log p(x, z) is computed at points of the prior and of the guides of all images,
       which lie where this decoder puts images. From the best of them, far from each other, further
       modes are climbed to, see ``vae_pyro.log_marginal.climb``. The highest modes are kept.
    3. Fitting: in rounds, samples of r are weighed against all rounds' proposals together, and the
       Student t components are refitted. In up to 3 dimensions a fifth of the samples is the
       prior's, in more a twentieth.

    The guide stays a component. Its share b follows the weights of its samples, and is at least
    0.05, so that no weight exceeds 20 times that of the guide alone, however badly the fit went.

    Limit: a mode is not found where no gradient from the places that were tried leads to it, and
    then no diagnostic of these samples shows it. A second estimate from other random numbers can
    (``Estimate.checked_by``); AIS and quadrature do not depend on the guide.

    >>> import torch
    >>> from vae_pyro.log_marginal import AdaptiveImportanceSampling
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8))
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> estimate = AdaptiveImportanceSampling(500)(vae, x)
    >>> estimate.bound.name, bool((estimate.diagnostics["pareto_k"] < 0.7).all())
    ('LOWER', True)

    Args:
        num_evaluations: of the decoder per image, in all; a gradient counts as two.
        smoothed: whether the largest weights are replaced by those that a fitted Pareto expects
            (``diagnostics.pareto_smoothed``). The mean weight is then no longer unbiased.

    Raises:
        ValueError: where it is below 100.

    Source: Cornuet et al. (2012), adaptive multiple importance sampling, for the fit; Hesterberg
    (1995) for the shares of prior and guide; Cai et al. (2024) for the matching; Nocedal and Wright
    (2006), section 6.1, for the climbing.
    """

    num_evaluations: int = 5000
    smoothed: bool = False

    def __post_init__(self) -> None:
        if self.num_evaluations < LEAST_EVALUATIONS:
            raise ValueError(
                f"num_evaluations: must be at least {LEAST_EVALUATIONS}, got {self.num_evaluations}"
            )

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        pair_of(vae).check(x)
        report = on_progress or (lambda _share, _state: None)
        places = self._places(vae, x)
        size = max(1, min(len(x), _NUMBERS_AT_ONCE // (self.num_evaluations * places.shape[1])))
        parts = []
        with torch.no_grad(), accelerated(x.device):
            for start in range(0, len(x), size):
                images = x[start : start + size]
                target = Target(vae, images, num_alike(len(x), size, len(images)))
                stop = start + len(images)
                parts.append(
                    self._estimate(target, places, part_of(report, start / len(x), stop / len(x)))
                )
        return concatenate(parts)

    def _places(self, vae: ModelAndGuide, x: Images) -> Tensor:
        """z's where images may be, ``(M, D)``: half from the prior, half from guides of any x."""
        pair = pair_of(vae)
        with torch.no_grad():
            is_low = pair.draw_start(x[:1], "prior", 1).shape[-1] <= _LOW
            half = math.ceil(_SEARCHING_SHARE[is_low] * self.num_evaluations / 2)
            guide = pair.draw_start(x, "guide", math.ceil(half / len(x))).flatten(0, 1)
            prior = pair.draw_start(x[:1], "prior", half).flatten(0, 1)
        return torch.cat([prior, guide[torch.randperm(len(guide), device=guide.device)[:half]]])

    def _estimate(self, target: Target, places: Tensor, on_progress: OnProgress) -> Estimate:
        dims = places.shape[1]
        is_low = dims <= _LOW
        gradients = int(_MATCHING_SHARE[is_low] * self.num_evaluations / 2)
        rounds = max(1, min(_MATCHING_ROUNDS, gradients // max(4, dims)))
        mixture = target.matched(rounds, gradients // rounds)
        spent = 2 * (gradients // rounds) * rounds
        climbs = int(_CLIMBING_SHARE[is_low] * self.num_evaluations / 2) // _CLIMBING_STEPS
        starts = min(_MOST_STARTS, climbs - 1)  # one is the matched mode
        if starts > 0:
            mixture = target.modes(mixture, places, starts, _CLIMBING_STEPS, _MODES[is_low])
            spent += len(places) + 2 * _CLIMBING_STEPS * (starts + 1)
        on_progress(spent / self.num_evaluations, "matching")
        per_round = int(_FITTING_SHARE[is_low] * self.num_evaluations / _FITTING_ROUNDS)
        proposal = self._fitted(target, mixture, per_round)
        num_samples = self.num_evaluations - spent - per_round * _FITTING_ROUNDS
        on_progress(1 - num_samples / self.num_evaluations, "fitting")
        points = target.draw(proposal, num_samples)
        weights = RunningWeights(num_samples, [], len(target.x))
        weights.update((points.log_joint - proposal.log_prob(points)).T.cpu())
        on_progress(1.0, f"log p(x) {weights.total.log_mean.mean():.2f} nats")
        return Estimate(
            weights.smoothed_log_mean if self.smoothed else weights.total.log_mean,
            weights.total.std_error,
            Bound.LOWER,
            {
                "effective_sample_size": weights.total.effective_sample_size,
                "pareto_k": weights.pareto_k,
            },
            self.num_evaluations,
            num_samples,
        )

    def _fitted(self, target: Target, mixture: StudentMixture, per_round: int) -> AdaptedProposal:
        """The proposal after all rounds of fitting, each on so many more samples."""
        dims = mixture.loc.shape[-1]
        is_low = dims <= _LOW
        shares = torch.full_like(mixture.loc[:, 0, 0], 0.3)
        proposal = AdaptedProposal(mixture.widened(_WIDER[is_low]), _PRIOR_SHARE[is_low], shares)
        from_gradients = mixture.scale
        proposals: list[AdaptedProposal] = []
        points = total = None  # of all rounds; the log of the sum of their proposals' densities
        for number in range(1, _FITTING_ROUNDS + 1):
            new = target.draw(proposal, per_round)
            points = new if points is None else points.joined(new)
            log_r = proposal.log_prob(points)
            earlier = [past.log_prob(new) for past in proposals]
            there = torch.stack([*earlier, log_r[:, -per_round:]]).logsumexp(0)
            if total is not None:
                there = torch.cat([torch.logaddexp(total, log_r[:, :-per_round]), there], 1)
            total = there
            proposals.append(proposal)
            log_w = points.log_joint - total + math.log(number)
            enough = min(4.0 * dims + 40, log_w.shape[1] / 2)
            weights = tempered(log_w, enough)
            raw = tempered(log_w, 1.0)
            if is_low and number == 1:
                # What is well covered is fitted by four, in case it is no ellipse.
                covered = 1 / raw.square().sum(1) >= enough
                mixture = mixture.where(
                    ~covered, spread_out(points.z, weights, mixture.loc.shape[1])
                )
            mixture = mixture.reseeded(points.z, raw)
            for _ in range(_EM_STEPS):
                # In many dimensions the covariance of few samples is mostly noise. Drawn towards
                # the present scale, it would take up more of it with every step and round.
                towards = mixture.scale if is_low else from_gradients
                mixture = mixture.fitted(points.z, weights, towards)
            proposal = AdaptedProposal(
                mixture.widened(_WIDER[is_low]),
                _PRIOR_SHARE[is_low],
                proposal.better_guide_share(points, log_r, weights),
            )
        return proposal
