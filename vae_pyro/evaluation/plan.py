"""What is computed for the test images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vae_pyro.evaluation.names import require_free_names
from vae_pyro.log_marginal import (
    AIS,
    ELBOBound,
    Estimator,
    ImportanceSampling,
    IWAEBound,
)


@dataclass(frozen=True)
class EvaluationPlan:
    """What is computed for the test images of a trained VAE.

    The ELBO, the IWAE bounds and importance sampling always are, from one set of weights.

    Attributes:
        num_samples: z's per image for these.
        iwae_samples: each K for an IWAE-K bound.
        estimators: further ones, by the name of their metric (``log_px_ais``, ..).
        num_images: the further estimators are run on the first so many images, and on all images
            where that is cheap (``Estimator.budget_for_all``); None for all.
        simulated_images: how many images to simulate from the model, for which AIS is compared
            with a true upper bound; 0 for none. Needs an AIS among the estimators.
        latent: whether to measure the information in the latent space.

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

    def __post_init__(self) -> None:
        require_free_names(self.estimators)

    @property
    def standard(self) -> dict[str, Estimator]:
        """The estimators of every evaluation, which share their weights."""
        return {
            "elbo": ELBOBound(self.num_samples),
            **{f"iwae_{k}": IWAEBound(self.num_samples, k) for k in self.iwae_samples},
            "log_px": ImportanceSampling(self.num_samples),
        }


def first_ais(estimators: Mapping[str, Estimator]) -> tuple[str, AIS] | None:
    """Name and settings of the AIS to be tried on simulated images; None where there is none."""
    for name, estimator in estimators.items():
        if isinstance(estimator, AIS):
            return name, estimator
    return None
