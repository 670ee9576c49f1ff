"""The best member of the guide's family for every single image, without an encoder."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from pyro import distributions as dist
from torch import Tensor
from torch.distributions import Distribution

from vae_pyro.errors import EstimatorError
from vae_pyro.guide import CholeskyNormal
from vae_pyro.log_marginal.chunking import rows_per_chunk
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate, concatenate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress, part_of
from vae_pyro.log_marginal.pair import blank_images
from vae_pyro.log_marginal.program import Images, ModelAndGuide, require_vae
from vae_pyro.log_marginal.weights import log_joint
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class LocalELBO(Estimator):
    """max_q E_q[log p(x, z) - log q(z)] over normals q of the guide's family, for each image.

    log p(x) - ELBO falls into two parts. What remains with the best q of the family is the
    approximation gap: KL(q* || p(z | x)). What the encoder loses on top, because one network must
    serve all images, is the amortisation gap. An optimum that is only local makes the first look
    larger and the second smaller than they are.

    q starts at the encoder's q(z | x) and follows reparameterised gradients with Adam, whose rate
    falls to 0. Of the first and the last q the better is kept, by samples for this purpose; and the
    bound is then taken from fresh ones.

    >>> import torch
    >>> from vae_pyro.log_marginal import LocalELBO
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> LocalELBO(num_steps=5)(vae, x).value.shape
    torch.Size([5])

    Args:
        num_steps: of Adam.
        num_particles: z's per image and step.
        num_samples: z's per image for the bound.
        learning_rate: at first, in units of the encoder's standard deviations.

    Raises:
        ValueError: where a number is out of range.

    Source: Cremer et al. (2018), section 3.
    """

    targets_log_px: ClassVar[bool] = False
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

    def check(self, vae: ModelAndGuide) -> None:
        vae = require_vae(vae, "the best normal for each image")
        with torch.no_grad():
            _Normal.of(vae.guide.posterior(blank_images(vae)))

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        vae = require_vae(vae, "the best normal for each image")
        self.check(vae)
        pair_of(vae).check(x)
        report = on_progress or (lambda _share, _state: None)
        size = max(1, rows_per_chunk(vae, x) // self.num_particles)
        parts = []
        for start in range(0, len(x), size):
            images = x[start : start + size]
            stop = start + len(images)
            with torch.no_grad():
                normal = _Normal.of(vae.guide.posterior(images))
            first = normal.distribution()
            last = self._optimise(
                vae, images, normal, part_of(report, start / len(x), stop / len(x))
            )
            elbos = [self._draws(vae, images, q).mean(0) for q in (first, last)]
            better = (elbos[1] > elbos[0]).to(x.device)
            chosen = CholeskyNormal(
                torch.where(better[:, None], last.loc, first.loc),
                scale_tril=torch.where(better[:, None, None], last.scale_tril, first.scale_tril),
                validate_args=False,
            )
            draws = self._draws(vae, images, chosen)
            parts.append(
                Estimate(
                    draws.mean(0),
                    draws.std(0) / math.sqrt(self.num_samples),
                    Bound.LOWER,
                    evaluations=self.num_steps * self.num_particles + 3 * self.num_samples,
                )
            )
        return concatenate(parts)

    def _optimise(
        self, vae: VAE, x: Tensor, normal: "_Normal", on_progress: OnProgress
    ) -> CholeskyNormal:
        at_once = max(1, rows_per_chunk(vae, x) // len(x))
        parameters = normal.parameters()
        adam = torch.optim.Adam(parameters, lr=self.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.num_steps)
        for step in range(self.num_steps):
            with torch.enable_grad():
                q = normal.distribution()
                z = q.rsample((self.num_particles,))
                log_p, slope = _log_joint_and_gradient(vae, x, z.detach(), at_once)
                # The gradient of E_q[log p(x, z)] by way of z, without the decoder's graph.
                surrogate = (slope * z).sum() / self.num_particles + q.entropy().sum()
                gradients = torch.autograd.grad(-surrogate, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
            schedule.step()
            elbo = (log_p.mean() + q.entropy().mean()).item()
            on_progress((step + 1) / self.num_steps, f"ELBO {elbo:.2f} nats")
        with torch.no_grad():
            return normal.distribution()

    def _draws(self, vae: VAE, x: Tensor, q: CholeskyNormal) -> Tensor:
        """log p(x, z) - log q(z) of fresh z ~ q, float64, ``(num_samples, batch)``."""
        at_once = max(1, rows_per_chunk(vae, x) // len(x))
        log_w = []
        with torch.no_grad():
            for start in range(0, self.num_samples, at_once):
                z = q.sample((min(at_once, self.num_samples - start),))
                log_likelihood, log_prior = log_joint(vae, x, z)
                log_w.append((log_likelihood + log_prior - q.log_prob(z)).double().cpu())
        return torch.cat(log_w)


def _log_joint_and_gradient(vae: VAE, x: Tensor, z: Tensor, at_once: int) -> tuple[Tensor, Tensor]:
    """log p(x, z) ``(particles, batch)`` and its gradient in z, so many particles at once."""
    values, gradients = [], []
    for part in z.split(at_once):
        point = part.requires_grad_()
        with torch.enable_grad():
            log_p = sum(log_joint(vae, x, point), torch.zeros((), device=x.device))
            gradients += torch.autograd.grad(log_p.sum(), point)
        values.append(log_p.detach())
    return torch.cat(values), torch.cat(gradients)


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
    def of(cls, q: Distribution) -> "_Normal":
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
