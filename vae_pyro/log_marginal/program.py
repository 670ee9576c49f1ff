"""A user's own model and guide, and what needs more than those two."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Num
from torch import Tensor

from vae_pyro.errors import EstimatorError
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class PyroProgram:
    """Your own Pyro model and guide, to be passed to an estimator in the place of a VAE.

    >>> import pyro, torch
    >>> from pyro import distributions as dist
    >>> from vae_pyro.log_marginal import ImportanceSampling, PyroProgram
    >>> def model(x):
    ...     with pyro.plate("images", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("images", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))  # the posterior itself
    >>> x = torch.tensor([0.0, 1.0])
    >>> ImportanceSampling(100)(PyroProgram(model, guide), x).value.round(decimals=3).tolist()
    [-1.266, -1.516]

    Both are run on a batch x, whose first axis is the image (or whatever one datum is), and every
    site stands inside ``pyro.plate("images", len(x))``, the rightmost plate. To sample K times per
    image, they are run on a batch that holds every image K times, so they need no code for a
    particle axis. Parameters are those in Pyro's parameter store and in the modules used, as after
    training; put modules into evaluation mode first. A ``poutine.scale`` never
    enters, a mask does, and a plate with a subsample is refused.

    Attributes:
        model: samples the latent sites and observes x: p(x, z).
        guide: samples the same latent sites: q(z | x).
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]


Images = Num[Tensor, " batch *event"]
"""One image, or whatever one datum is, per row: ``(batch, C, H, W)`` for a VAE."""

ModelAndGuide = VAE | PyroProgram
"""What estimators take: a VAE, or a user's own model and guide."""


def require_vae(vae: ModelAndGuide, what: str) -> VAE:
    """The VAE itself.

    Raises:
        EstimatorError: where it is a ``PyroProgram``, to which ``what`` does not apply.
    """
    if isinstance(vae, PyroProgram):
        raise EstimatorError(
            f"{what} needs a VAE built by build_vae, whose decoder and prior can be evaluated at "
            "any z, and this is a PyroProgram: use importance sampling or AIS"
        )
    return vae
