"""What is kept of the log weights of many images: running sums, taken in chunk by chunk."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.log_marginal.chunking import CHUNK_SIZE, num_alike, rows_per_chunk
from vae_pyro.log_marginal.drawing import drawing_log_weights, pair_of
from vae_pyro.log_marginal.estimator import OnProgress
from vae_pyro.log_marginal.program import Images, ModelAndGuide
from vae_pyro.log_marginal.proposals import THE_GUIDE, Proposal
from vae_pyro.log_marginal.running import RunningWeights
from vae_pyro.log_marginal.weights import LogWeights

_BLOCK = 50_000  # log weights


@dataclass(frozen=True)
class WeightSummary:
    """What is kept of K log weights per image; every field is float64, ``(batch,)``.

    Attributes:
        num_samples: K.
        bounds: for each group size k, the value and standard error of log (1/k) sum_j w_j averaged
            over the K // k disjoint groups: an unbiased estimate of the IWAE-k bound.
        effective_sample_size: between 1 and K.
        pareto_k: k-hat of the largest weights; NaN where K is too small to fit a tail.
    """

    num_samples: int
    bounds: dict[int, tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]]
    effective_sample_size: Float[Tensor, " batch"]
    pareto_k: Float[Tensor, " batch"]


def summarise_log_weights(
    vae: ModelAndGuide,
    x: Images,
    num_samples: int,
    group_sizes: Sequence[int],
    on_progress: OnProgress | None = None,
    proposal: Proposal = THE_GUIDE,
    chunk_size: int = CHUNK_SIZE,
) -> WeightSummary:
    """Draw and weigh K samples per image in chunks, keeping running sums only.

    Memory is bounded by ``chunk_size`` whatever K and the number of images.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        num_samples: K.
        group_sizes: the k of each bound, none above K.
        on_progress: called after every chunk.
        proposal: where the samples come from.
        chunk_size: decoder outputs computed at once.

    Raises:
        ValueError: where a group size lies outside 1..K.
    """
    if any(not 1 <= k <= num_samples for k in group_sizes):
        raise ValueError(f"group sizes must lie in 1..{num_samples}, got {sorted(group_sizes)}")
    pair_of(vae).check(x)
    parts = []
    done, elbo_sum = 0, 0.0
    rows = rows_per_chunk(vae, x, chunk_size)
    # Few images with many z's each, so that the encoder runs rarely.
    at_once = min(len(x), max(1, rows // num_samples))
    size = _even(num_samples, max(1, rows // at_once))
    draws = math.ceil(num_samples / size)
    with torch.no_grad(), accelerated(x.device):
        for images in x.split(at_once * max(1, _BLOCK // (num_samples * at_once))):
            running = RunningWeights(num_samples, group_sizes, len(images))
            columns = []
            for few in images.split(at_once):
                calls = draws * num_alike(len(x), at_once, len(few))
                draw = drawing_log_weights(vae, few, size, calls, proposal)
                columns.append(_blocks(draw, few, num_samples))
            for log_w in (torch.cat(blocks, 1) for blocks in zip(*columns, strict=True)):
                running.update(log_w)
                done += log_w.numel()
                elbo_sum += log_w.sum().item()
                if on_progress is not None:
                    on_progress(done / (num_samples * len(x)), f"ELBO {elbo_sum / done:.2f} nats")
            parts.append(running)
    return WeightSummary(
        num_samples=num_samples,
        bounds={
            k: (
                torch.cat([part.bounds[k].value for part in parts]),
                torch.cat([part.bounds[k].std_error for part in parts]),
            )
            for k in group_sizes
        },
        effective_sample_size=torch.cat([part.total.effective_sample_size for part in parts]),
        pareto_k=torch.cat([part.pareto_k for part in parts]),
    )


def _even(total: int, at_most: int) -> int:
    """The size of parts that are nearly equal, so that hardly any of the last one is wasted."""
    return math.ceil(total / math.ceil(total / at_most))


def _blocks(
    draw: Callable[[Tensor], LogWeights], images: Tensor, num_samples: int
) -> Iterator[Tensor]:
    """``num_samples`` log weights of each image, float64, ``(some, batch)`` at a time.

    The samples of several calls are handed on together, because taking them in costs much the same
    for any number. What the last call has too much is left out.
    """
    left = num_samples
    block: list[Tensor] = []
    while left:
        block.append(draw(images).total[:left].double())
        left -= len(block[-1])
        if not left or len(block) * block[0].numel() >= _BLOCK:
            yield torch.cat(block).cpu()
            block = []
