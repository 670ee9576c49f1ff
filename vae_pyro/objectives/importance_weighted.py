"""Bounds of several samples: IWAE, and the same with doubly reparameterised gradients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from vae_pyro.guide import Guide
from vae_pyro.log_marginal.weights import LogWeights, particle_traces, read_log_weights
from vae_pyro.model import Model
from vae_pyro.objectives.base import Objective, SVILoss, WeightsLoss


@dataclass(frozen=True)
class IWAE(Objective):
    """E[log (1/K) sum_k w_k], w_k = p(x, z_k) / q(z_k | x), K = ``num_particles``.

    Source: Burda et al. (2016), section 3.
    """

    num_particles: int = 5

    def estimator(self) -> SVILoss:
        return WeightsLoss(self._surrogate)

    def _surrogate(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_w = _draw(model, guide, x, self.num_particles).total
        bound = _log_mean_exp(log_w)
        return bound, bound, log_w


@dataclass(frozen=True)
class DReG(Objective):
    """The IWAE bound with doubly reparameterised gradients of the guide's parameters.

    With v_k = w_k / sum_j w_j, the gradient of theta is sum_k v_k d log w_k / d theta, as in IWAE.
    The gradient of phi is sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi). It omits the score of q,
    whose expectation is zero but whose noise dominates the gradient for large K.

    Source: Tucker et al. (2019).
    """

    num_particles: int = 5

    def estimator(self) -> SVILoss:
        return WeightsLoss(self._surrogate)

    def _surrogate(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        guide_trace, model_trace = particle_traces(model, guide, x, self.num_particles)
        drawn = read_log_weights(guide_trace, model_trace, (self.num_particles, len(x)))
        z = guide_trace.nodes["z"]["value"]
        with _frozen(guide):
            log_q = guide.posterior(x).log_prob(z)
        log_w = drawn.log_likelihood + drawn.log_prior - log_q
        normalised = log_w.detach().softmax(0)
        # The surrogate's weights give one factor v_k, for theta and for z. The hook gives the
        # second one, for phi, because phi acts through z alone.
        if z.requires_grad:
            z.register_hook(lambda gradient: normalised.unsqueeze(-1) * gradient)
        surrogate = (normalised * log_w).sum(0)
        return surrogate, _log_mean_exp(log_w), log_w


def _draw(model: Model, guide: Guide, x: Tensor, num_particles: int) -> LogWeights:
    traces = particle_traces(model, guide, x, num_particles)
    return read_log_weights(*traces, (num_particles, len(x)))


def _log_mean_exp(log_w: Tensor) -> Tensor:
    """``(K, batch)`` -> ``(batch,)``."""
    return log_w.logsumexp(0) - math.log(len(log_w))


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Gradients pass through the module to its inputs but not to its parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
