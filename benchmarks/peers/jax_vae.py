"""The same VAE in NumPyro (training) and JAX (importance sampling), jitted."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import torch
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO
from torch import Tensor

from benchmarks import workload
from benchmarks.workload import BATCH_SIZE, LATENT_DIM, LEARNING_RATE
from vae_pyro.guide import MIN_SCALE
from vae_pyro.vae import VAE

Weights = dict[str, tuple[Any, Any]]


def weights_of(vae: VAE) -> Weights:
    """Its affine maps as ``(in, out)`` matrices and biases."""
    names = ("encoder_1", "encoder_2", "decoder_1", "decoder_2")
    return {
        name: tuple(jnp.asarray(t.detach().cpu().numpy()) for t in (layer.weight.T, layer.bias))
        for name, layer in zip(names, workload.layers(vae), strict=True)
    }


def encode(weights: Weights, x: Any) -> tuple[Any, Any]:
    (w1, b1), (w2, b2) = weights["encoder_1"], weights["encoder_2"]
    loc, raw_scale = jnp.split(jax.nn.softplus(x @ w1 + b1) @ w2 + b2, 2, axis=-1)
    return loc, jax.nn.softplus(raw_scale) + MIN_SCALE


def decode(weights: Weights, z: Any) -> Any:
    (w1, b1), (w2, b2) = weights["decoder_1"], weights["decoder_2"]
    return jax.nn.softplus(z @ w1 + b1) @ w2 + b2


def numpyro_epoch(images: Tensor) -> Callable[[], float]:
    """A whole epoch, shuffling and binarisation included, as one jitted loop over batches."""
    start = weights_of(workload.build(torch.device("cpu")))
    grey = jnp.asarray(images.flatten(1).cpu().numpy())
    num_batches = len(grey) // BATCH_SIZE

    def model(x: Any) -> None:
        names = ("decoder_1", "decoder_2")
        decoder = numpyro.param("decoder", {name: start[name] for name in names})
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT_DIM), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(decoder, z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        names = ("encoder_1", "encoder_2")
        encoder = numpyro.param("encoder", {name: start[name] for name in names})
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(*encode(encoder, x)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
    state = svi.init(random.PRNGKey(0), jnp.zeros((BATCH_SIZE, grey.shape[1])))

    @jax.jit
    def run(state: Any, key: Any) -> tuple[Any, Any]:
        order_key, noise_key = random.split(key)
        order = random.permutation(order_key, len(grey)).reshape(num_batches, BATCH_SIZE)

        def step(number: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            state, total = carry
            levels = grey[order[number]]
            x = random.bernoulli(random.fold_in(noise_key, number), levels / 255.0)
            state, loss = svi.update(state, x.astype(jnp.float32))
            return state, total - loss

        return lax.fori_loop(0, num_batches, step, (state, 0.0))

    key = random.PRNGKey(1)

    def epoch() -> float:
        nonlocal state, key
        key, this = random.split(key)
        state, total = jax.block_until_ready(run(state, this))
        return float(total) / len(grey)

    return epoch


def importance_sampling(
    vae: VAE, x: Tensor, num_samples: int, images_at_once: int, samples_at_once: int
) -> Callable[[], float]:
    """Mean log p(x) by a jitted loop over chunks of samples, with a running log-sum-exp."""
    weights = weights_of(vae)
    flat = jnp.asarray(x.flatten(1).cpu().numpy())
    half_log_two_pi = 0.5 * math.log(2 * math.pi)

    def log_normal(e: Any) -> Any:
        return (-0.5 * e**2 - half_log_two_pi).sum(-1)

    @jax.jit
    def log_marginal(weights: Weights, x: Any, key: Any) -> Any:
        loc, scale = encode(weights, x)

        def chunk(number: Any, log_sum: Any) -> Any:
            shape = (samples_at_once, *loc.shape)
            e = random.normal(random.fold_in(key, number), shape)
            z = loc + scale * e
            logits = decode(weights, z)
            log_likelihood = (x * logits - jax.nn.softplus(logits)).sum(-1)
            log_q = log_normal(e) - jnp.log(scale).sum(-1)
            log_w = log_likelihood + log_normal(z) - log_q
            return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_w, 0))

        num_chunks = num_samples // samples_at_once
        log_sum = lax.fori_loop(0, num_chunks, chunk, jnp.full(len(x), -jnp.inf))
        return log_sum - math.log(num_chunks * samples_at_once)

    def run() -> float:
        total = 0.0
        for start in range(0, len(flat), images_at_once):
            part = flat[start : start + images_at_once]
            total += float(log_marginal(weights, part, random.PRNGKey(start)).sum())
        return total / len(flat)

    return run
