"""How an image becomes the x that a likelihood scores: binarised or dequantised."""

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor


def binarise(
    images: UInt8[Tensor, "*shape"], num_levels: int, generator: torch.Generator
) -> Float32[Tensor, "*shape"]:
    """A binary image: each pixel is 1 with probability ``level / (num_levels - 1)``.

    The probability is exact: an integer u ~ Uniform{0, .., num_levels - 2} is compared with the
    level, x = [u < level].

    Args:
        images: levels ``0 .. num_levels - 1``, of any shape.
        num_levels: the highest level is always drawn as 1.
        generator: on the device of ``images``.

    Returns:
        zeros and ones of the same shape.

    Source: Salakhutdinov and Murray (2008); Burda et al. (2016), section 5.

    >>> import torch
    >>> from vae_pyro.likelihoods import binarise
    >>> levels = torch.tensor([0, 16, 16, 0], dtype=torch.uint8)
    >>> binarise(levels, num_levels=17, generator=torch.Generator().manual_seed(0))
    tensor([0., 1., 1., 0.])
    """
    return (_below(num_levels - 1, images, generator) < images).to(torch.float32)


def _below(high: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws from 0 .. high - 1, ``uint8``, in the shape of ``like``."""
    if like.device.type != "cpu":
        return torch.empty_like(like).random_(0, high, generator=generator)
    # One byte of the generator's 64-bit words for a pixel, where ``random_`` would use four. A byte
    # above the last whole multiple of ``high`` is drawn again, so that all values are equally
    # probable.
    draws = _random_bytes(like.numel(), generator)
    limit = 256 - 256 % high
    again = np.flatnonzero(draws >= limit)
    while len(again):
        draws[again] = _random_bytes(len(again), generator)
        again = again[draws[again] >= limit]
    if high <= 128:  # several bytes stand for one value
        draws %= high
    return torch.from_numpy(draws).reshape(like.shape)


def _random_bytes(count: int, generator: torch.Generator) -> np.ndarray:
    words = torch.empty(-(-count // 8), dtype=torch.int64)
    return words.random_(-(2**63), None, generator=generator).numpy().view(np.uint8)[:count]


def dequantise(
    images: UInt8[Tensor, "*shape"], num_levels: int, generator: torch.Generator
) -> Float32[Tensor, "*shape"]:
    """A real-valued image: x = (level + u) / num_levels, u ~ Uniform(0, 1) for each pixel.

    For a density p, E_u[log p(x)] - D log num_levels <= log P(image), where P(image) is the
    integral of p over the image's cell and D the number of pixels and channels.

    Args:
        images: levels ``0 .. num_levels - 1``, of any shape.
        num_levels: the interval (0, 1) has so many cells, one for each level.
        generator: on the device of ``images``.

    Returns:
        numbers strictly between 0 and 1, of the same shape.

    Source: Uria et al. (2013); for the bound, Theis et al. (2016), section 3.1.

    >>> import torch
    >>> from vae_pyro.likelihoods import dequantise
    >>> levels = torch.tensor([0, 8, 16], dtype=torch.uint8)
    >>> x = dequantise(levels, num_levels=17, generator=torch.Generator().manual_seed(0))
    >>> (x * 17).floor()
    tensor([ 0.,  8., 16.])
    """
    u = torch.rand(images.shape, generator=generator, device=images.device)
    return strictly_inside((images + u) / num_levels)


def strictly_inside(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x, at least 2^-30 and at most 1 - 2^-24.

    float32 rounds some draws to 0 or 1, where a density on (0, 1) can be infinite.

    Args:
        x: numbers from 0 to 1.
    """
    return x.clamp(2**-30, 1 - 2**-24)
