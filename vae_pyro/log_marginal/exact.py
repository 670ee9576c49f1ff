"""log p(x) in closed form, for the one kind of VAE that has one: linear and Gaussian."""

import copy
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.distributions import LowRankMultivariateNormal

from vae_pyro.errors import EstimatorError
from vae_pyro.likelihoods import Normal, NormalLearnedScale
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.estimate import Bound, Estimate
from vae_pyro.log_marginal.estimator import Estimator, OnProgress
from vae_pyro.log_marginal.program import Images, ModelAndGuide, require_vae
from vae_pyro.networks import Bias, Reshape

_AFFINE = (nn.Linear, Reshape, Bias, nn.Flatten, nn.Identity)


@dataclass(frozen=True)
class Exact(Estimator):
    """log N(x | b, W W' + s^2 I), where z ~ N(0, I) and x | z ~ N(W z + b, s^2 I).

    Computed in float64 whatever the VAE's own precision.

    >>> import torch
    >>> from vae_pyro.log_marginal import Exact
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Normal
    >>> from vae_pyro.networks import Linear
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), Linear(), Normal(None, 0.5), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> Exact()(vae, x).bound.name
    'EXACT'

    Source: Tipping and Bishop (1999), equation 4.
    """

    budget_for_all: ClassVar[float] = math.inf

    def check(self, vae: ModelAndGuide) -> None:
        vae = require_vae(vae, "the closed form")
        affine = all(
            isinstance(module, (nn.Sequential, *_AFFINE)) for module in vae.model.decoder.modules()
        )
        likelihood = vae.model.likelihood
        if not (affine and isinstance(likelihood, Normal | NormalLearnedScale)):
            raise EstimatorError(
                "exact log p(x) is known for linear-Gaussian models only (network=linear with "
                "likelihood=normal or normal_learned_scale), and this one has "
                f"{'a linear' if affine else 'a nonlinear'} decoder and "
                f"{type(likelihood).__name__}: use quadrature (latent_dim up to 3) or AIS"
            )

    def __call__(
        self, vae: ModelAndGuide, x: Images, on_progress: OnProgress | None = None
    ) -> Estimate:
        vae = require_vae(vae, "the closed form")
        self.check(vae)
        pair_of(vae).check(x)
        with torch.no_grad():
            decoder = copy.deepcopy(vae.model.decoder).double()
            origin = vae.model.origin.double()
            corners = torch.cat([origin[None], torch.diag_embed(torch.ones_like(origin))])
            images = decoder(corners).flatten(1)
            bias, weight = images[0], (images[1:] - images[0]).T
            scale = torch.as_tensor(vae.model.likelihood.scale, dtype=bias.dtype)
            p_x = LowRankMultivariateNormal(bias, weight, (scale**2).to(bias).expand(bias.shape))
            value = p_x.log_prob(x.double().flatten(1)).cpu()
        if on_progress is not None:
            on_progress(1.0, "closed form")
        return Estimate(value, torch.zeros_like(value), Bound.EXACT, evaluations=0.0)
