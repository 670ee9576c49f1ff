"""Active units by their definition."""

import torch

from tests.linear_gaussian import LinearGaussian
from vae_pyro.latent import active_units, posterior_means


def test_active_units_are_those_whose_mean_varies() -> None:
    means = torch.randn(5000, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + 3
    assert active_units(means) == 2  # variances 1, 0.04, 0.0025, 0


def test_posterior_means_are_the_closed_form() -> None:
    truth = LinearGaussian()
    x = truth.sample(25)
    torch.testing.assert_close(posterior_means(truth.vae, x, batch_size=7), truth.posterior_mean(x))
