"""How many z's are decoded at once, and what decoding one costs."""

import torch
from torch import Tensor

from vae_pyro.compilation.operations import Operations
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.program import Images, ModelAndGuide
from vae_pyro.vae import VAE

# Decoder outputs computed in one go, 16 MB: fewer make the matrix products slower, more leave a
# processor's last cache.
CHUNK_SIZE = 2**22
# Multiply-adds of a matrix product that take as long as log p of one parameter: about 10 ns.
_PER_PARAMETER = 300


def rows_per_chunk(vae: ModelAndGuide, x: Images, chunk_size: int = CHUNK_SIZE) -> int:
    """How many z's to decode at once for images like x ``(N, C, H, W)``."""
    # Below 1,024 outputs it is the hidden layers, not the image, that fill the cache.
    return max(1, chunk_size // max(pair_of(vae).outputs_per_row(x), 1024))


def multiply_adds(vae: VAE) -> int:
    """What one evaluation of p(x | z) costs, in multiply-adds.

    Those of the decoder's matrix products and convolutions, which are more than its weights where
    weights are shared between pixels; and the likelihood's elementwise functions. No fewer than
    there are weights, where a decoder computes by other functions, such as ``torch.einsum``.
    """
    operations = Operations()
    with torch.no_grad(), operations:
        parameters: Tensor = vae.model.decoder(vae.model.origin[None])
    weights = sum(w.numel() for w in vae.model.decoder.parameters() if w.ndim > 1)
    return max(operations.total // 2, weights) + _PER_PARAMETER * parameters.numel()


def num_alike(total: int, at_once: int, size: int) -> int:
    """How many parts have this size, where ``total`` is split into parts of ``at_once``."""
    return total // at_once if size == at_once else 1
