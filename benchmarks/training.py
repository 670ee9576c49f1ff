"""One epoch of MNIST: this program, stock Pyro, PyTorch by hand, NumPyro, and the floor."""

from collections.abc import Iterator
from itertools import islice

import torch

from benchmarks import workload
from benchmarks.contest import Contestant, Unit, contest, device, plain, ratio, write
from vae_pyro.compilation.precision import Precision, fast_arithmetic
from vae_pyro.data import batches
from vae_pyro.objectives import ELBO
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import EpochRecord, train
from vae_pyro.vae import VAE

ROUNDS = 7
OURS = "vae_pyro, compiled"
FLOOR = "matrix products alone"


def records(
    data: workload.Workload,
    vae: VAE,
    *,
    compiled: bool,
    batch_size: int = workload.BATCH_SIZE,
    precision: Precision = "float32",
) -> Iterator[EpochRecord]:
    """Train as the program does; yields a record per epoch, without end."""
    where = data.images.device
    likelihood = vae.model.likelihood
    order = RandomStream("batches", 0, where).generator
    return train(
        vae,
        ELBO(),
        lambda: batches(
            data.images,
            lambda images: likelihood.prepare(images, order),
            batch_size,
            order,
        ),
        epochs=10**6,
        learning_rate=workload.LEARNING_RATE,
        noise=RandomStream("training", 0, where),
        compiled=compiled,
        precision=precision,
    )


def ours(*, compiled: bool, precision: Precision = "float32") -> Unit:
    data = workload.load(device())
    vae = workload.build(data.images.device)
    epochs = records(data, vae, compiled=compiled, precision=precision)
    return lambda: next(epochs).elbo


def trained(data: workload.Workload, epochs: int) -> VAE:
    """A trained VAE, for the benchmarks of evaluation."""
    vae = workload.build(data.images.device)
    for _ in islice(records(data, vae, compiled=True), epochs):
        pass
    return vae


def stock_pyro() -> Unit:
    from benchmarks.peers import torch_vae

    return torch_vae.stock_pyro(workload.load(device()).images)


def by_hand(*, compiled: bool) -> Unit:
    from benchmarks.peers import torch_vae

    return torch_vae.by_hand(workload.load(device()).images, compiled=compiled)


def numpyro() -> Unit:
    from benchmarks.peers import jax_vae

    return jax_vae.numpyro_epoch(workload.load(device()).images)


def products() -> Unit:
    """Only the matrix products of an epoch, forward and backward."""
    layers = workload.layers(workload.build(device()))
    with torch.no_grad():
        weights = [layer.weight.T.clone() for layer in layers]
        inputs = [torch.rand(workload.BATCH_SIZE, len(w), device=w.device) for w in weights]
        outputs = [a @ w for a, w in zip(inputs, weights, strict=True)]

    def run() -> float:
        with torch.no_grad(), fast_arithmetic(weights[0].device):
            for _ in range(workload.NUM_BATCHES):
                for number, (a, w, b) in enumerate(zip(inputs, weights, outputs, strict=True)):
                    a @ w
                    last = a.T @ b
                    if number:  # the images need no gradient
                        b @ w.T
        return last[0, 0].item()

    return run


CONTESTANTS = {
    OURS: Contestant(ours, {"compiled": True}),
    "vae_pyro, compiled, bfloat16": Contestant(ours, {"compiled": True, "precision": "bfloat16"}),
    "vae_pyro, eager": Contestant(ours, {"compiled": False}),
    "Pyro, stock SVI": Contestant(stock_pyro),
    "PyTorch by hand, eager": Contestant(by_hand, {"compiled": False}),
    "PyTorch by hand, compiled": Contestant(by_hand, {"compiled": True}),
    "NumPyro, jitted epoch": Contestant(numpyro),
    FLOOR: Contestant(products),
}


def main() -> None:
    times, skipped = contest(CONTESTANTS, ROUNDS)
    table = [["", "s / epoch", "/ ours", f"train ELBO, epoch {ROUNDS + 1}"]]
    table += [
        [
            name,
            f"{t.median:.2f}",
            f"{ratio(times, name, OURS):.2f}",
            "" if name == FLOOR else f"{t.values[-1]:.2f}",
        ]
        for name, t in times.items()
    ]
    write("training", {"times": plain(times, OURS), "skipped": skipped}, table)
