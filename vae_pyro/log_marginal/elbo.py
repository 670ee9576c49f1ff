"""The evidence lower bound, whole and in its two parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.log_marginal.chunking import num_alike, rows_per_chunk
from vae_pyro.log_marginal.drawing import drawing_log_weights, pair_of
from vae_pyro.log_marginal.estimate import PerImage
from vae_pyro.log_marginal.importance import GuideEstimator
from vae_pyro.log_marginal.program import Images, ModelAndGuide


@dataclass(frozen=True)
class ELBOBound(GuideEstimator):
    """E_q[log p(x, z) - log q(z | x)]: the mean of the log weights, below log p(x) by KL(q || p).

    >>> import torch
    >>> from vae_pyro.log_marginal import ELBOBound
    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> _ = torch.manual_seed(0)
    >>> vae = build_vae(2, (1, 8, 8), MLP((16,)), Bernoulli(17), DiagNormal)
    >>> x = torch.bernoulli(torch.full((5, 1, 8, 8), 0.5))
    >>> ELBOBound(200)(vae, x).value.shape
    torch.Size([5])

    Args:
        num_samples: samples of z per image.
        inflation, prior_share: of the proposal; see ``Proposal``.

    Source: Jordan et al. (1999); Kingma and Welling (2014), equation 2.
    """

    targets_log_px: ClassVar[bool] = False

    @property
    def group_size(self) -> int:
        return 1


def elbo_parts(vae: ModelAndGuide, x: Images, num_samples: int) -> Mapping[str, PerImage]:
    """ELBO = reconstruction - KL, each estimated from the same samples.

    Args:
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        num_samples: z's drawn per image; with fewer than 2 the standard errors are NaN.

    Returns:
        ``elbo``; ``reconstruction``, E_q[log p(x | z)]; ``kl``, E_q[log q(z | x) - log p(z)].
    """
    draws: dict[str, list[Tensor]] = {"elbo": [], "reconstruction": [], "kl": []}
    pair_of(vae).check(x)
    at_once = max(1, rows_per_chunk(vae, x) // num_samples)
    with torch.no_grad(), accelerated(x.device):
        for images in x.split(at_once):
            calls = num_alike(len(x), at_once, len(images))
            log_w = drawing_log_weights(vae, images, num_samples, calls)(images)
            draws["elbo"].append(log_w.total)
            draws["reconstruction"].append(log_w.log_likelihood)
            draws["kl"].append(log_w.log_proposal - log_w.log_prior)
    parts = {name: torch.cat(chunks, dim=1).double().cpu() for name, chunks in draws.items()}
    return {
        name: PerImage(part.mean(0), part.std(0) / num_samples**0.5) for name, part in parts.items()
    }
