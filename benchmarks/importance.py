"""Importance-sampled log p(x) of MNIST: this program, Pyro's own function, JAX, and the floor."""

import math
from collections.abc import Mapping
from contextlib import ExitStack

import pyro
import torch
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor

from benchmarks import training, workload
from benchmarks.contest import RESULTS, Contestant, Unit, contest, device, plain, ratio, write
from vae_pyro.compilation import accelerated
from vae_pyro.compilation.precision import fast_arithmetic
from vae_pyro.log_marginal import ImportanceSampling
from vae_pyro.vae import VAE

ROUNDS = 5
NUM_SAMPLES = 5000
NUM_IMAGES = 100
JAX_CHUNKS = ((100, 2), (100, 5), (100, 10), (100, 25), (50, 50), (20, 100))
FLOOR_ROWS = (500, 1000, 2500, 5000, 10_000)
OURS = "vae_pyro"
FLOOR = "matrix products alone"
OURS_OVER_FLOOR = "ours / matrix products"
_SCOPE = ExitStack()
WEIGHTS = RESULTS / "weights.pt"


def trained() -> tuple[VAE, Tensor]:
    """The VAE after a few epochs, the same for all contestants, and the images."""
    data = workload.load(device())
    vae = workload.build(data.images.device)
    vae.load_state_dict(torch.load(WEIGHTS, weights_only=True))
    return vae.eval(), data.test_x[:NUM_IMAGES]


def ours() -> Unit:
    vae, x = trained()
    # As in an evaluation of all test images; the graph is kept until the process ends.
    _SCOPE.enter_context(accelerated(x.device, mode=True))
    return lambda: ImportanceSampling(NUM_SAMPLES)(vae, x).mean()


def pyros_own() -> Unit:
    """Image by image, because Pyro returns weights that are joint over a batch."""
    vae, x = trained()

    def run() -> float:
        total = 0.0
        with torch.no_grad(), pyro.get_param_store().scope():
            for image in x.split(1):
                log_w, _, _ = vectorized_importance_weights(
                    vae.model, vae.guide, image, num_samples=NUM_SAMPLES, max_plate_nesting=1
                )
                total += (log_w.logsumexp(0) - math.log(NUM_SAMPLES)).item()
        return total / len(x)

    return run


def in_jax(images_at_once: int, samples_at_once: int) -> Unit:
    from benchmarks.peers import jax_vae

    return jax_vae.importance_sampling(*trained(), NUM_SAMPLES, images_at_once, samples_at_once)


def products(rows: int) -> Unit:
    """The decoder's two matrix products and nothing else."""
    vae, _ = trained()
    first, second = workload.layers(vae)[2:]
    z = torch.randn(rows, first.in_features, device=first.weight.device)
    hidden = torch.randn(rows, second.in_features, device=first.weight.device)
    w1, w2 = first.weight.T, second.weight.T

    def run() -> float:
        with torch.no_grad(), fast_arithmetic(z.device):
            for _ in range(NUM_IMAGES * NUM_SAMPLES // rows):
                z @ w1
                last = hidden @ w2
            return last[0, 0].item()

    return run


def fastest(candidates: Mapping[str, Contestant]) -> dict[str, Contestant]:
    """The fastest of them on this machine; empty if all were skipped."""
    times, _ = contest(candidates, rounds=2)
    best = sorted(times, key=lambda name: times[name].median)[:1]
    return {name: candidates[name] for name in best}


def main() -> None:
    data = workload.load(device())
    WEIGHTS.parent.mkdir(exist_ok=True)
    torch.save(training.trained(data, epochs=5).state_dict(), WEIGHTS)
    print(" the floor's best number of rows:")
    floor = fastest({f"{n} rows": Contestant(products, {"rows": n}) for n in FLOOR_ROWS})
    print(" JAX's best chunk:")
    jax = fastest(
        {
            f"{images} images x {samples} samples": Contestant(
                in_jax, {"images_at_once": images, "samples_at_once": samples}
            )
            for images, samples in JAX_CHUNKS
        }
    )
    times, skipped = contest(
        {
            OURS: Contestant(ours),
            "Pyro's own": Contestant(pyros_own),
            **{f"JAX, jitted, {chunk}": contestant for chunk, contestant in jax.items()},
            FLOOR: next(iter(floor.values())),
        },
        ROUNDS,
    )
    vae, x = trained()
    std_error = ImportanceSampling(NUM_SAMPLES)(vae, x).mean_std_error()
    table = [["", "s / 100 images", "/ ours", "log p(x)"]]
    for name, t in times.items():
        value = "" if name == FLOOR else f"{t.values[-1]:.2f}"
        if name == OURS:
            value += f" ± {std_error:.2f}"
        table.append([name, f"{t.median:.2f}", f"{ratio(times, name, OURS):.2f}", value])
    over = ratio(times, OURS, FLOOR)
    table.append([OURS_OVER_FLOOR, "", f"{over:.2f}", ""])
    result = {"times": plain(times, OURS), OURS_OVER_FLOOR: over, "std_error": std_error}
    write("importance", {**result, "skipped": skipped}, table)
