"""The ELBO with another weight of its KL term, which may warm up, and with free bits."""

import math
from dataclasses import dataclass, replace
from typing import Any, Self

from pyro import distributions as dist
from torch import Tensor
from torch.distributions import kl_divergence

from vae_pyro.errors import ConfigError
from vae_pyro.guide import Guide
from vae_pyro.log_marginal.weights import particle_traces, read_log_weights
from vae_pyro.model import Model
from vae_pyro.objectives.base import Objective, SVILoss, WeightsLoss
from vae_pyro.objectives.elbo import closed_form_kl


@dataclass(frozen=True)
class BetaELBO(Objective):
    """E_q[log p(x | z)] - beta max(KL, free bits); a bound of log p(x) only for beta of at least 1.

    Args:
        num_particles: samples of z per image and step.
        beta: the weight of the KL term.
        warmup_epochs: beta grows linearly from 0 in the first epoch to its value after so many.
        free_bits: in nats per latent dimension. KL_d, the batch mean in closed form, is replaced by
            this value where it is smaller. Needs a guide of independent normals (``DiagNormal``).
        analytic_kl: whether the KL is in closed form also without free bits, and not of the
            samples. Needs a guide with such a KL (``DiagNormal``, ``FullRankNormal``).

    Raises:
        ValueError: where a number is negative.
        ConfigError: from the estimator, for free bits or a closed form with another guide.

    Source: Higgins et al. (2017), beta; Bowman et al. (2016), warm-up; Kingma et al. (2016), free
        bits.
    """

    beta: float = 4.0
    warmup_epochs: float = 0
    free_bits: float = 0.0
    analytic_kl: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("beta", "warmup_epochs", "free_bits"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}: must be a number from 0 up, got {value}")

    def at_epoch(self, epoch: int) -> Self:
        if epoch > self.warmup_epochs:
            return self
        return replace(self, beta=self.beta * (epoch - 1) / self.warmup_epochs)

    def shortened(self, fraction: float) -> Self:
        return replace(self, warmup_epochs=fraction * self.warmup_epochs)

    def compiled_as(self) -> tuple[Self, tuple[float, ...]]:
        return replace(self, beta=0.0, warmup_epochs=0), (self.beta,)

    def estimator(self) -> SVILoss:
        return WeightsLoss(self._surrogate)

    def _surrogate(
        self, model: Model, guide: Guide, x: Tensor, beta: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        guide_trace, model_trace = particle_traces(model, guide, x, self.num_particles)
        drawn = read_log_weights(guide_trace, model_trace, (self.num_particles, len(x)))
        if self.free_bits:
            kl = _kl_per_dimension(guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"])
            charged = kl.mean((0, 1)).clamp(min=self.free_bits).sum()
        elif self.analytic_kl:
            charged = closed_form_kl(model_trace, guide_trace).mean(0)
        else:
            charged = (drawn.log_proposal - drawn.log_prior).mean(0)
        weight = self.beta if beta is None else beta
        objective = drawn.log_likelihood.mean(0) - weight * charged
        return objective, objective, drawn.total


def _kl_per_dimension(q: Any, p: Any) -> Tensor:
    """KL(q(z_d | x) || p(z_d)), ``(K, batch, D)``."""
    if not (isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)):
        raise ConfigError(
            "objective.free_bits needs a guide whose latent dimensions are independent given x; "
            "use guide=diag_normal, or objective.free_bits=0"
        )
    kl: Tensor = kl_divergence(q.base_dist, p.base_dist.expand(q.base_dist.batch_shape))
    return kl
