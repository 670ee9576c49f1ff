"""p(x | y) is a distribution for every y, learns what y says, and forgets it afterwards."""

import itertools
import math

import pytest
import torch

from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.log_marginal import ImportanceSampling, Quadrature, log_weights
from vae_pyro.networks import MLP, Conv, Linear, Network
from vae_pyro.objectives import ELBO
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import train
from vae_pyro.vae import ConditionalVAE

EVERY = torch.tensor(list(itertools.product((0.0, 1.0), repeat=4))).reshape(-1, 1, 2, 2)


def build(network: Network, latent_dim: int = 1) -> ConditionalVAE:
    return ConditionalVAE(3, latent_dim, (1, 2, 2), network, Bernoulli(2), DiagNormal).eval()


@pytest.mark.parametrize("network", [Linear(), MLP((16,)), Conv((4,))])
def test_sums_to_one_for_every_class(network: Network) -> None:
    conditional = build(network)
    logs = []
    for y in range(3):
        with conditional.given(y) as vae:
            logs.append(Quadrature()(vae, EVERY).value)
            sampled = ImportanceSampling(20_000)(vae, EVERY)
        assert logs[-1].exp().sum().item() == pytest.approx(1, abs=1e-4)
        error = (sampled.value - logs[-1]).abs()
        assert (error < 5 * sampled.std_error + 1e-3).all()
    assert (logs[0] - logs[1]).abs().max() > 1e-3


def test_one_class_for_all_or_one_for_each() -> None:
    conditional = build(MLP((16,)))
    y = torch.arange(16) % 3
    torch.manual_seed(0)
    with conditional.given(y) as vae:
        each = log_weights(vae, EVERY, 5).total
    for label in range(3):
        torch.manual_seed(0)
        with conditional.given(label) as vae:
            alike = log_weights(vae, EVERY, 5).total
        torch.testing.assert_close(each[:, y == label], alike[:, y == label])


def test_learns_what_the_class_says() -> None:
    """Class y lights pixel y, always; log p(x | y) must come near 0 = log 1."""
    torch.manual_seed(0)
    conditional = build(MLP((16,)))
    images = torch.eye(4)[:3].reshape(3, 1, 2, 2)
    order = torch.Generator().manual_seed(0)

    def epoch():
        y = torch.randint(3, (64,), generator=order)
        with conditional.given(y):
            yield images[y]

    noise = RandomStream("training", 0)
    for _ in train(conditional.vae, ELBO(), epoch, epochs=500, learning_rate=1e-2, noise=noise):
        pass
    for y in range(3):
        with conditional.given(y) as vae:
            log_p = Quadrature()(vae, images).value
        assert log_p[y] > math.log(0.95)
        assert (log_p[torch.arange(3) != y] < math.log(0.05)).all()


def test_wrong_classes_and_no_class() -> None:
    conditional = build(Linear())
    for y in (3, -1, torch.tensor([0, 5])):
        with pytest.raises(ValueError, match="from 0 to 2"), conditional.given(y):
            pass
    with conditional.given(1), conditional.given(2):
        pass
    with pytest.raises(ValueError, match="within"):
        log_weights(conditional.vae, EVERY, 2)
