"""A VAE that an earlier version trained and saved, in ``tests/saved``, still gives its numbers.

It was saved on 2026-11-24 by ``python run.py latent_dim=2 'network.hidden=[8]' training.epochs=3``;
the numbers are those that the code of that day gave for it.
"""

from pathlib import Path

import pytest
import torch

import vae_pyro
from vae_pyro.data import Digits
from vae_pyro.log_marginal import AIS, Estimator, ImportanceSampling
from vae_pyro.randomness import RandomStream

THEN = [
    (ImportanceSampling(200), [-41.37019, -43.19095, -40.97093, -41.79856]),
    (AIS(20, 4, 2), [-41.25980, -42.65921, -40.59624, -41.69900]),
]


@pytest.mark.parametrize(("estimator", "numbers"), THEN)
def test_an_earlier_version_gave_the_same_numbers(
    estimator: Estimator, numbers: list[float]
) -> None:
    vae = vae_pyro.load(Path(__file__).parent / "saved")
    x = Digits().load().prepared("test", vae, num_images=4)
    with RandomStream("check", 0).active():
        value = estimator(vae, x).value
    # Another processor may sum in another order.
    torch.testing.assert_close(value, torch.tensor(numbers).double(), rtol=0, atol=1e-3)
