"""log w[k, i] = log p(x_i, z_ik) - log q(z_ik | x_i): the one place where they are computed."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from vae_pyro.log_marginal.program import Images
from vae_pyro.log_marginal.proposals import Program
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class LogWeights:
    """The three parts of a log weight, each ``(K, batch)``, nats.

    Attributes:
        log_likelihood: log p(x_i | z_ik).
        log_prior: log p(z_ik).
        log_proposal: log q(z_ik | x_i).
    """

    log_likelihood: Float[Tensor, "particles batch"]
    log_prior: Float[Tensor, "particles batch"]
    log_proposal: Float[Tensor, "particles batch"]

    @property
    def total(self) -> Float[Tensor, "particles batch"]:
        """log w[k, i], ``(K, batch)``; its mean over k is an ELBO, its log-mean-exp log p(x_i)."""
        return self.log_likelihood + self.log_prior - self.log_proposal


def particle_traces(
    model: Program, guide: Program, x: Images, num_samples: int
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide K times for every image, and the model with the z's it drew.

    Args:
        model: a Pyro program of x.
        guide: likewise, over the same latent sites.
        x: images, ``(batch, C, H, W)``.
        num_samples: K, the size of a plate at dimension -2.

    Returns:
        the guide's and the model's trace.
    """

    def particles(program: Program) -> Program:
        def run(x: Tensor) -> Any:
            with pyro.plate("particles", num_samples, dim=-2):
                return program(x)

        return run

    guide_trace = poutine.trace(particles(guide)).get_trace(x)
    model_trace = poutine.trace(poutine.replay(particles(model), trace=guide_trace)).get_trace(x)
    return guide_trace, model_trace


def read_log_weights(
    guide_trace: poutine.Trace, model_trace: poutine.Trace, shape: tuple[int, int]
) -> LogWeights:
    """The log weights of what two traces hold.

    Args:
        guide_trace: of one run for all particles.
        model_trace: of the model with the same z's.
        shape: ``(K, batch)``.
    """
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    log_likelihood, log_prior, log_proposal = (torch.zeros(()) for _ in range(3))
    for site in model_trace.nodes.values():
        if site["type"] == "sample" and not _is_plate(site):
            if site["is_observed"]:
                log_likelihood = log_likelihood + site["unscaled_log_prob"]
            else:
                log_prior = log_prior + site["unscaled_log_prob"]
    for site in guide_trace.nodes.values():
        if site["type"] == "sample" and not _is_plate(site):
            log_proposal = log_proposal + site["unscaled_log_prob"]
    return LogWeights(*(part.expand(shape) for part in (log_likelihood, log_prior, log_proposal)))


def _is_plate(site: dict[str, Any]) -> bool:
    return isinstance(site["fn"], poutine.subsample_messenger._Subsample)


def log_joint(
    vae: VAE,
    x: Float[Tensor, "batch channels height width"],
    z: Float[Tensor, "*points images dims"],
) -> tuple[Float[Tensor, "*points batch"], Float[Tensor, "*points images"]]:
    """log p(x_i | z) and log p(z) at given z's; gradients flow.

    Args:
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        z: ``(*points, batch, D)``, or ``(*points, 1, D)`` where all images share the points.

    Returns:
        ``(*points, batch)`` and ``(*points, batch or 1)``, nats, in the model's own precision.
    """
    log_likelihood: Tensor = vae.model.decode(z).log_prob(x)
    log_prior: Tensor = vae.model.prior().log_prob(z)
    return log_likelihood, log_prior
