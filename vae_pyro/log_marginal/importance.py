"""Importance sampling: z ~ q(z | x), weighted by p(x, z) / q(z | x).

Why with the encoder? For almost every z of the prior, p(x | z) is practically zero: that z belongs
to other images. The encoder proposes the few z that may have led to this x, and the importance
weights correct for this choice.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress
from vae_pyro.log_marginal.program import Images, ModelAndGuide
from vae_pyro.log_marginal.proposals import Proposal
from vae_pyro.log_marginal.summary import WeightSummary, summarise_log_weights


@dataclass(frozen=True)
class WeightEstimator(Estimator):
    """An estimator that is a function of the importance weights of ``num_samples`` samples.

    Args:
        num_samples: samples of z per image.

    Raises:
        ValueError: where it is not positive.
    """

    num_samples: int = 5000

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples: must be at least 1, got {self.num_samples}")

    @property
    @abstractmethod
    def proposal(self) -> Proposal:
        """Where z comes from."""

    @property
    @abstractmethod
    def group_size(self) -> int:
        """How many weights are averaged before the logarithm."""

    def check(self, vae: ModelAndGuide) -> None:
        pair_of(vae).check_proposal(self.proposal)

    def read(self, summary: WeightSummary) -> Estimate:
        """This estimator's result, from weights sampled for it or for several estimators."""
        value, std_error = summary.bounds[self.group_size]
        return Estimate(
            value,
            std_error,
            Bound.LOWER,
            {
                "effective_sample_size": summary.effective_sample_size,
                "pareto_k": summary.pareto_k,
            },
            summary.num_samples,
            summary.num_samples if self.group_size == summary.num_samples else 0,
        )

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        summary = _summary([self], vae, x, on_progress)
        return self.read(summary)


@dataclass(frozen=True)
class GuideEstimator(WeightEstimator):
    """A weight estimator whose proposal is the guide: as it is, widened, or mixed with the prior.

    Args:
        num_samples: samples of z per image.
        inflation: multiplies the scale of the guide that z is sampled from; see ``Proposal``.
        prior_share: share of the samples that come from the prior instead.

    Raises:
        ValueError: where a number is out of range.
    """

    inflation: float = field(default=1.0, kw_only=True)
    prior_share: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        Proposal(self.inflation, self.prior_share)

    @property
    def proposal(self) -> Proposal:
        return Proposal(self.inflation, self.prior_share)


@dataclass(frozen=True)
class IWAEBound(GuideEstimator):
    """L_k = E[log (1/k) sum_{j <= k} w_j], averaged over ``num_samples // k`` groups; k=1: ELBO.

    A lower bound on log p(x) that rises with k and reaches it in the limit.

    >>> import torch
    >>> from vae_pyro.log_marginal import IWAEBound
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> IWAEBound(200, k=10)(vae, x).value.shape
    torch.Size([5])

    Args:
        num_samples: samples of z per image, at least k.
        k: weights averaged inside the logarithm.
        inflation, prior_share: of the proposal; see ``Proposal``.

    Raises:
        ValueError: where k is not in 1..num_samples.

    Source: Burda et al. (2016), equation 8 and theorem 1.
    """

    targets_log_px: ClassVar[bool] = False
    k: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.num_samples:
            raise ValueError(f"k: must lie in 1..num_samples={self.num_samples}, got {self.k}")

    @property
    def group_size(self) -> int:
        return self.k


@dataclass(frozen=True)
class ImportanceSampling(GuideEstimator):
    """log p(x) = log E_q[w], estimated by log (1/K) sum_{k <= K} w_k with K = ``num_samples``.

    By Jensen's inequality its expectation is below log p(x), by about half its variance.

    >>> import torch
    >>> from vae_pyro.log_marginal import ImportanceSampling
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> ImportanceSampling(200)(vae, x).bound.name
    'LOWER'

    Args:
        num_samples: samples of z per image, K.
        inflation, prior_share: of the proposal; see ``Proposal``.

    Source: Rezende et al. (2014), appendix E; Burda et al. (2016), section 5.
    """

    @property
    def group_size(self) -> int:
        return self.num_samples


@dataclass(frozen=True)
class PriorSampling(WeightEstimator):
    """log of the average of p(x | z) over z ~ p(z): the integral as it is written.

    Unbiased for p(x), but of no use for log p(x) where z carries much information about x: nearly
    every z belongs to another image, the sum depends on the one luckiest z, and the logarithm is
    too low by nats.

    >>> import torch
    >>> from vae_pyro.log_marginal import PriorSampling
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> PriorSampling(200)(vae, x).value.shape
    torch.Size([5])

    Args:
        num_samples: samples of z per image.
    """

    @property
    def proposal(self) -> Proposal:
        return Proposal(prior_share=1.0)

    @property
    def group_size(self) -> int:
        return self.num_samples


def read_together(
    estimators: Mapping[str, WeightEstimator],
    vae: ModelAndGuide,
    x: Images,
    on_progress: OnProgress | None = None,
) -> dict[str, Estimate]:
    """Evaluate several estimators from one pass over one set of weights.

    Args:
        estimators: by name, all with one ``num_samples`` and one proposal.
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        on_progress: called after every chunk.

    Raises:
        ValueError: where the estimators need different weights.
    """
    summary = _summary(list(estimators.values()), vae, x, on_progress)
    return {name: estimator.read(summary) for name, estimator in estimators.items()}


def _summary(
    estimators: Sequence[WeightEstimator],
    vae: ModelAndGuide,
    x: Images,
    on_progress: OnProgress | None,
) -> WeightSummary:
    wanted = {(estimator.num_samples, estimator.proposal) for estimator in estimators}
    if len(wanted) != 1:
        raise ValueError(
            f"estimators must share num_samples and proposal, got {sorted(map(str, wanted))}"
        )
    ((num_samples, proposal),) = wanted
    groups = sorted({estimator.group_size for estimator in estimators})
    return summarise_log_weights(vae, x, num_samples, groups, on_progress, proposal)
