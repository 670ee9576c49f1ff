"""Importance sampling: z ~ q(z | x), weighed by p(x, z) / q(z | x).

Why with the encoder? For almost every z of the prior, p(x | z) is practically zero: that z draws
other images. The encoder proposes the few z that may have led to this x, and the weights pay back
exactly what its preference took.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from vae_pyro.log_marginal.estimate import Bound, Estimate, Estimator, OnProgress
from vae_pyro.log_marginal.proposals import Proposal, inflate
from vae_pyro.log_marginal.weights import WeightSummary, blank_images, summarise_log_weights
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class WeightEstimator(Estimator):
    """An estimator that is a function of the importance weights of ``num_samples`` draws.

    Args:
        num_samples: z's drawn per image.
        inflation: multiplies the scale of the guide that z is drawn from; see ``Proposal``.
        prior_share: how much of the prior is mixed into it.

    Raises:
        ValueError: where a number is out of range.
    """

    num_samples: int
    inflation: float = field(default=1.0, kw_only=True)
    prior_share: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples: must be at least 1, got {self.num_samples}")
        Proposal(self.inflation, self.prior_share)

    @property
    def proposal(self) -> Proposal:
        """Where z comes from."""
        return Proposal(self.inflation, self.prior_share)

    def check(self, vae: VAE) -> None:
        if self.inflation != 1:
            inflate(vae.guide.posterior(blank_images(vae)), self.inflation)

    @property
    @abstractmethod
    def group_size(self) -> int:
        """How many weights are averaged before the logarithm."""

    def read(self, summary: WeightSummary) -> Estimate:
        """This estimator's answer, from weights that were drawn for it or for a wider family."""
        value, std_error = summary.bounds[self.group_size]
        return Estimate(
            value,
            std_error,
            Bound.LOWER,
            {
                "effective_sample_size": summary.effective_sample_size,
                "pareto_k": summary.pareto_k,
                "elbo_gap": summary.gap.value,
                "elbo_gap_std_error": summary.gap.std_error,
            },
            summary.num_samples,
        )

    def __call__(self, vae: VAE, x: Tensor, on_progress: OnProgress | None = None) -> Estimate:
        return read_together({"": self}, vae, x, on_progress)[""]


@dataclass(frozen=True)
class IWAEBound(WeightEstimator):
    """L_k = E[log (1/k) sum_{j <= k} w_j], averaged over ``num_samples // k`` groups; k=1: ELBO.

    A lower bound on log p(x) that rises with k and reaches it in the limit.

    Args:
        num_samples: z's drawn per image, at least k.
        k: weights averaged inside the logarithm.

    Raises:
        ValueError: where k is not in 1..num_samples.

    Source: Burda et al. (2016), equation 8 and theorem 1.
    """

    targets_log_px: ClassVar[bool] = False

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.k <= self.num_samples:
            raise ValueError(f"k: must lie in 1..num_samples={self.num_samples}, got {self.k}")

    @property
    def group_size(self) -> int:
        return self.k


@dataclass(frozen=True)
class ImportanceSampling(WeightEstimator):
    """log p(x) = log E_q[w], estimated by log (1/K) sum_{k <= K} w_k with K = ``num_samples``.

    Jensen's inequality leaves it below log p(x) in expectation, by about its variance / 2.

    Source: Rezende et al. (2014), appendix E; Burda et al. (2016), section 5.
    """

    @property
    def group_size(self) -> int:
        return self.num_samples


@dataclass(frozen=True)
class PriorSampling(ImportanceSampling):
    """log of the average of p(x | z) over z ~ p(z): the integral as it is written.

    Unbiased for p(x), and useless for log p(x) once z says much about x: nearly every z draws
    another image, all of the sum hangs on the luckiest z, and the logarithm falls short by nats.
    """

    inflation: float = field(default=1.0, init=False, repr=False)
    prior_share: float = field(default=1.0, init=False, repr=False)


def read_together(
    estimators: Mapping[str, WeightEstimator],
    vae: VAE,
    x: Tensor,
    on_progress: OnProgress | None = None,
) -> dict[str, Estimate]:
    """Evaluate several estimators from one pass over one set of weights.

    Args:
        estimators: by name, all with one ``num_samples`` and one proposal.
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        on_progress: called after every chunk.

    Raises:
        ValueError: where the estimators want different weights.
    """
    wanted = {(estimator.num_samples, estimator.proposal) for estimator in estimators.values()}
    if len(wanted) != 1:
        raise ValueError(
            f"estimators must share num_samples and proposal, got {sorted(map(str, wanted))}"
        )
    ((num_samples, proposal),) = wanted
    groups = sorted({estimator.group_size for estimator in estimators.values()})
    summary = summarise_log_weights(vae, x, num_samples, groups, on_progress, proposal)
    return {name: estimator.read(summary) for name, estimator in estimators.items()}
