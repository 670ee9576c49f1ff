"""What the estimators need of a model and its guide, and how a VAE provides it."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import pyro
import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from vae_pyro.log_marginal.program import Images
from vae_pyro.log_marginal.proposals import Proposal, inflate
from vae_pyro.log_marginal.weights import LogWeights, log_joint, particle_traces, read_log_weights
from vae_pyro.vae import VAE

Start = Literal["prior", "guide"]
"""Where the chains of AIS start."""


class Pair(ABC):
    """A model p(x, z) and its guide q(z | x), as the estimators use them.

    Attributes:
        programs: the VAE, or the user's programs.
    """

    programs: Any

    @abstractmethod
    def check_form(self, x: Images) -> None:
        """Refuse what is not a batch of images for this model: type, shape, precision.

        Raises:
            DataError: with what was given, what is needed, and what to try.
        """

    @abstractmethod
    def check(self, x: Images) -> None:
        """As ``check_form``, and refuse pixel values outside the likelihood's support.

        Raises:
            DataError: likewise.
        """

    @abstractmethod
    def check_proposal(self, proposal: Proposal) -> None:
        """Refuse a proposal that cannot be made from this guide.

        Raises:
            EstimatorError: with the reason.
        """

    @abstractmethod
    def outputs_per_row(self, x: Images) -> int:
        """Decoder outputs for one z of one image of x ``(N, ...)``: what memory grows with."""

    @abstractmethod
    def log_weights(self, x: Images, num_samples: int, proposal: Proposal) -> LogWeights:
        """See ``vae_pyro.log_marginal.log_weights``."""

    @abstractmethod
    def draw_start(
        self, x: Images, start: Start, num_chains: int
    ) -> Float[Tensor, "chains batch dims"]:
        """z ~ f_0 for every image, ``(chains, batch, D)``, each z a vector of real numbers."""

    @abstractmethod
    def step_unit(self, x: Images, start: Start) -> Float[Tensor, "batch dims"]:
        """The width of f_0 in each latent dimension, ``(batch, D)``: the unit of a step."""

    @abstractmethod
    def log_joint_at(
        self, x: Images, z: Float[Tensor, "points dims"]
    ) -> Float[Tensor, "points batch"]:
        """log p(x_i, z_j) of every image at every point, ``(points, batch)``, float64."""

    @abstractmethod
    def log_densities(
        self, x: Images, z: Float[Tensor, "chains batch dims"], start: Start
    ) -> tuple[
        Float[Tensor, "chains batch"], Float[Tensor, "chains batch"], Float[Tensor, "chains batch"]
    ]:
        """log f_0(z), log p(x | z) and log p(z), each ``(chains, batch)``; gradients flow.

        Args:
            x: images, ``(batch, ...)``.
            z: ``(chains, batch, D)``, as from ``draw_start``.
            start: f_0: the ``prior`` or the ``guide``.
        """


class VAEPair(Pair):
    """The pair of a VAE."""

    def __init__(self, vae: VAE) -> None:
        self.programs = self._vae = vae

    def check_form(self, x: Images) -> None:
        self._vae.require_images(x)

    def check(self, x: Images) -> None:
        self.check_form(x)
        self._vae.model.likelihood.check(x)

    def check_proposal(self, proposal: Proposal) -> None:
        if proposal.inflation != 1:
            inflate(self._vae.guide.posterior(blank_images(self._vae)), proposal.inflation)

    def outputs_per_row(self, x: Images) -> int:
        return x[0].numel() * self._vae.model.likelihood.num_parameters

    def log_weights(self, x: Images, num_samples: int, proposal: Proposal) -> LogWeights:
        # A fresh parameter store: evaluating one VAE must leave no trace for the next.
        with pyro.get_param_store().scope():
            guide = proposal.program(self._vae)
            traces = particle_traces(self._vae.model, guide, x, num_samples)
        return read_log_weights(*traces, (num_samples, len(x)))

    def draw_start(
        self, x: Images, start: Start, num_chains: int
    ) -> Float[Tensor, "chains batch dims"]:
        z: Tensor = self._first(x, start).sample((num_chains,))
        return z

    def step_unit(self, x: Images, start: Start) -> Float[Tensor, "batch dims"]:
        f_0 = self._first(x, start)
        unit = torch.ones_like(f_0.sample())
        return unit if start == "prior" else f_0.sample((256,)).std(0)

    def log_joint_at(
        self, x: Images, z: Float[Tensor, "points dims"]
    ) -> Float[Tensor, "points batch"]:
        # Every point is decoded once for all images.
        log_likelihood, log_prior = log_joint(self._vae, x, z[:, None])
        return log_likelihood.double() + log_prior.double()

    def log_densities(
        self, x: Images, z: Float[Tensor, "chains batch dims"], start: Start
    ) -> tuple[
        Float[Tensor, "chains batch"], Float[Tensor, "chains batch"], Float[Tensor, "chains batch"]
    ]:
        log_likelihood, log_prior = log_joint(self._vae, x, z)
        return self._first(x, start).log_prob(z), log_likelihood, log_prior

    def _first(self, x: Images, start: Start) -> Distribution:
        """f_0 for images x."""
        f_0: Distribution
        if start == "prior":
            f_0 = self._vae.model.prior().expand([len(x)])
        else:
            f_0 = self._vae.guide.posterior(x)
        return f_0


def blank_images(
    vae: VAE, num_images: int = 1
) -> Float[Tensor, "num_images channels height width"]:
    """Images of zeros in the shape that this VAE is about, ``(num_images, C, H, W)``."""
    blank: Tensor = vae.model.origin.new_zeros(num_images, *vae.image_shape)
    return blank
