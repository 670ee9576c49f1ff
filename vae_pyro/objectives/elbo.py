"""The ELBO, by samples alone or with its KL in closed form."""

from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vae_pyro.errors import ConfigError
from vae_pyro.guide import Guide
from vae_pyro.model import Model
from vae_pyro.objectives.base import Objective, SVILoss


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


class _TraceELBO(pyro.infer.Trace_ELBO, SVILoss):  # type: ignore[misc]
    """Pyro's estimator, with its loss as a tensor; for guides that reparameterise."""

    def tensors(
        self, model: Model, guide: Guide, x: Tensor, *_numbers: Tensor
    ) -> tuple[Tensor, ...]:
        loss = torch.zeros((), device=x.device)
        for model_trace, guide_trace in self._get_traces(model, guide, (x,), {}):
            if not all(site["fn"].has_rsample for site in _drawn(guide_trace)):
                raise NotImplementedError("a site of the guide is not drawn by reparameterisation")
            elbo = model_trace.log_prob_sum() - guide_trace.log_prob_sum()
            loss = loss - elbo / self.num_particles
        return loss, loss


class _ClosedFormKL(pyro.infer.TraceMeanField_ELBO, SVILoss):  # type: ignore[misc]
    """Pyro's estimator, which raises an error where Pyro would silently sample the KL instead."""

    def tensors(
        self, model: Model, guide: Guide, x: Tensor, *_numbers: Tensor
    ) -> tuple[Tensor, ...]:
        loss = torch.zeros((), device=x.device)
        for model_trace, guide_trace in self._get_traces(model, guide, (x,), {}):
            kl = closed_form_kl(model_trace, guide_trace)
            elbo = model_trace.nodes["x"]["log_prob_sum"] - kl.sum()
            loss = loss - elbo / self.num_particles
        return loss, loss

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> Any:
        closed_form_kl(model_trace, guide_trace)
        return super()._differentiable_loss_particle(model_trace, guide_trace)


def _drawn(trace: Any) -> list[dict[str, Any]]:
    return [trace.nodes[name] for name in trace.stochastic_nodes]


def closed_form_kl(model_trace: Any, guide_trace: Any) -> Tensor:
    """KL(q(z | x) || p(z)), ``(*particles, batch)``."""
    q, p = guide_trace.nodes["z"]["fn"], model_trace.nodes["z"]["fn"]
    try:
        kl: Tensor = kl_divergence(q, p)
    except NotImplementedError as error:
        raise ConfigError(
            f"KL(q || p) of this guide ({type(q).__name__}) has no closed form; use "
            "objective=elbo (with elbo_warmup or beta_elbo: objective.analytic_kl=false), or "
            "guide=diag_normal or full_rank_normal"
        ) from error
    return kl
