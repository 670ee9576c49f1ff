"""Annealed importance sampling: in steps from a distribution one can sample to the posterior.

In importance sampling one proposal must cover the posterior. AIS follows a path of distributions
from a simple one to the posterior, moves z a little by Hamiltonian Monte Carlo at each, and
collects the weights on the way. It needs time, not a good guide. Run backwards from a true
posterior sample, which simulated data provide, the same path bounds log p(x) from above.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.log_marginal.chunking import num_alike, rows_per_chunk
from vae_pyro.log_marginal.diagnostics import MIN_TAIL_SIZE, pareto_k, tail_size
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate, concatenate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress, part_of
from vae_pyro.log_marginal.hamiltonian import AnnealingPath, Point
from vae_pyro.log_marginal.pair import Start
from vae_pyro.log_marginal.program import Images, ModelAndGuide, require_vae
from vae_pyro.log_marginal.running import RunningLogSumExp

_PILOT_CHAINS = 4
_FIRST_STEP_SIZE = 0.5
_LARGEST_STEP_SIZE = 1.6  # a fifth more, and 2 is where the leapfrog of a normal diverges
_CURVE = 4.0  # of the sigmoid


@dataclass(frozen=True)
class AnnealingBudget:
    """What AIS and its reverse may spend, and where their chains start.

    Args:
        num_temperatures: steps of b from 0 to 1. More of them: less variance, and a tighter bound.
        num_chains: per image.
        num_leapfrog: leapfrog steps of a transition, each one evaluation of decoder and gradient.
        start: ``prior``, which does not depend on how good the guide is; or ``guide``, which is
            nearer to the posterior where the guide is good.
        target_acceptance: share of transitions to be accepted.

    Raises:
        ValueError: where a number is out of range.
    """

    num_temperatures: int = 300
    num_chains: int = 16
    num_leapfrog: int = 5
    start: Start = "prior"
    target_acceptance: float = 0.65

    def __post_init__(self) -> None:
        for name, least in (("num_temperatures", 1), ("num_chains", 2), ("num_leapfrog", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if self.start not in get_args(Start):
            raise ValueError(f"start: must be prior or guide, got {self.start!r}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance: must lie between 0 and 1, got {self.target_acceptance}"
            )


@dataclass(frozen=True)
class AIS(AnnealingBudget, Estimator):
    """log p(x) from weights of chains that pass through f_b(z) = f_0(z)^(1-b) p(x, z)^b.

    f_0 is the prior or the guide, from which the chains start, and b rises from 0 to 1 along a
    sigmoid. At each b, every chain makes one Hamiltonian transition that leaves f_b unchanged;
    log w = sum_t (b_t - b_(t-1)) (log p(x, z_(t-1)) - log f_0(z_(t-1))). The average of w over the
    chains is unbiased for p(x), so its logarithm is a lower bound in expectation, by about half the
    square of its standard error.

    Step sizes are adapted to ``target_acceptance``, for each image and temperature, by a few pilot
    chains that are not used afterwards: adapted by the weighted chains themselves, they would make
    the average biased.

    >>> import torch
    >>> from vae_pyro.log_marginal import AIS
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> AIS(num_temperatures=5, num_chains=4)(vae, x).value.shape
    torch.Size([5])

    Args:
        num_temperatures, num_chains, num_leapfrog, start, target_acceptance: see
            ``AnnealingBudget``.

    Source: Neal (2001); for decoders, and the curve of b, Wu et al. (2017), section 4.
    """

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        def estimate(chunk: slice, report: OnProgress) -> Estimate:
            path = AnnealingPath(vae, x[chunk], self.start, self._num_evaluations(vae, x, chunk))
            step_sizes = self._adapt(path, part_of(report, 0, self._pilot_share))
            log_w, _, acceptance = self._forward(
                path, step_sizes, part_of(report, self._pilot_share, 1)
            )
            return self._read(log_w, acceptance, Bound.LOWER)

        return self._in_chunks(vae, x, estimate, on_progress)

    def upper_bound(
        self,
        vae: ModelAndGuide,
        x: Images,
        z: Float[Tensor, "batch dims"] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Estimate:
        """log p(x) from the path run backwards: -log mean exp(-log w), w of each reversed chain.

        Chains that start from the posterior have weights whose inverse is unbiased for 1 / p(x).
        So this is an upper bound in expectation where z is a posterior sample, as it is of
        simulated data: see ``bidirectional``. Without z the chains start from where forward chains
        ended, sampled by their weights: an upper bound if those have reached the
        posterior.

        Args:
            vae: the pair.
            x: images, ``(batch, C, H, W)``.
            z: one posterior sample per image, ``(batch, D)``; all its chains start there, so their
                spread, and ``std_error``, does not contain its error.
            on_progress: called on the way.

        Source: Grosse et al. (2015), section 3.
        """

        if z is not None:
            require_vae(vae, "an upper bound from given posterior samples")

        def estimate(chunk: slice, report: OnProgress) -> Estimate:
            path = AnnealingPath(vae, x[chunk], self.start, self._num_evaluations(vae, x, chunk))
            share = self._pilot_share
            step_sizes = self._adapt(path, part_of(report, 0, share / 2))
            if z is None:
                log_w, ends, _ = self._forward(path, step_sizes, part_of(report, share / 2, 0.5))
                weights = log_w.softmax(0).T.to(ends.z.device)
                chosen = weights.multinomial(self.num_chains, replacement=True).T
                starts = ends.z.gather(0, chosen[..., None].expand_as(ends.z))
            else:
                starts = z[chunk].expand(self.num_chains, -1, -1)
            log_w, acceptance = self._backward(path, starts, step_sizes, part_of(report, 0.5, 1))
            return self._read(log_w, acceptance, Bound.UPPER, num_passes=1 if z is not None else 2)

        return self._in_chunks(vae, x, estimate, on_progress)

    def _in_chunks(
        self,
        vae: ModelAndGuide,
        x: Images,
        estimate: Callable[[slice, OnProgress], Estimate],
        on_progress: OnProgress | None,
    ) -> Estimate:
        """As many images at once as keep the chains' decoder outputs within bounds."""
        pair_of(vae).check(x)
        size = self._images_at_once(vae, x)
        report = on_progress or (lambda _share, _state: None)
        starts = range(0, len(x), size)
        with accelerated(x.device):
            return concatenate(
                [
                    estimate(
                        slice(start, start + size),
                        part_of(report, start / len(x), min(start + size, len(x)) / len(x)),
                    )
                    for start in starts
                ]
            )

    def _images_at_once(self, vae: ModelAndGuide, x: Images) -> int:
        return max(1, rows_per_chunk(vae, x) // self.num_chains)

    def _num_evaluations(self, vae: ModelAndGuide, x: Images, chunk: slice) -> int:
        """Of decoder and gradient, each for all chains of so many images at once."""
        parts = num_alike(len(x), self._images_at_once(vae, x), len(x[chunk]))
        return parts * self.num_temperatures * self.num_leapfrog

    def _temperatures(self) -> list[float]:
        """b_0 = 0 .. b_T = 1, slow at both ends.

        Source: Wu et al. (2017), appendix; Grosse et al. (2015), section 4.
        """
        curve = torch.linspace(-_CURVE, _CURVE, self.num_temperatures + 1).double().sigmoid()
        b: list[float] = ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()
        return b

    def _adapt(self, path: AnnealingPath, on_progress: OnProgress) -> list[Tensor]:
        """A step size ``(batch,)`` for every temperature, found by the pilot chains."""
        # Few temperatures leave little time to adapt.
        rate = max(0.1, min(0.5, 5 / self.num_temperatures))
        point = path.draw(self._num_pilot_chains)
        step_size = torch.full_like(point.log_joint[0], _FIRST_STEP_SIZE)
        step_sizes = []
        for t, b in enumerate(self._temperatures()[1:], 1):
            step_sizes.append(step_size)
            point, acceptance = path.transition(point, b, step_size, self.num_leapfrog)
            change = rate * (acceptance.mean(0) - self.target_acceptance)
            step_size = (step_size * change.exp()).clamp(max=_LARGEST_STEP_SIZE)
            on_progress(t / self.num_temperatures, "adapting step sizes")
        return step_sizes

    def _forward(
        self, path: AnnealingPath, step_sizes: list[Tensor], on_progress: OnProgress
    ) -> tuple[Tensor, Point, Tensor]:
        """From f_0 to the posterior: log w ``(chains, batch)``, the ends, mean acceptance."""
        point = path.draw(self.num_chains)
        log_w = torch.zeros_like(point.log_joint, dtype=torch.float64)
        accepted = torch.zeros_like(log_w)
        for t, (before, b) in enumerate(pairwise(self._temperatures())):
            log_w += (b - before) * (point.log_joint.double() - point.log_start.double())
            point, acceptance = path.transition(point, b, step_sizes[t], self.num_leapfrog)
            accepted += acceptance
            on_progress((t + 1) / self.num_temperatures, f"acceptance {acceptance.mean():.2f}")
        return log_w.cpu(), point, accepted.mean(0).cpu() / self.num_temperatures

    def _backward(
        self, path: AnnealingPath, z: Tensor, step_sizes: list[Tensor], on_progress: OnProgress
    ) -> tuple[Tensor, Tensor]:
        """From the posterior to f_0: log w ``(chains, batch)``, and the mean acceptance."""
        point = path.at(z)
        log_w = torch.zeros_like(point.log_joint, dtype=torch.float64)
        accepted = torch.zeros_like(log_w)
        steps = list(pairwise(self._temperatures()))
        for t in reversed(range(self.num_temperatures)):
            before, b = steps[t]
            point, acceptance = path.transition(point, b, step_sizes[t], self.num_leapfrog)
            log_w += (b - before) * (point.log_joint.double() - point.log_start.double())
            accepted += acceptance
            on_progress(1 - t / self.num_temperatures, f"acceptance {acceptance.mean():.2f}")
        return log_w.cpu(), accepted.mean(0).cpu() / self.num_temperatures

    def _read(
        self, log_w: Tensor, acceptance: Tensor, bound: Bound, num_passes: int = 1
    ) -> Estimate:
        sign = 1 if bound is Bound.LOWER else -1
        weights = RunningLogSumExp(log_w.shape[1])
        weights.update(sign * log_w)
        diagnostics = {
            "acceptance": acceptance,
            "effective_sample_size": weights.effective_sample_size,
        }
        tail = tail_size(self.num_chains)
        if tail >= MIN_TAIL_SIZE:
            diagnostics["pareto_k"] = pareto_k((sign * log_w).topk(tail + 1, dim=0).values)
        num_chains = self._num_pilot_chains + num_passes * self.num_chains
        evaluations = num_chains * (1 + self.num_temperatures * self.num_leapfrog)
        return Estimate(
            sign * weights.log_mean,
            weights.std_error,
            bound,
            diagnostics,
            evaluations,
            self.num_chains,
        )

    @property
    def _num_pilot_chains(self) -> int:
        return min(_PILOT_CHAINS, self.num_chains)

    @property
    def _pilot_share(self) -> float:
        """Of the work of adapting and weighing."""
        return self._num_pilot_chains / (self._num_pilot_chains + self.num_chains)


@dataclass(frozen=True)
class ReverseAIS(AnnealingBudget, Estimator):
    """An upper bound on log p(x), from AIS run backwards: see ``AIS.upper_bound``.

    It is an upper bound only as far as the forward chains reach the posterior, which cannot be
    checked on real images: where they do not, the value may lie below log p(x). ``std_error`` does
    not contain that several chains may start from the same point. To measure the distance between a
    true upper bound and AIS, use images simulated from the model: see ``bidirectional``.

    >>> import torch
    >>> from vae_pyro.log_marginal import ReverseAIS
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> ReverseAIS(num_temperatures=5, num_chains=4)(vae, x).bound.name
    'UPPER'

    Args:
        num_temperatures, num_chains, num_leapfrog, start, target_acceptance: see
            ``AnnealingBudget``.

    Source: Grosse et al. (2015), section 3.
    """

    @property
    def forward(self) -> AIS:
        """AIS with the same budget, whose path is run backwards."""
        return AIS(**vars(self))

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        return self.forward.upper_bound(vae, x, None, on_progress)
