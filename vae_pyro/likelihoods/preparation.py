"""How an image becomes the x that a likelihood scores: binarised or dequantised."""

import numpy as np
import torch
from torch import Tensor


def binarise(images: Tensor, num_levels: int, generator: torch.Generator) -> Tensor:
    """Draw each pixel anew: x = 1 with probability ``level / (num_levels - 1)``.

    The draw compares integers, u ~ Uniform{0, .., num_levels - 2} and x = [u < level], so the
    probability is the ratio itself and not the nearest multiple of 1/256.

    Args:
        images: levels ``0 .. num_levels - 1``, ``uint8`` of any shape.
        num_levels: so that the highest level is always drawn as 1.
        generator: on the device of ``images``.

    Returns:
        float32 zeros and ones of the same shape.

    Source: Salakhutdinov and Murray (2008); Burda et al. (2016), section 5.
    """
    return (_below(num_levels - 1, images, generator) < images).to(torch.float32)


def _below(high: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform draws of 0 .. high - 1, ``uint8``, in the shape of ``like``."""
    if like.device.type != "cpu":
        return torch.empty_like(like).random_(0, high, generator=generator)
    # One byte a pixel of the generator's 64-bit words, where ``random_`` would spend four. Bytes
    # above the last whole multiple of ``high`` are drawn again, so no value is favoured.
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


def dequantise(images: Tensor, num_levels: int, generator: torch.Generator) -> Tensor:
    """Draw a real number from each pixel's cell: x = (level + u) / num_levels, u ~ Uniform(0, 1).

    For a density p, E_u[log p(x)] - D log num_levels <= log P(image), where P(image) is the
    integral of p over the image's cell and D the number of pixels and channels.

    Args:
        images: levels ``0 .. num_levels - 1``, ``uint8`` of any shape.
        num_levels: how many cells the interval (0, 1) is cut into.
        generator: on the device of ``images``.

    Returns:
        float32 of the same shape, strictly between 0 and 1.

    Source: Uria et al. (2013); for the bound, Theis et al. (2016), section 3.1.
    """
    u = torch.rand(images.shape, generator=generator, device=images.device)
    return off_the_ends((images + u) / num_levels)


def off_the_ends(x: Tensor) -> Tensor:
    """Numbers between 0 and 1 that rounding let reach neither: some densities are infinite there.

    Args:
        x: float32 of any shape.
    """
    return x.clamp(2**-30, 1 - 2**-24)
