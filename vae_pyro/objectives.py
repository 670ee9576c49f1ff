"""What SVI maximises. Of all metrics, only ``train/objective`` depends on beta and free bits."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import pyro.infer
import torch
from pyro import distributions as dist
from torch import Tensor, nn
from torch.distributions import kl_divergence

from vae_pyro.errors import ConfigError
from vae_pyro.guide import Guide
from vae_pyro.log_marginal.weights import LogWeights, particle_traces, read_log_weights
from vae_pyro.model import Model


@dataclass(frozen=True)
class Objective(ABC):
    """A choice for ``objective=``: one class, and one YAML file that names it.

    Args:
        num_particles: samples of z per image and step.

    Raises:
        ValueError: where ``num_particles`` is not positive.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles: must be at least 1, got {self.num_particles}")

    @abstractmethod
    def estimator(self) -> "SVILoss":
        """Pyro's estimator of this objective, the loss of ``pyro.infer.SVI``.

        Its losses are sums over the batch. Where the objective is not the ELBO, it returns two
        losses: (-objective, -ELBO).
        """

    def at_epoch(self, epoch: int) -> Self:  # noqa: ARG002
        """The objective of one epoch; the first epoch is 1."""
        return self


class SVILoss(pyro.infer.ELBO, ABC):  # type: ignore[misc]  # Pyro's classes are untyped
    """A loss for ``pyro.infer.SVI`` whose steps can be compiled."""

    @abstractmethod
    def tensors(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, ...]:
        """The losses of one set of samples, each a scalar: a sum over the batch.

        ``loss_and_grads`` differentiates the first, and returns the others or the only one. They
        are tensors, because a tracer cannot read their values and reading them waits for the GPU.
        """


@dataclass(frozen=True)
class ELBO(Objective):
    """E_q(z|x)[log p(x, z) - log q(z | x)], by reparameterisation: ``pyro.infer.Trace_ELBO``.

    Source: Kingma and Welling (2014), equation 2.

    >>> import pyro, vae_pyro as vp
    >>> vae = vp.build_vae(latent_dim=2, image_shape=(1, 8, 8))
    >>> loss = vp.objectives.ELBO().estimator().loss(vae.model, vae.guide, vae.sample(10, seed=0))
    >>> 400 < loss < 500  # about 64 log 2 nats per image before training
    True
    """

    def estimator(self) -> SVILoss:
        return _TraceELBO(
            num_particles=self.num_particles,
            max_plate_nesting=1,
            vectorize_particles=self.num_particles > 1,
        )


@dataclass(frozen=True)
class ELBOAnalyticKL(Objective):
    """E_q(z|x)[log p(x | z)] - KL(q(z | x) || p(z)), with the KL in closed form.

    The same ELBO with another gradient noise: ``pyro.infer.TraceMeanField_ELBO``.

    Raises:
        ConfigError: from the estimator, where the guide has no closed-form KL.

    Source: Kingma and Welling (2014), equations 3 and 10.
    """

    def estimator(self) -> SVILoss:
        return _ClosedFormKL(
            num_particles=self.num_particles,
            max_plate_nesting=1,
            vectorize_particles=self.num_particles > 1,
        )


@dataclass(frozen=True)
class IWAE(Objective):
    """E[log (1/K) sum_k w_k], w_k = p(x, z_k) / q(z_k | x), K = ``num_particles``.

    Source: Burda et al. (2016), section 3.
    """

    num_particles: int = 5

    def estimator(self) -> SVILoss:
        return _WeightEstimator(self._surrogate)

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
        return _WeightEstimator(self._surrogate)

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


@dataclass(frozen=True)
class BetaELBO(Objective):
    """E_q[log p(x | z)] - beta max(KL, free bits); a bound of log p(x) only for beta of at least 1.

    Args:
        num_particles: samples of z per image and step.
        beta: the weight of the KL term.
        warmup_epochs: beta grows linearly from 0 in the first epoch to its value after so many.
        free_bits: in nats per latent dimension. KL_d, the batch mean in closed form, is replaced by
            this value where it is smaller. Needs a guide of independent normals (``DiagNormal``).

    Raises:
        ValueError: where a number is negative.
        ConfigError: from the estimator, for free bits with another guide.

    Source: Higgins et al. (2017), beta; Bowman et al. (2016), warm-up; Kingma et al. (2016), free
        bits.
    """

    beta: float = 4.0
    warmup_epochs: int = 0
    free_bits: float = 0.0

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

    def estimator(self) -> SVILoss:
        return _WeightEstimator(self._surrogate)

    def _surrogate(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        guide_trace, model_trace = particle_traces(model, guide, x, self.num_particles)
        drawn = read_log_weights(guide_trace, model_trace, (self.num_particles, len(x)))
        if self.free_bits:
            kl = _kl_per_dimension(guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"])
            charged = kl.mean((0, 1)).clamp(min=self.free_bits).sum()
        else:
            charged = (drawn.log_proposal - drawn.log_prior).mean(0)
        objective = drawn.log_likelihood.mean(0) - self.beta * charged
        return objective, objective, drawn.total


# model, guide, x -> what to differentiate and the objective, both (batch,); log w, (K, batch)
_Surrogate = Callable[[Model, Guide, Tensor], tuple[Tensor, Tensor, Tensor]]


class _TraceELBO(pyro.infer.Trace_ELBO, SVILoss):  # type: ignore[misc]
    """Pyro's estimator, with its loss as a tensor; for guides that reparameterise."""

    def tensors(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, ...]:
        loss = torch.zeros((), device=x.device)
        for model_trace, guide_trace in self._get_traces(model, guide, (x,), {}):
            if not all(site["fn"].has_rsample for site in _drawn(guide_trace)):
                raise NotImplementedError("a site of the guide is not drawn by reparameterisation")
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            loss = loss - elbo / self.num_particles
        return loss, loss


class _WeightEstimator(SVILoss):
    """A function of the importance weights as a loss for ``pyro.infer.SVI``."""

    def __init__(self, surrogate: _Surrogate) -> None:
        super().__init__(max_plate_nesting=1)
        self._surrogate = surrogate

    def loss(self, model: Model, guide: Guide, x: Tensor) -> tuple[float, float]:
        """(-objective, -ELBO), each a sum over the batch, from one set of samples."""
        with torch.no_grad():
            _, objective, elbo = self.tensors(model, guide, x)
        return objective.item(), elbo.item()

    def loss_and_grads(self, model: Model, guide: Guide, x: Tensor) -> tuple[float, float]:
        """As ``loss``; gradients of -objective are added to the parameters' ``grad``."""
        surrogate, objective, elbo = self.tensors(model, guide, x)
        surrogate.backward()
        return objective.item(), elbo.item()

    def tensors(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, ...]:
        surrogate, objective, log_w = self._surrogate(model, guide, x)
        return -surrogate.sum(), -objective.sum(), -log_w.mean(0).sum()

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError("weights are read by vae_pyro.log_marginal.weights")


class _ClosedFormKL(pyro.infer.TraceMeanField_ELBO, SVILoss):  # type: ignore[misc]
    """Pyro's estimator, which raises an error where Pyro would silently sample the KL instead."""

    def tensors(self, model: Model, guide: Guide, x: Tensor) -> tuple[Tensor, ...]:
        loss = torch.zeros((), device=x.device)
        for model_trace, guide_trace in self._get_traces(model, guide, (x,), {}):
            elbo = model_trace.nodes["x"]["log_prob_sum"] - self._kl(model_trace, guide_trace).sum()
            loss = loss - elbo / self.num_particles
        return loss, loss

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        self._kl(model_trace, guide_trace)
        return super()._differentiable_loss_particle(model_trace, guide_trace)

    @staticmethod
    def _kl(model_trace: Any, guide_trace: Any) -> Tensor:
        """KL(q(z | x) || p(z)), ``(*particles, batch)``."""
        q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
        try:
            kl: Tensor = kl_divergence(q, p)
        except NotImplementedError as error:
            raise ConfigError(
                f"objective=elbo_analytic_kl: KL(q || p) of this guide ({type(q).__name__}) has no "
                "closed form; use objective=elbo, or guide=diag_normal or full_rank_normal"
            ) from error
        return kl


def _drawn(trace: Any) -> list[dict[str, Any]]:
    return [trace.nodes[name] for name in trace.stochastic_nodes]


def _draw(model: Model, guide: Guide, x: Tensor, num_particles: int) -> LogWeights:
    traces = particle_traces(model, guide, x, num_particles)
    return read_log_weights(*traces, (num_particles, len(x)))


def _log_mean_exp(log_w: Tensor) -> Tensor:
    """``(K, batch)`` -> ``(batch,)``."""
    return log_w.logsumexp(0) - math.log(len(log_w))


def _kl_per_dimension(q: Any, p: Any) -> Tensor:
    """KL(q(z_d | x) || p(z_d)), ``(K, batch, D)``."""
    if not (isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)):
        raise ConfigError(
            "objective.free_bits needs a guide whose latent dimensions are independent given x; "
            "use guide=diag_normal, or objective.free_bits=0"
        )
    kl: Tensor = kl_divergence(q.base_dist, p.base_dist.expand(q.base_dist.batch_shape))
    return kl


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
