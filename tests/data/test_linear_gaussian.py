"""The synthetic data are what their formula says."""

import pytest
import torch
from scipy.stats import multivariate_normal

from vae_pyro.data import LinearGaussian


def test_log_prob_is_scipys() -> None:
    source = LinearGaussian(side=3, true_latent_dim=2, noise_scale=0.3)
    x = source.load().test.images
    covariance = source.weight @ source.weight.T + 0.09 * torch.eye(9).double()
    exact = multivariate_normal(source.bias.numpy(), covariance.numpy())
    expected = torch.from_numpy(exact.logpdf(x.double().flatten(1).numpy()))
    torch.testing.assert_close(source.log_prob(x), expected, atol=1e-9, rtol=1e-9)


def test_images_have_the_mean_and_covariance_of_the_formula() -> None:
    source = LinearGaussian(num_train=50_000)
    data = source.load()
    assert data.num_levels is None
    assert data.image_shape == (1, 4, 4)
    x = data.train.images.double().flatten(1)
    covariance = source.weight @ source.weight.T + 0.04 * torch.eye(16)
    variance = covariance.diagonal()
    assert ((x.mean(0) - 0.5).abs() < 4.5 * (variance / 50_000).sqrt()).all()
    spread = ((variance[:, None] * variance + covariance**2) / 50_000).sqrt()
    assert ((torch.cov(x.T) - covariance).abs() < 4.5 * spread).all()


def test_columns_are_orthogonal_and_splits_are_not_repeated() -> None:
    source = LinearGaussian()
    gram = source.weight.T @ source.weight
    torch.testing.assert_close(gram, torch.diag(torch.tensor([1.0, 0.75, 0.5]).double() ** 2))
    data = source.load()
    assert not torch.equal(data.valid.images, data.test.images)
    assert source.load().checksum == data.checksum
    assert LinearGaussian(seed=1).load().checksum != data.checksum


@pytest.mark.parametrize(
    "options",
    [
        {"side": 0},
        {"noise_scale": 0.0},
        {"num_test": 1},
        {"true_latent_dim": 17},
        {"binarisation": "static"},
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))}: "):
        LinearGaussian(**options)
