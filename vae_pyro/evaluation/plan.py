"""What is computed for the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vae_pyro.evaluation.names import require_free_names
from vae_pyro.log_marginal import (
    AIS,
    AdaptiveImportanceSampling,
    ELBOBound,
    Estimator,
    IWAEBound,
)
from vae_pyro.log_marginal.adaptive import LEAST_EVALUATIONS


@dataclass(frozen=True)
class EvaluationPlan:
    """What is computed for the test images of a trained VAE.

    The ELBO and the IWAE bounds always are, from one set of the guide's weights; and log p(x), by
    adaptive importance sampling.

    Attributes:
        num_samples: z's of the guide per image, for the bounds.
        iwae_samples: each K for an IWAE-K bound.
        estimators: further ones, by the name of their metric (``log_px_ais``, ..).
        num_images: the further estimators are run on the first so many images, and on all images
            where that is cheap (``Estimator.budget_for_all``); None for all.
        simulated_images: how many images to simulate from the model, for which AIS is compared
            with a true upper bound; 0 for none. Needs an AIS among the estimators.
        latent: whether to measure the information in the latent space.
        num_evaluations: of the decoder per image, for log p(x); None for ``num_samples``.
        repeated_images: for the first so many images, log p(x) is estimated a second time. Where
            the two disagree, a part of the posterior was missed; see ``Estimate.trusted``.

    Raises:
        ValueError: where the name of an estimator is taken; see ``require_free_names``.

    >>> from vae_pyro.log_marginal import AIS
    >>> plan = EvaluationPlan(5000, [1, 50], {"log_px_ais": AIS()}, num_images=100)
    >>> list(plan.standard)
    ['elbo', 'iwae_1', 'iwae_50', 'log_px']
    """

    num_samples: int
    iwae_samples: Sequence[int]
    estimators: Mapping[str, Estimator] = field(default_factory=dict)
    num_images: int | None = None
    simulated_images: int = 0
    latent: bool = False
    num_evaluations: int | None = None
    repeated_images: int = 50

    def __post_init__(self) -> None:
        require_free_names(self.estimators)

    @property
    def standard(self) -> dict[str, Estimator]:
        """The estimators of every evaluation."""
        return {
            "elbo": ELBOBound(self.num_samples),
            **{f"iwae_{k}": IWAEBound(self.num_samples, k) for k in self.iwae_samples},
            "log_px": AdaptiveImportanceSampling(
                self.num_evaluations or max(LEAST_EVALUATIONS, self.num_samples)
            ),
        }


def first_ais(estimators: Mapping[str, Estimator]) -> tuple[str, AIS] | None:
    """Name and settings of the AIS to be tried on simulated images; None where there is none."""
    for name, estimator in estimators.items():
        if isinstance(estimator, AIS):
            return name, estimator
    return None
