"""The latent space: active units, KL per dimension, and information about x."""

import math
from dataclasses import dataclass

import torch
from pyro import distributions as dist
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.log_marginal import PerImage, require_vae
from vae_pyro.vae import VAE

ACTIVE_VARIANCE = 0.01  # Burda et al. (2016), section 5.2
_NUMBERS_AT_ONCE = 2**22


def posterior_means(vae: VAE, x: Tensor, batch_size: int = 1000) -> Tensor:
    """E_q(z|x)[z] of every image.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        batch_size: images encoded at once.

    Returns:
        ``(N, D)``.

    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> posterior_means(vae, torch.zeros(3, 1, 4, 4)).shape
    torch.Size([3, 2])
    """
    vae = require_vae(vae, "the posterior means")
    with torch.no_grad():
        return torch.cat([vae.guide.posterior_mean(part) for part in x.split(batch_size)])


def active_units(means: Tensor) -> int:
    """Number of latent dimensions d with Var_x(E_q[z_d]) > 0.01: those that tell images apart.

    Args:
        means: posterior means, ``(N, D)``.

    Source: Burda et al. (2016), section 5.2.

    >>> active_units(torch.tensor([[-1.0, 0.01], [1.0, -0.01], [0.0, 0.0]]))
    1
    """
    return int((_variances(means)[0] > ACTIVE_VARIANCE).sum())


def active_units_std_error(means: Tensor) -> float:
    """sqrt(sum_d p_d (1 - p_d)): how far ``active_units`` may move with other images.

    p_d is the probability that dimension d is counted as active: that of a normal around its
    variance, with the standard error of that variance. Dimensions are assumed to be independent.

    Args:
        means: posterior means, ``(N, D)``.

    >>> active_units_std_error(10 * torch.randn(500, 2)) < 1e-6  # far from the threshold
    True
    """
    variance, std_error = _variances(means)
    distance = (variance - ACTIVE_VARIANCE) / std_error.clamp(min=1e-300)
    p = torch.special.ndtr(distance)
    return math.sqrt((p * (1 - p)).sum().item())


def _variances(means: Tensor) -> tuple[Tensor, Tensor]:
    """Var_x(E_q[z_d]) and its standard error, each ``(D,)``."""
    squares = (means.double() - means.double().mean(0)).square()
    std_error = squares.std(0) / len(means) ** 0.5
    return squares.sum(0) / (len(means) - 1), std_error


def kl_per_dimension(vae: VAE, x: Tensor, batch_size: int = 1000) -> Tensor:
    """KL(q(z_d | x) || p(z_d)) in closed form, for normal guides.

    q(z_d | x) is the marginal of one dimension. With a full-rank guide the sum over the dimensions
    is below KL(q(z | x) || p(z)), because it leaves out their correlations.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        batch_size: images encoded at once.

    Returns:
        nats, float64, ``(N, D)``.

    Raises:
        EstimatorError: where the guide is not normal.

    Source: Kingma and Welling (2014), appendix B.

    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> kl = kl_per_dimension(vae, torch.zeros(3, 1, 4, 4))
    >>> kl.shape, bool((kl >= 0).all())
    (torch.Size([3, 2]), True)
    """
    vae = require_vae(vae, "the KL per dimension")

    def of(part: Tensor) -> Tensor:
        q = vae.guide.posterior(part)
        base = q.base_dist if isinstance(q, dist.Independent) else q
        if not isinstance(base, dist.Normal | dist.MultivariateNormal):
            raise EstimatorError(
                "the KL per latent dimension has a closed form for normal guides, not for "
                f"{type(q).__name__}"
            )
        loc, variance = base.mean.double(), base.variance.double()
        kl: Tensor = 0.5 * (loc.square() + variance - variance.log() - 1)
        return kl

    with torch.no_grad():
        return torch.cat([of(part) for part in x.split(batch_size)]).cpu()


@dataclass(frozen=True)
class Information:
    """The two parts of the ELBO's KL: KL(q(z|x) || p(z)) = I(x; z) + KL(q(z) || p(z)), on average.

    q(z) = (1/N) sum_j q(z | x_j) is the aggregated posterior of the N images. Attributes are in
    nats per image, from the same samples z ~ q(z | x_i):

    Attributes:
        kl: log q(z | x_i) - log p(z).
        mutual_information: log q(z | x_i) - log q(z): in expectation below I(x; z) of the whole
            population of images, and never above log N.
        mutual_information_upper: likewise, with q(z) of the N - 1 other images; in expectation
            above I(x; z).
        marginal_kl: log q(z) - log p(z): in expectation above KL(q(z) || p(z)) of the whole
            population. Where it is small, samples of the prior lie where the encoder puts images.

    Source: Hoffman and Johnson (2016), section 2; the two bounds, Poole et al. (2019), section 2.
    """

    kl: PerImage
    mutual_information: PerImage
    mutual_information_upper: PerImage
    marginal_kl: PerImage


def information(vae: VAE, x: Tensor, num_samples: int = 8) -> Information:
    """I(x; z) and KL(q(z) || p(z)) from samples z ~ q(z | x_i); see ``Information``.

    The cost grows with N^2, for each z is scored under q(z | x_j) of every image.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``, at least 2.
        num_samples: z's per image, at least 2.

    Raises:
        ValueError: where there are fewer.

    >>> from vae_pyro.guide import DiagNormal
    >>> from vae_pyro.likelihoods import Bernoulli
    >>> from vae_pyro.networks import MLP
    >>> from vae_pyro.vae import build_vae
    >>> parts = {"network": MLP((8,)), "likelihood": Bernoulli(2), "guide": DiagNormal}
    >>> vae = build_vae(latent_dim=2, image_shape=(1, 4, 4), **parts)
    >>> measures = information(vae, torch.rand(20, 1, 4, 4).round())
    >>> total = measures.mutual_information.mean() + measures.marginal_kl.mean()
    >>> abs(measures.kl.mean() - total) < 1e-9
    True
    """
    vae = require_vae(vae, "the information in the latent space")
    if len(x) < 2 or num_samples < 2:
        raise ValueError(f"needs 2 images and 2 samples of each, got {len(x)} and {num_samples}")
    draws: dict[str, list[Tensor]] = {name: [] for name in Information.__annotations__}
    with torch.no_grad():
        q = vae.guide.posterior(x)
        z = q.sample((num_samples,))
        per_chunk = max(1, _NUMBERS_AT_ONCE // (num_samples * len(x) * z.shape[-1]))
        for start in range(0, len(x), per_chunk):
            own = torch.arange(start, min(start + per_chunk, len(x)), device=x.device)
            points = z[:, own]
            everywhere = points.unsqueeze(-2).expand(-1, -1, len(x), -1)
            log_q = q.log_prob(everywhere).double()  # (samples, chunk, N)
            log_own = log_q.gather(-1, own[None, :, None].expand(num_samples, -1, 1)).squeeze(-1)
            log_all = log_q.logsumexp(-1) - math.log(len(x))
            others = log_q.scatter(-1, own[None, :, None].expand(num_samples, -1, 1), -math.inf)
            log_others = others.logsumexp(-1) - math.log(len(x) - 1)
            log_p = vae.model.prior().log_prob(points).double()
            draws["kl"].append(log_own - log_p)
            draws["mutual_information"].append(log_own - log_all)
            draws["mutual_information_upper"].append(log_own - log_others)
            draws["marginal_kl"].append(log_all - log_p)
    values = {name: torch.cat(parts, dim=1).cpu() for name, parts in draws.items()}
    return Information(
        **{
            name: PerImage(value.mean(0), value.std(0) / num_samples**0.5)
            for name, value in values.items()
        }
    )
