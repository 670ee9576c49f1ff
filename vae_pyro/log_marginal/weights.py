"""log w[k, i] = log p(x_i, z_ik) - log q(z_ik | x_i): the one place where they are computed."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vae_pyro.compilation import Outputs, accelerated, compiled
from vae_pyro.log_marginal.estimate import OnProgress, PerImage
from vae_pyro.log_marginal.proposals import THE_GUIDE, Program, Proposal
from vae_pyro.log_marginal.running import RunningWeights
from vae_pyro.vae import VAE

# Decoder outputs computed in one go, 16 MB: fewer make the matrix products slower, more leave a
# processor's last cache.
CHUNK_SIZE = 2**22
_BLOCK = 50_000  # log weights
# Multiply-adds of a matrix product that take as long as log p of one parameter: about 10 ns.
_PER_PARAMETER = 300


@dataclass(frozen=True)
class LogWeights:
    """The three parts of a log weight, each ``(K, batch)``, nats.

    Attributes:
        log_likelihood: log p(x_i | z_ik).
        log_prior: log p(z_ik).
        log_proposal: log q(z_ik | x_i).
    """

    log_likelihood: Tensor
    log_prior: Tensor
    log_proposal: Tensor

    @property
    def total(self) -> Tensor:
        """log w[k, i], ``(K, batch)``; its mean over k is an ELBO, its log-mean-exp log p(x_i)."""
        return self.log_likelihood + self.log_prior - self.log_proposal


def log_weights(
    vae: VAE, x: Tensor, num_samples: int, proposal: Proposal = THE_GUIDE
) -> LogWeights:
    """Draw z_ik ~ q(z | x_i) and weigh each: one row per sample, one column per image.

    No ``poutine.scale``, beta or subsampling factor enters: Pyro's unscaled log-probabilities are
    read. Gradients flow where the caller has them enabled.

    Args:
        vae: any pair of Pyro programs whose sites have one value per image.
        x: images, ``(batch, C, H, W)``.
        num_samples: K.
        proposal: what stands in for q(z | x); the guide itself, unless told otherwise.
    """
    # A fresh parameter store: evaluating one VAE must leave no trace for the next.
    with pyro.get_param_store().scope():
        traces = particle_traces(vae.model, proposal.program(vae), x, num_samples)
    return read_log_weights(*traces, (num_samples, len(x)))


def drawing_log_weights(
    vae: VAE, x: Tensor, num_samples: int, calls: int, proposal: Proposal = THE_GUIDE
) -> Callable[[Tensor], LogWeights]:
    """``log_weights`` for many x of one shape, compiled where that is asked for and pays.

    Args:
        vae: the pair.
        x: the first images, ``(batch, C, H, W)``.
        num_samples: K.
        calls: how often it will be called.
        proposal: what stands in for q(z | x).

    Returns:
        x ``(batch, C, H, W)`` -> its log weights, without gradients.
    """

    def program(vae: VAE, x: Tensor) -> Outputs:
        drawn = log_weights(vae, x, num_samples, proposal)
        return drawn.log_likelihood, drawn.log_prior, drawn.log_proposal

    run = compiled(program, vae, [x], key=("log_weights", num_samples, proposal), calls=calls)
    return lambda x: LogWeights(*run(x))


def particle_traces(
    model: Program, guide: Program, x: Tensor, num_samples: int
) -> tuple[poutine.Trace, poutine.Trace]:
    """Run the guide K times for every image, and the model with the z's it drew.

    Args:
        model: a Pyro program of x.
        guide: likewise, over the same latent sites.
        x: images, ``(batch, C, H, W)``.
        num_samples: K, the size of a plate at dimension -2.

    Returns:
        the guide's and the model's trace.
    """

    def particles(program: Program) -> Program:
        def run(x: Tensor) -> Any:
            with pyro.plate("particles", num_samples, dim=-2):
                return program(x)

        return run

    guide_trace = poutine.trace(particles(guide)).get_trace(x)
    model_trace = poutine.trace(poutine.replay(particles(model), trace=guide_trace)).get_trace(x)
    return guide_trace, model_trace


def read_log_weights(
    guide_trace: poutine.Trace, model_trace: poutine.Trace, shape: tuple[int, int]
) -> LogWeights:
    """The log weights of what two traces hold.

    Args:
        guide_trace: of one draw of all particles.
        model_trace: of the model with the same z's.
        shape: ``(K, batch)``.
    """
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    log_likelihood, log_prior, log_proposal = (torch.zeros(()) for _ in range(3))
    for site in model_trace.nodes.values():
        if site["type"] == "sample" and not _is_plate(site):
            if site["is_observed"]:
                log_likelihood = log_likelihood + site["unscaled_log_prob"]
            else:
                log_prior = log_prior + site["unscaled_log_prob"]
    for site in guide_trace.nodes.values():
        if site["type"] == "sample" and not _is_plate(site):
            log_proposal = log_proposal + site["unscaled_log_prob"]
    return LogWeights(*(part.expand(shape) for part in (log_likelihood, log_prior, log_proposal)))


def _is_plate(site: dict[str, Any]) -> bool:
    return isinstance(site["fn"], poutine.subsample_messenger._Subsample)


def log_joint(vae: VAE, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """log p(x_i | z) and log p(z) at z's that nobody had to draw; gradients flow.

    Args:
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        z: ``(*points, batch, D)``, or ``(*points, 1, D)`` where all images share the points.

    Returns:
        ``(*points, batch)`` and ``(*points, batch or 1)``, nats, in the model's own precision.
    """
    log_likelihood: Tensor = vae.model.decode(z).log_prob(x)
    log_prior: Tensor = vae.model.prior().log_prob(z)
    return log_likelihood, log_prior


def blank_images(vae: VAE, num_images: int = 1) -> Tensor:
    """Images of zeros in the shape that this VAE is about, ``(num_images, C, H, W)``."""
    with torch.no_grad():
        shape = vae.model.decode(vae.model.origin[None]).event_shape
    blank: Tensor = vae.model.origin.new_zeros(num_images, *shape)
    return blank


def rows_per_chunk(vae: VAE, x: Tensor, chunk_size: int = CHUNK_SIZE) -> int:
    """How many z's to decode at once for images like x ``(N, C, H, W)``."""
    outputs = x[0].numel() * vae.model.likelihood.num_parameters
    # Below 256 outputs it is the hidden layers, not the image, that fill the cache.
    return max(1, chunk_size // max(outputs, 256))


def multiply_adds(vae: VAE) -> int:
    """What one evaluation of p(x | z) costs, in multiply-adds.

    Those of the decoder's matrix products and convolutions, which are more than its weights where
    weights are shared between pixels; and the likelihood's elementwise functions.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        parameters: Tensor = vae.model.decoder(vae.model.origin[None])
    # The counter counts the multiplication and the addition.
    products: int = counter.get_total_flops() // 2
    return products + _PER_PARAMETER * parameters.numel()


def num_alike(total: int, at_once: int, size: int) -> int:
    """How many parts have this size, where ``total`` is split into parts of ``at_once``."""
    return total // at_once if size == at_once else 1


@dataclass(frozen=True)
class WeightSummary:
    """What is kept of K log weights per image; every field is float64, ``(batch,)``.

    Attributes:
        num_samples: K.
        bounds: for each group size k, the value and standard error of log (1/k) sum_j w_j averaged
            over the K // k disjoint groups: an unbiased estimate of the IWAE-k bound.
        effective_sample_size: between 1 and K.
        pareto_k: k-hat of the largest weights; NaN where K is too small to fit a tail.
        gap: log (1/K) sum_k w_k - (1/K) sum_k log w_k, its error from the same weights.
    """

    num_samples: int
    bounds: dict[int, tuple[Tensor, Tensor]]
    effective_sample_size: Tensor
    pareto_k: Tensor
    gap: PerImage


def summarise_log_weights(
    vae: VAE,
    x: Tensor,
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
    vae.model.likelihood.check(x)
    parts = []
    done, elbo_sum = 0, 0.0
    rows = rows_per_chunk(vae, x, chunk_size)
    # Few images with many z's each, so that the encoder is hardly ever asked.
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
        gap=PerImage(
            torch.cat([part.gap for part in parts]),
            torch.cat([part.gap_std_error for part in parts]),
        ),
    )


def _even(total: int, at_most: int) -> int:
    """The size of parts that are nearly equal, so that hardly any of the last one is wasted."""
    return math.ceil(total / math.ceil(total / at_most))


def _blocks(
    draw: Callable[[Tensor], LogWeights], images: Tensor, num_samples: int
) -> Iterator[Tensor]:
    """``num_samples`` log weights of each image, float64, ``(some, batch)`` at a time.

    Several draws are handed on together, because taking them in costs much the same for any number.
    What the last draw has too much is left out.
    """
    left = num_samples
    block: list[Tensor] = []
    while left:
        block.append(draw(images).total[:left].double())
        left -= len(block[-1])
        if not left or len(block) * block[0].numel() >= _BLOCK:
            yield torch.cat(block).cpu()
            block = []
