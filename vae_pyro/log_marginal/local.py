"""The best member of the guide's family for every single image: what no encoder has to share."""

import math
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.guide import CholeskyNormal
from vae_pyro.log_marginal.estimate import (
    Bound,
    Estimate,
    Estimator,
    OnProgress,
    concatenate,
    part_of,
)
from vae_pyro.log_marginal.weights import blank_images, log_joint, rows_per_chunk
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class LocalELBO(Estimator):
    """max_q E_q[log p(x, z) - log q(z)] over normals q of the guide's family, for each image.

    log p(x) - ELBO falls into two parts. What remains with the best q of the family is the
    approximation gap: KL(q* || p(z | x)). What the encoder loses on top, because one network must
    serve all images, is the amortisation gap. An optimum that is only local makes the first look
    larger and the second smaller than they are.

    q starts at the encoder's q(z | x) and follows reparameterised gradients with Adam, whose rate
    falls to 0; the bound is then taken from fresh draws.

    Args:
        num_steps: of Adam.
        num_particles: z's per image and step.
        num_samples: z's per image for the bound.
        learning_rate: at first, in units of the encoder's standard deviations.

    Raises:
        ValueError: where a number is out of range.

    Source: Cremer et al. (2018), section 3.
    """

    num_steps: int = 500
    num_particles: int = 16
    num_samples: int = 500
    learning_rate: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (("num_steps", 1), ("num_particles", 1), ("num_samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: must be positive, got {self.learning_rate}")

    def check(self, vae: VAE) -> None:
        with torch.no_grad():
            _Normal.of(vae.guide.posterior(blank_images(vae)))

    def __call__(self, vae: VAE, x: Tensor, on_progress: OnProgress | None = None) -> Estimate:
        self.check(vae)
        report = on_progress or (lambda _share, _state: None)
        size = max(1, rows_per_chunk(vae, x) // self.num_particles)
        parts = []
        for start in range(0, len(x), size):
            images = x[start : start + size]
            stop = start + len(images)
            q = self._optimise(vae, images, part_of(report, start / len(x), stop / len(x)))
            parts.append(self._bound(vae, images, q))
        return concatenate(parts)

    def _optimise(self, vae: VAE, x: Tensor, on_progress: OnProgress) -> CholeskyNormal:
        with torch.no_grad():
            normal = _Normal.of(vae.guide.posterior(x))
        parameters = normal.parameters()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.num_steps)
        for step in range(self.num_steps):
            with torch.enable_grad():
                q = normal.distribution()
                z = q.rsample((self.num_particles,))
                log_likelihood, log_prior = log_joint(vae, x, z)
                elbo = (log_likelihood + log_prior).mean(0) + q.entropy()
                gradients = torch.autograd.grad(-elbo.sum(), parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
            schedule.step()
            on_progress((step + 1) / self.num_steps, f"ELBO {elbo.mean():.2f} nats")
        with torch.no_grad():
            return normal.distribution()

    def _bound(self, vae: VAE, x: Tensor, q: CholeskyNormal) -> Estimate:
        at_once = max(1, rows_per_chunk(vae, x) // len(x))
        log_w = []
        with torch.no_grad():
            for start in range(0, self.num_samples, at_once):
                z = q.sample((min(at_once, self.num_samples - start),))
                log_likelihood, log_prior = log_joint(vae, x, z)
                log_w.append((log_likelihood + log_prior - q.log_prob(z)).double().cpu())
        draws = torch.cat(log_w)
        return Estimate(
            draws.mean(0),
            draws.std(0) / math.sqrt(self.num_samples),
            Bound.LOWER,
            evaluations=self.num_steps * self.num_particles + self.num_samples,
        )


@dataclass(frozen=True)
class _Normal:
    """N(m + S u, (S L) (S L)'): u and L are free, m and S the encoder's mean and scale.

    Attributes:
        loc, scale: m and the diagonal of S, ``(batch, D)``.
        shift: u, ``(batch, D)``.
        log_diagonal: of L, ``(batch, D)``.
        below: L below its diagonal, ``(batch, D, D)``; None where dimensions are independent.
    """

    loc: Tensor
    scale: Tensor
    shift: Tensor
    log_diagonal: Tensor
    below: Tensor | None

    @classmethod
    def of(cls, q: TorchDistribution) -> "_Normal":
        """The family and the member of it that the encoder chose.

        Raises:
            EstimatorError: where q is not normal.
        """
        if isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal):
            loc, scale, below = q.base_dist.loc, q.base_dist.scale, None
        elif isinstance(q, dist.MultivariateNormal):
            loc, scale = q.loc, q.scale_tril.diagonal(dim1=-2, dim2=-1)
            below = (q.scale_tril / scale.unsqueeze(-1)).tril(-1)
        else:
            raise EstimatorError(
                "the best member of the guide's family is sought among normals, and this guide is "
                f"a {type(q).__name__}: use guide=diag_normal or guide=full_rank_normal"
            )
        return cls(loc, scale, torch.zeros_like(loc), torch.zeros_like(loc), below)

    def parameters(self) -> list[Tensor]:
        free = [self.shift, self.log_diagonal, *([] if self.below is None else [self.below])]
        return [parameter.requires_grad_() for parameter in free]

    def distribution(self) -> CholeskyNormal:
        factor = torch.diag_embed(self.log_diagonal.exp())
        if self.below is not None:
            factor = factor + self.below.tril(-1)
        scale_tril = self.scale.unsqueeze(-1) * factor
        loc = self.loc + self.scale * self.shift
        return CholeskyNormal(loc, scale_tril=scale_tril, validate_args=False)
