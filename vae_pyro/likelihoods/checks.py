"""Inputs that are refused: each message names what was given, what is needed, and the way out."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from vae_pyro.errors import DataError

T = TypeVar("T")


def require_images(x: object, image_shape: tuple[int, int, int], weights: Tensor) -> None:
    """Refuse anything but a batch of prepared images.

    Whether the pixel values lie in a likelihood's support is checked by ``Likelihood.check``.

    Args:
        x: what was given; should be ``(N, C, H, W)``, N at least 1.
        image_shape: ``(C, H, W)``.
        weights: a tensor with the dtype and device that x must have.

    Raises:
        DataError: where x is no tensor, holds levels that were not prepared, or has another shape,
            dtype or device.
    """
    shape = ", ".join(map(str, image_shape))
    wanted = f"x: needs prepared images, a tensor of the shape (N, {shape})"
    if isinstance(x, Tensor) and not x.is_floating_point():
        raise DataError(
            f"{wanted}, got {_describe(x)}: whole numbers are levels as a data set stores them; "
            'let it prepare them for the likelihood, x = data.prepared("test", vae)'
        )
    x = _required_tensor(x, wanted, weights)
    if x.ndim == 4 and tuple(x.shape[1:]) == image_shape and len(x):
        return
    way_out = "this VAE was built for images of another shape"
    if x.numel() == 0:
        way_out = "it holds no images"
    elif tuple(x.shape) == image_shape:
        way_out = "for a single image, add the batch axis: x[None]"
    elif x.shape[1:].numel() == torch.Size(image_shape).numel():
        way_out = f"give the images their axes: x.reshape(-1, {shape})"
    raise DataError(f"{wanted}, got {_describe(x)}: {way_out}")


def require_points(z: object, latent_dim: int, weights: Tensor) -> None:
    """Refuse anything but points of latent space, ``(*batch, latent_dim)``.

    Raises:
        DataError: where z is no tensor, or has another shape, dtype or device.
    """
    wanted = f"z: needs points of latent space, a tensor of the shape (*batch, {latent_dim})"
    z = _required_tensor(z, wanted, weights)
    if z.shape[-1:] != (latent_dim,):
        raise DataError(
            f"{wanted}, got {_describe(z)}: the last axis is for the latent dimensions, of which "
            f"this VAE has {latent_dim}"
        )


def require_positive(name: str, value: float) -> None:
    """Refuse an option that is not positive.

    Raises:
        ValueError: naming the option.
    """
    if not value > 0:
        raise ValueError(f"{name}: must be positive, got {value}")


def require_whole(name: str, value: object) -> None:
    """Refuse an option that is not a whole number from 1 up.

    Raises:
        ValueError: naming the option.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: must be a whole number from 1 up, got {value!r}")


def whole_shape(image_shape: object) -> tuple[int, int, int]:
    """``(C, H, W)``, as three whole numbers from 1 up.

    Raises:
        ValueError: where it is anything else.
    """
    if not isinstance(image_shape, Sequence) or len(image_shape) != 3:
        raise ValueError(f"image_shape: must be three numbers, (C, H, W), got {image_shape!r}")
    for size in image_shape:
        require_whole("image_shape", size)
    channels, height, width = image_shape
    return channels, height, width


def built(given: Any, kind: type[T], name: str, *arguments: Any, **options: Any) -> T:
    """An instance of ``kind``: what is given, or what it returns when it is called.

    Args:
        given: an instance, or a class or function that takes the arguments and options.
        kind: the class that is needed.
        name: of the argument, for messages.
        *arguments: what the program passes.
        **options: what the user passes.

    Raises:
        TypeError: where neither is an instance of ``kind``.
        ValueError: where there are options for an instance.
    """
    if isinstance(given, kind):
        if options:
            raise ValueError(f"{name}_options: this {name} is already built; leave them out")
        return given
    made = given(*arguments, **options) if callable(given) else given
    if not isinstance(made, kind):
        raise TypeError(
            f"{name}: must be a {kind.__name__} of {kind.__module__}, or a class or function that "
            f"returns one, got {given!r}"
        )
    return made


def _required_tensor(given: object, wanted: str, weights: Tensor) -> Tensor:
    name = wanted[0]
    if not isinstance(given, Tensor):
        way_out = f"convert it: torch.as_tensor({name}, dtype={weights.dtype})"
    elif given.dtype != weights.dtype:
        way_out = f"the weights are {weights.dtype}; convert it: {name}.to({weights.dtype})"
    elif given.device != weights.device:
        way_out = f"the weights are on {weights.device}; move it: {name}.to(vae.device)"
    else:
        return given
    raise DataError(f"{wanted}, got {_describe(given)}: {way_out}")


def _describe(given: object) -> str:
    """``float32 of the shape (5, 64) on cpu``; ``numpy.ndarray of the shape (5, 64)``; ``list``."""
    if isinstance(given, Tensor):
        dtype = str(given.dtype).removeprefix("torch.")
        return f"{dtype} of the shape {tuple(given.shape)} on {given.device}"
    kind = f"{type(given).__module__}.{type(given).__qualname__}".removeprefix("builtins.")
    shape = getattr(given, "shape", None)
    return kind if shape is None else f"{kind} of the shape {tuple(shape)}"
