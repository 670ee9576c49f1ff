"""A VAE is a pair of Pyro programs over z and x: a model p(x, z) and its guide q(z | x)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import EllipsisType
from typing import Any

import torch
from pyro.distributions import Distribution
from torch import Tensor, nn

from vae_pyro.guide import DiagNormal, Guide
from vae_pyro.likelihoods import Bernoulli, Likelihood, checks
from vae_pyro.model import Model
from vae_pyro.networks import MLP, Label, LabelledNetwork, Network
from vae_pyro.randomness import drawing


class VAE(nn.Module):
    """A model p(x, z) = p(x | z) p(z) and its guide q(z | x).

    Args:
        model: a Pyro program, called as ``vae.model(x)``.
        guide: likewise, ``vae.guide(x)``.
        image_shape: ``(C, H, W)``; where it is None, the shape of what the model decodes.

    >>> import vae_pyro as vp
    >>> vae = vp.build_vae(latent_dim=2, image_shape=(1, 8, 8))
    >>> vae
    VAE(latent_dim=2, image_shape=(1, 8, 8), Bernoulli, DiagNormal, 375,268 weights)
    >>> x = vae.sample(5, seed=0)
    >>> vae.encode(x).mean.shape, vae.reconstruct(x).shape
    (torch.Size([5, 2]), torch.Size([5, 1, 8, 8]))
    """

    def __init__(
        self, model: Model, guide: Guide, image_shape: tuple[int, int, int] | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.guide = guide
        self._image_shape = image_shape

    @property
    def latent_dim(self) -> int:
        """The size of z, D."""
        return self.model.latent_dim

    @property
    def likelihood(self) -> Likelihood:
        """The family of p(x | z)."""
        return self.model.likelihood

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where x and z must be."""
        device: torch.device = self.model.origin.device
        return device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        if self._image_shape is None:
            with torch.no_grad():
                channels, height, width = self.model.decode(self.model.origin[None]).event_shape
            self._image_shape = (channels, height, width)
        return self._image_shape

    def encode(self, x: Tensor) -> Distribution:
        """q(z | x), with gradients.

        Args:
            x: prepared images, ``(N, C, H, W)``.

        Returns:
            a distribution with batch shape ``(N,)`` and event shape ``(D,)``.

        Raises:
            DataError: where x is not a batch of images prepared for this VAE.

        >>> import torch, vae_pyro as vp
        >>> q = vp.build_vae(3, (1, 8, 8)).encode(torch.zeros(5, 1, 8, 8))
        >>> q.batch_shape, q.event_shape, q.rsample().shape
        (torch.Size([5]), torch.Size([3]), torch.Size([5, 3]))
        """
        self.require_images(x)
        self.likelihood.check(x)
        return self.guide.posterior(x)

    def decode(self, z: Tensor) -> Distribution:
        """p(x | z), with gradients.

        Args:
            z: points of latent space, ``(*batch, D)``.

        Returns:
            a distribution with batch shape ``(*batch,)`` and event shape ``(C, H, W)``.

        Raises:
            DataError: where z is not a tensor of this shape with the weights' dtype and device.

        >>> import torch, vae_pyro as vp
        >>> vp.build_vae(3, (1, 8, 8)).decode(torch.zeros(5, 3)).mean.shape
        torch.Size([5, 1, 8, 8])
        """
        checks.require_points(z, self.latent_dim, self.model.origin)
        return self.model.decode(z)

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """E[x | z] at z = E_q(z|x)[z], without gradients.

        Args:
            x: prepared images, ``(N, C, H, W)``.

        Returns:
            images, ``(N, C, H, W)``.

        Raises:
            DataError: as ``encode``.
        """
        self.require_images(x)
        self.likelihood.check(x)
        images: Tensor = self.model.decode(self.guide.posterior_mean(x)).mean
        return images

    @torch.no_grad()
    def sample(self, n: int, seed: int | None = None, *, means: bool = False) -> Tensor:
        """Samples from the VAE: z ~ p(z), then x ~ p(x | z), without gradients.

        Args:
            n: how many images.
            seed: fixes the images; with None, PyTorch's default generator is used.
            means: return E[x | z] in place of x.

        Returns:
            images, ``(n, C, H, W)``.

        Raises:
            ValueError: where n is not a whole number from 1 up.

        >>> import vae_pyro as vp
        >>> vp.build_vae(2, (1, 8, 8)).sample(16, seed=0).unique()
        tensor([0., 1.])
        """
        checks.require_whole("n", n)
        with drawing("samples", seed, self.device):
            p_x = self.model.decode(self.model.prior().sample((n,)))
            images: Tensor = p_x.mean if means else self.likelihood.into_support(p_x.sample())
        return images

    def require_images(self, x: Tensor) -> None:
        """Refuse anything but a batch of images that the networks accept.

        Raises:
            DataError: naming what x is, what it must be and how to convert it.
        """
        checks.require_images(x, self.image_shape, self.model.origin)

    def __repr__(self) -> str:
        count = sum(weight.numel() for weight in self.parameters())
        return (
            f"{type(self).__name__}(latent_dim={self.latent_dim}, image_shape={self.image_shape}, "
            f"{type(self.likelihood).__name__}, {type(self.guide).__name__}, {count:,} weights)"
        )


def build_vae(
    latent_dim: int,
    image_shape: Sequence[int],
    network: Network | Callable[[], Network] = MLP,
    likelihood: Likelihood | Callable[[int | None], Likelihood] | None = None,
    guide: Guide | Callable[..., Guide] = DiagNormal,
    guide_options: Mapping[str, Any] | None = None,
    train_x: Tensor | None = None,
    *,
    num_levels: int | EllipsisType | None = ...,
    seed: int | None = 0,
) -> VAE:
    """A VAE with new weights, assembled from one choice of each kind.

    Args:
        latent_dim: the size of z.
        image_shape: ``(C, H, W)``.
        network: builds both the encoder and the decoder; an instance, or a class or function
            without arguments.
        likelihood: the family of p(x | z), by default Bernoulli; an instance, or a class or
            function of ``num_levels``.
        guide: the family of q(z | x); a class or function of (latent_dim, build_encoder,
            **guide_options), or an instance for this latent_dim and image_shape.
        guide_options: further keyword arguments of the guide.
        train_x: prepared training images, ``(N, C, H, W)``. With ``network.output_bias="data"``
            the decoder's output bias starts at what fits them best; without them, at zero.
        num_levels: how many values a pixel of the data can have, ``data.num_levels``. Needed where
            ``likelihood`` is a class or function; where that is left out too, 2.
        seed: fixes the initial weights, which are those of the command with this seed; with None,
            PyTorch's default generator is used.

    Raises:
        ValueError: where a number is out of range, or two arguments contradict each other.
        TypeError: where an argument is not of its kind.

    >>> import vae_pyro as vp
    >>> vp.build_vae(2, (1, 8, 8), likelihood=vp.likelihoods.Normal, num_levels=17)
    VAE(latent_dim=2, image_shape=(1, 8, 8), Normal, DiagNormal, 375,268 weights)
    """
    checks.require_whole("latent_dim", latent_dim)
    shape = checks.whole_shape(image_shape)
    network = checks.built(network, Network, "network")
    likelihood = _likelihood(likelihood, num_levels)
    initial = torch.zeros(likelihood.num_parameters, *shape)
    if train_x is not None and network.output_bias == "data":
        initial = likelihood.initial_parameters(train_x)
    encoder = partial(network.encoder, shape)
    with drawing("initial weights", seed):
        model = Model(latent_dim, network.decoder(latent_dim, initial), likelihood)
        guide = checks.built(guide, Guide, "guide", latent_dim, encoder, **(guide_options or {}))
    if guide.latent_dim != latent_dim:
        raise ValueError(f"guide: has latent_dim={guide.latent_dim}, but latent_dim={latent_dim}")
    return VAE(model, guide, shape)


def _likelihood(
    given: Likelihood | Callable[[int | None], Likelihood] | None,
    num_levels: int | EllipsisType | None,
) -> Likelihood:
    if isinstance(num_levels, EllipsisType):
        if callable(given) and not isinstance(given, Likelihood):
            name = getattr(given, "__name__", "this")
            raise ValueError(
                f"num_levels: likelihood={name} needs it; give num_levels=data.num_levels, or "
                f"likelihood={name}(data.num_levels)"
            )
        num_levels = 2
    elif isinstance(given, Likelihood) and num_levels != given.num_levels:
        raise ValueError(
            f"num_levels: is {num_levels}, but the likelihood has {given.num_levels}; give one"
        )
    return checks.built(Bernoulli if given is None else given, Likelihood, "likelihood", num_levels)


class ConditionalVAE(nn.Module):
    """z ~ N(0, I), x ~ p_theta(x | z, y), and the guide q_phi(z | x, y), for a class y.

    y enters both networks as one-hot numbers: as further inputs of the decoder, and as further
    channels of the encoder, each constant over the image. Within ``given(y)`` it is an ordinary
    VAE, which can be trained and sampled, and whose log p(x | y) can be estimated, like any other.

    Args:
        num_classes: y is a whole number from 0 to num_classes - 1.
        latent_dim, image_shape, network, likelihood, guide, guide_options: as in ``build_vae``;
            the weights come from PyTorch's default generator.

    Source: Sohn et al. (2015), with a prior of z that does not depend on y.

    >>> import vae_pyro as vp
    >>> from vae_pyro.vae import ConditionalVAE
    >>> parts = vp.networks.MLP(), vp.likelihoods.Bernoulli(2), vp.guide.DiagNormal
    >>> with ConditionalVAE(10, 2, (1, 8, 8), *parts).given(7) as sevens:
    ...     sevens.sample(3).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        num_classes: int,
        latent_dim: int,
        image_shape: tuple[int, int, int],
        network: Network,
        likelihood: Likelihood,
        guide: Callable[..., Guide],
        guide_options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._label = Label(num_classes)
        labelled = LabelledNetwork(network, self._label)
        self.vae = build_vae(
            latent_dim, image_shape, labelled, likelihood, guide, guide_options, seed=None
        )

    @contextmanager
    def given(self, y: int | Tensor) -> Iterator[VAE]:
        """The VAE of p(x | y), within the ``with`` block.

        Args:
            y: one class for all images; or one for each image of a batch, int64 ``(batch,)``:
                then every x in the block has these classes in this order.

        Raises:
            ValueError: where y is not a class.
        """
        classes = torch.as_tensor(y)
        if classes.min() < 0 or classes.max() >= self._label.num_classes:
            raise ValueError(f"y: must be from 0 to {self._label.num_classes - 1}, got {y}")
        before, self._label.y = self._label.y, classes
        try:
            yield self.vae
        finally:
            self._label.y = before
