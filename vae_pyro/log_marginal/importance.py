"""Importance sampling with the guide: z ~ q(z | x), weighed by p(x, z) / q(z | x).

Why with the encoder? For almost every z of the prior, p(x | z) is practically zero: that z draws
other images. The encoder proposes the few z that may have led to this x, and the weights pay back
exactly what its preference took.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from vae_pyro.log_marginal.estimate import Bound, Estimate
from vae_pyro.log_marginal.weights import OnProgress, WeightSummary, summarise_log_weights
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class WeightEstimator(ABC):
    """An estimator that is a function of the importance weights of ``num_samples`` draws.

    Args:
        num_samples: z's drawn per image.

    Raises:
        ValueError: where ``num_samples`` is not positive.
    """

    num_samples: int

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise ValueError(f"num_samples: must be at least 1, got {self.num_samples}")

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
            },
        )

    def __call__(self, vae: VAE, x: Tensor) -> Estimate:
        """Answer for every image of x ``(batch, C, H, W)``."""
        return estimate_together({"": self}, vae, x)[""]


@dataclass(frozen=True)
class IWAE(WeightEstimator):
    """L_k = E[log (1/k) sum_{j <= k} w_j], averaged over ``num_samples // k`` groups; k=1: ELBO.

    A lower bound on log p(x) that rises with k and reaches it in the limit.

    Args:
        num_samples: z's drawn per image, at least k.
        k: weights averaged inside the logarithm.

    Raises:
        ValueError: where k is not in 1..num_samples.

    Source: Burda et al. (2016), equation 8 and theorem 1.
    """

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


def estimate_together(
    estimators: Mapping[str, WeightEstimator],
    vae: VAE,
    x: Tensor,
    on_progress: OnProgress | None = None,
) -> dict[str, Estimate]:
    """Answer with several estimators from one pass over one set of weights.

    Args:
        estimators: by name, all with one ``num_samples``.
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        on_progress: called after every chunk with (weights done, running ELBO).

    Raises:
        ValueError: where the estimators want different numbers of samples.
    """
    budgets = {estimator.num_samples for estimator in estimators.values()}
    if len(budgets) != 1:
        raise ValueError(f"estimators must share one num_samples, got {sorted(budgets)}")
    groups = sorted({estimator.group_size for estimator in estimators.values()})
    summary = summarise_log_weights(vae, x, budgets.pop(), groups, on_progress)
    return {name: estimator.read(summary) for name, estimator in estimators.items()}
