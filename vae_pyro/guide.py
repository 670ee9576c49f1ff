"""The guide q_phi(z | x): an approximation of the posterior p(z | x), computed by an encoder."""

from abc import abstractmethod
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro.distributions import Distribution, transforms
from pyro.nn import ConditionalAutoRegressiveNN, MaskedLinear, PyroModule
from pyro.nn.auto_reg_nn import create_mask
from torch import Tensor, nn
from torch.distributions import register_kl
from torch.nn.functional import softplus

from vae_pyro.networks import MAX_WIDTH

MIN_SCALE = 1e-4
"""Keeps log q finite in float32, whatever the encoder's outputs."""

BuildEncoder = Callable[[int], nn.Module]
"""num_outputs -> a module from images ``(*batch, C, H, W)`` to ``(*batch, num_outputs)``."""


class Guide(PyroModule):  # type: ignore[misc]  # Pyro's classes are untyped
    """q_phi(z | x): one distribution over z per image; the encoder computes its parameters.

    A subclass is a choice for ``guide=``: one class, and one YAML file that names it.

    Args:
        latent_dim: the size of z, D.
        build_encoder: makes the encoder from its number of outputs per image.

    >>> import torch, vae_pyro as vp
    >>> guide = vp.build_vae(3, (1, 8, 8), guide=vp.guide.FullRankNormal).guide
    >>> q = guide.posterior(torch.zeros(5, 1, 8, 8))
    >>> q.batch_shape, q.event_shape
    (torch.Size([5]), torch.Size([3]))
    """

    def __init__(self, latent_dim: int, build_encoder: BuildEncoder) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = build_encoder(self.num_outputs())

    @abstractmethod
    def num_outputs(self) -> int:
        """How many outputs per image the encoder must have."""

    @abstractmethod
    def posterior(self, x: Tensor) -> Distribution:
        """q_phi(z | x) for x ``(batch, C, H, W)``: batch shape ``(batch,)``, event ``(D,)``."""

    def posterior_mean(self, x: Tensor) -> Tensor:
        """E_q(z|x)[z] for x ``(batch, C, H, W)``; returns ``(batch, D)``."""
        mean: Tensor = self.posterior(x).mean
        return mean

    def forward(self, x: Tensor) -> Tensor:
        """The Pyro program: one z ``(batch, D)`` for each image of x ``(batch, C, H, W)``."""
        with pyro.plate("images", len(x), dim=-1):
            z: Tensor = pyro.sample("z", self.posterior(x))
        return z


class DiagNormal(Guide):
    """q(z | x) = N(z | mu(x), diag(sigma(x)^2)), with sigma = softplus(s) + 1e-4.

    Source: Kingma and Welling (2014), equation 9.
    """

    def num_outputs(self) -> int:
        return 2 * self.latent_dim

    def posterior(self, x: Tensor) -> Distribution:
        loc, raw_scale = self.encoder(x).chunk(2, dim=-1)
        return dist.Normal(loc, softplus(raw_scale) + MIN_SCALE, validate_args=False).to_event(1)


class CholeskyNormal(dist.MultivariateNormal):  # type: ignore[misc]
    """A multivariate normal with a closed-form KL to independent normals."""


@register_kl(CholeskyNormal, dist.Independent)  # type: ignore[untyped-decorator]
def _kl_cholesky_independent(q: CholeskyNormal, p: dist.Independent) -> Tensor:
    if not isinstance(p.base_dist, dist.Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    # Whitened by p: KL(N(m, L L') || N(0, I)) = (tr L L' + m'm - D) / 2 - log det L.
    factor = q.scale_tril / p.base_dist.scale.unsqueeze(-1)
    shift = (q.loc - p.base_dist.loc) / p.base_dist.scale
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    squares = factor.square().sum((-2, -1)) + shift.square().sum(-1)
    kl: Tensor = 0.5 * (squares - q.loc.shape[-1]) - log_det
    return kl


class FullRankNormal(Guide):
    """q(z | x) = N(z | mu(x), L(x) L(x)'), L lower triangular with diagonal softplus(s) + 1e-4.

    Source: Kucukelbir et al. (2017), the full-rank family, here with parameters that depend on x.
    """

    def num_outputs(self) -> int:
        return self.latent_dim + self.latent_dim * (self.latent_dim + 1) // 2

    def posterior(self, x: Tensor) -> Distribution:
        d = self.latent_dim
        loc, raw_diagonal, below = self.encoder(x).split([d, d, d * (d - 1) // 2], dim=-1)
        rows, columns = torch.tril_indices(d, d, offset=-1, device=x.device)
        scale_tril = torch.diag_embed(softplus(raw_diagonal) + MIN_SCALE)
        scale_tril[..., rows, columns] = below
        return CholeskyNormal(loc, scale_tril=scale_tril, validate_args=False)


class _MaskedNetwork(ConditionalAutoRegressiveNN):  # type: ignore[misc]
    """Pyro's network with one hidden layer, two outputs per z, and the z's in their order.

    Only its construction differs: Pyro's needs the values of tensors, which the meta device does
    not have.
    """

    def __init__(self, latent_dim: int, context: int, width: int) -> None:
        nn.Module.__init__(self)
        self.input_dim, self.context_dim, self.hidden_dims = latent_dim, context, [width]
        self.param_dims, self.count_params, self.output_multiplier = [1, 1], 2, 2
        self.all_ones = True
        self.register_buffer("permutation", torch.arange(latent_dim))
        masks, _ = create_mask(latent_dim, context, [width], self.permutation, 2)
        sizes = [latent_dim + context, width, 2 * latent_dim]
        self.layers = nn.ModuleList(
            MaskedLinear(before, after, mask)
            for (before, after), mask in zip(pairwise(sizes), masks, strict=True)
        )
        self.skip_layer = None
        self.f = nn.ReLU()


class Flow(Guide):
    """z = T_n(.. T_1(mu(x) + sigma(x) e)), e ~ N(0, I): inverse autoregressive flow.

    Each step is z'_d = s_d z_d + m_d. A masked network computes m_d and log s_d (between -5 and 3)
    from z_1 .. z_(d-1) and from the encoder's context h(x). Between steps the order of the z's is
    reversed. A sample and its density take one pass; the density of any other z takes one pass of
    every step per latent dimension.

    Args:
        latent_dim, build_encoder: see ``Guide``.
        num_transforms: the number of steps, n.
        hidden: width of each step's masked hidden layer.
        context: the size of h(x).

    Raises:
        ValueError: where a number is not positive, or too large.

    Source: Kingma et al. (2016), equation 10; the masks, Germain et al. (2015).
    """

    def __init__(
        self,
        latent_dim: int,
        build_encoder: BuildEncoder,
        num_transforms: int = 2,
        hidden: int = 64,
        context: int = 32,
    ) -> None:
        for name, value, most in (
            ("num_transforms", num_transforms, 1_000),
            ("hidden", hidden, MAX_WIDTH),
            ("context", context, MAX_WIDTH),
        ):
            if value < 1:
                raise ValueError(f"{name}: must be at least 1, got {value}")
            if value > most:
                raise ValueError(f"{name}: must be at most {most:,}, got {value}")
        self._context = context
        super().__init__(latent_dim, build_encoder)
        # Each masked unit depends on some of the z's only, so there must be as many units as z's.
        width = max(hidden, latent_dim)
        self.steps: Any = nn.ModuleList(
            transforms.ConditionalAffineAutoregressive(_MaskedNetwork(latent_dim, context, width))
            for _ in range(num_transforms)
        )

    def num_outputs(self) -> int:
        return 2 * self.latent_dim + self._context

    def posterior(self, x: Tensor) -> Distribution:
        d = self.latent_dim
        loc, raw_scale, h = self.encoder(x).split([d, d, self._context], dim=-1)
        base = dist.Normal(loc, softplus(raw_scale) + MIN_SCALE, validate_args=False).to_event(1)
        reverse = torch.arange(d - 1, -1, -1, device=x.device)
        chain: list[Any] = []
        for step in self.steps:
            conditioned = step.condition(h)
            # The same permutation as integers, because no tracer can read values out of a tensor.
            conditioned.arn.permutation = range(d)
            chain += [conditioned, transforms.Permute(reverse, cache_size=1)]
        return dist.TransformedDistribution(base, chain[:-1], validate_args=False)

    def posterior_mean(self, x: Tensor, num_samples: int = 256) -> Tensor:
        """E_q(z|x)[z], by Monte Carlo with the same e for every image.

        So Monte Carlo noise does not differ between images, and an unused latent dimension has the
        same mean for all of them.
        """
        q = self.posterior(x)
        generator = torch.Generator().manual_seed(0)
        e = torch.randn(num_samples, 1, self.latent_dim, generator=generator).to(x)
        z: Tensor = q.base_dist.base_dist.loc + q.base_dist.base_dist.scale * e
        for transform in q.transforms:
            z = transform(z)
        return z.mean(0)
