"""The sweep ``latent_dim=2,10,20`` of digits as somebody would write it in NumPyro, as a script.

The same networks, batches, epochs, validation and snapshots as ``python run.py``; log p(x) by plain
importance sampling with 5,000 samples. It records nothing, and has no error bars.
"""

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from numpyro.infer import SVI, Trace_ELBO

from vae_pyro.data import Dataset, Digits, Split

mpl.use("agg")
from matplotlib import pyplot as plt

HIDDEN, BATCH_SIZE, EPOCHS, SAMPLES, AT_ONCE = 400, 64, 200, 5_000, 100
SNAPSHOTS = (0, 1, 2, 5, 10, 21, 44, 94, 200)
Weights = dict[str, Any]


def perceptron(weights: Weights, name: str, x: Any) -> Any:
    for layer in range(3):
        w, b = weights[f"{name}{layer}"]
        x = x @ w + b
        x = jax.nn.relu(x) if layer < 2 else x
    return x


def fresh(key: Any, sizes: dict[str, tuple[int, ...]]) -> Weights:
    weights = {}
    for name, widths in sizes.items():
        for layer, (m, n) in enumerate(itertools.pairwise(widths)):
            key, this = random.split(key)
            spread = 1 / math.sqrt(m)
            weights[f"{name}{layer}"] = (
                random.uniform(this, (m, n), minval=-spread, maxval=spread),
                jnp.zeros(n),
            )
    return weights


def encode(weights: Weights, x: Any) -> tuple[Any, Any]:
    loc, raw = jnp.split(perceptron(weights, "encoder", x), 2, axis=-1)
    return loc, jax.nn.softplus(raw) + 1e-4


def programs(start: Weights, latent_dim: int) -> tuple[Callable[[Any], None], ...]:
    def model(x: Any) -> None:
        decoder = numpyro.param("decoder", {k: v for k, v in start.items() if k[0] == "d"})
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent_dim), 1.0).to_event(1))
            logits = perceptron(decoder, "decoder", z)
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.param("encoder", {k: v for k, v in start.items() if k[0] == "e"})
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(*encode(encoder, x)).to_event(1))

    return model, guide


def shares_of_white(data: Dataset, split: Split) -> Any:
    """Its images, ``(N, D)``."""
    assert data.num_levels is not None
    return jnp.asarray(split.images.flatten(1).numpy(), jnp.float32) / (data.num_levels - 1)


def begin(key: Any, grey: Any, latent_dim: int) -> tuple[SVI, Any]:
    """The SVI and its first state."""
    encoder = (grey.shape[1], HIDDEN, HIDDEN, 2 * latent_dim)
    decoder = (latent_dim, HIDDEN, HIDDEN, grey.shape[1])
    start = fresh(key, {"encoder": encoder, "decoder": decoder})
    svi = SVI(*programs(start, latent_dim), numpyro.optim.Adam(1e-3), Trace_ELBO())
    return svi, svi.init(key, grey[:BATCH_SIZE])


def training(svi: SVI, grey: Any, valid_x: Any = None) -> Callable[[Any, Any], tuple[Any, Any]]:
    """(state, key) -> the state after an epoch, and the ELBO of the validation images, if any."""
    whole = len(grey) // BATCH_SIZE

    @jax.jit
    def epoch(state: Any, key: Any) -> tuple[Any, Any]:
        order_key, noise_key, valid_key = random.split(key, 3)
        order = random.permutation(order_key, len(grey))
        x = random.bernoulli(noise_key, grey[order]).astype(jnp.float32)

        def step(number: Any, state: Any) -> Any:
            batch = lax.dynamic_slice_in_dim(x, number * BATCH_SIZE, BATCH_SIZE)
            return svi.update(state, batch)[0]

        state = lax.fori_loop(0, whole, step, state)
        if len(grey) % BATCH_SIZE:
            state, _ = svi.update(state, x[whole * BATCH_SIZE :])
        if valid_x is None:
            return state, 0.0
        weights, loss = svi.get_params(state), Trace_ELBO(num_particles=5)
        return state, -loss.loss(valid_key, weights, svi.model, svi.guide, valid_x) / len(valid_x)

    return epoch


@jax.jit
def log_px(weights: Weights, x: Any, key: Any) -> Any:
    loc, scale = encode(weights["encoder"], x)
    prior, posterior = dist.Normal(0.0, 1.0), dist.Normal(loc, scale)

    def chunk(number: Any, so_far: Any) -> Any:
        z = posterior.sample(random.fold_in(key, number), (AT_ONCE,))
        logits = perceptron(weights["decoder"], "decoder", z)
        total = dist.Bernoulli(logits=logits).log_prob(x).sum(-1)
        total += (prior.log_prob(z) - posterior.log_prob(z)).sum(-1)
        return jnp.logaddexp(so_far, jax.nn.logsumexp(total, 0))

    total = lax.fori_loop(0, SAMPLES // AT_ONCE, chunk, jnp.full(len(x), -jnp.inf))
    return (total - math.log(SAMPLES)).mean()


def draw(weights: Weights, x: Any, labels: Any, z: Any, where: str) -> None:
    side = math.isqrt(x.shape[1])
    loc, _ = encode(weights["encoder"], x)
    for name, latent in (("samples", z), ("reconstructions", loc[:64])):
        means = jax.nn.sigmoid(perceptron(weights["decoder"], "decoder", latent))
        grid = means.reshape(8, 8, side, side).transpose(0, 2, 1, 3).reshape(8 * side, 8 * side)
        figure, axes = plt.subplots(figsize=(5, 5))
        axes.imshow(np.asarray(grid), cmap="gray", vmin=0, vmax=1)
        axes.axis("off")
        figure.savefig(where.format(name))
        plt.close(figure)
    figure, axes = plt.subplots(figsize=(5, 5))
    across, up = np.asarray(loc[:, :2]).T
    axes.scatter(across, up, c=labels, cmap="tab10", s=9)
    figure.savefig(where.format("latent_space"))
    plt.close(figure)


def cell(latent_dim: int, folder: Path) -> float:
    """Train, evaluate and draw; returns log p(x), nats per test image."""
    data, key = Digits().load(), random.PRNGKey(0)
    grey, valid_x, test_x = (
        shares_of_white(data, split) for split in (data.train, data.valid, data.test)
    )
    valid_x = random.bernoulli(random.PRNGKey(7), valid_x).astype(jnp.float32)
    test_x = random.bernoulli(random.PRNGKey(8), test_x).astype(jnp.float32)
    svi, state = begin(key, grey, latent_dim)
    epoch = training(svi, grey, valid_x)
    z = random.normal(key, (64, latent_dim))
    best, kept = -math.inf, svi.get_params(state)
    draw(kept, test_x, data.test.labels, z, f"{folder}/{{}}-0.png")
    for number in range(1, EPOCHS + 1):
        key, this = random.split(key)
        state, elbo = epoch(state, this)
        if float(elbo) > best:
            best, kept = float(elbo), svi.get_params(state)
        if number in SNAPSHOTS:
            now = svi.get_params(state)
            draw(now, test_x, data.test.labels, z, f"{folder}/{{}}-{number}.png")
    return float(log_px(kept, test_x, key))


def epochs(number: int, latent_dim: int) -> Callable[[], float]:
    """So many epochs of training and nothing else, again and again; each returns the ELBO."""
    data, key = Digits().load(), random.PRNGKey(0)
    grey = shares_of_white(data, data.train)
    svi, state = begin(key, grey, latent_dim)
    epoch, loss = training(svi, grey), Trace_ELBO()
    x = random.bernoulli(key, grey).astype(jnp.float32)

    @jax.jit
    def elbo(key: Any, weights: Weights) -> Any:
        return -loss.loss(key, weights, svi.model, svi.guide, x) / len(x)

    def run() -> float:
        nonlocal state, key
        for _ in range(number):
            key, this = random.split(key)
            state, _ = epoch(state, this)
        return float(elbo(key, svi.get_params(state)))

    return run


if __name__ == "__main__":
    for latent_dim in (2, 10, 20):
        place = Path(sys.argv[1]) / str(latent_dim)
        place.mkdir(parents=True)
        print(f"{latent_dim}: log p(x) {cell(latent_dim, place):.2f}", flush=True)
