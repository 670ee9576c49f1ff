"""Training steps of the default network on digits: this program, on one thread and two; NumPyro."""

from itertools import islice

from benchmarks.contest import Contestant, Unit, contest, device, plain, ratio, write
from vae_pyro.data import Digits, batches
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.objectives import ELBO
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import train
from vae_pyro.vae import build_vae

LATENT_DIM, BATCH_SIZE, LEARNING_RATE = 10, 64, 1e-3
EPOCHS = 20  # of a round
ROUNDS = 7
OURS = "vae_pyro"


def ours(num_threads: int) -> Unit:
    data, where = Digits().load(), device()
    images = data.train.images.to(where)
    assert data.num_levels is not None
    likelihood = Bernoulli(data.num_levels)
    with RandomStream("initial weights", 0).active():
        vae = build_vae(LATENT_DIM, data.image_shape, MLP(), likelihood, DiagNormal).to(where)
    order = RandomStream("batches", 0, where).generator
    records = train(
        vae,
        ELBO(),
        lambda: batches(images, lambda x: likelihood.prepare(x, order), BATCH_SIZE, order),
        epochs=10**6,
        learning_rate=LEARNING_RATE,
        noise=RandomStream("training", 0, where),
        compiled=True,
        last_batch=len(images) % BATCH_SIZE,
        num_threads=num_threads,
    )
    return lambda: [record.elbo for record in islice(records, EPOCHS)][-1]


def numpyro() -> Unit:
    from benchmarks.peers import numpyro_sweep

    return numpyro_sweep.epochs(EPOCHS, LATENT_DIM)


CONTESTANTS = {
    OURS: Contestant(ours, {"num_threads": 1}),
    "vae_pyro, two threads": Contestant(ours, {"num_threads": 2}),
    "NumPyro, jitted epoch": Contestant(numpyro),
}


def main() -> None:
    times, skipped = contest(CONTESTANTS, ROUNDS)
    num_steps = EPOCHS * -(-len(Digits().load().train.images) // BATCH_SIZE)
    table = [["", "ms / step", "/ ours"]]
    table += [
        [name, f"{1e3 * t.median / num_steps:.2f}", f"{ratio(times, name, OURS):.2f}"]
        for name, t in times.items()
    ]
    write("digits", {"times": plain(times, OURS), "skipped": skipped}, table)
