"""Each likelihood is a distribution over its own kind of x."""

from itertools import product

import pytest
import torch
from scipy import stats
from torch.autograd import gradcheck

from vae_pyro.errors import DataError
from vae_pyro.likelihoods import Bernoulli


def test_bernoulli_sums_to_one_over_all_images() -> None:
    images = torch.tensor(list(product([0.0, 1.0], repeat=6))).reshape(64, 1, 2, 3)
    parameters = 3 * torch.randn(5, 1, 1, 2, 3)
    log_p = Bernoulli()(parameters).log_prob(images[:, None])
    assert log_p.shape == (64, 5)
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(5))


def test_bernoulli_is_scipys() -> None:
    parameters, x = torch.randn(4, 1, 2, 3, 3).double(), torch.randint(0, 2, (4, 2, 3, 3)).double()
    p = torch.sigmoid(parameters.squeeze(1)).numpy()
    expected = stats.bernoulli.logpmf(x.numpy(), p).sum((-1, -2, -3))
    torch.testing.assert_close(Bernoulli()(parameters).log_prob(x), torch.from_numpy(expected))


def test_bernoulli_gradient_is_the_finite_difference() -> None:
    x = torch.randint(0, 2, (3, 1, 2, 2)).double()
    parameters = torch.randn(3, 1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda p: Bernoulli()(p).log_prob(x), (parameters,))


def test_bernoulli_extremes_are_finite() -> None:
    parameters = torch.tensor([-50.0, 50.0]).reshape(2, 1, 1, 1, 1).requires_grad_()
    for x in (torch.zeros(1, 1, 1), torch.ones(1, 1, 1)):
        log_p = Bernoulli()(parameters).log_prob(x)
        (gradient,) = torch.autograd.grad(log_p.sum(), parameters)
        assert log_p.isfinite().all()
        assert gradient.isfinite().all()


def test_bernoulli_draws_have_their_mean() -> None:
    p_x = Bernoulli()(torch.randn(1, 2, 3, 3))
    draws = p_x.sample((20_000,))
    std_error = (p_x.mean * (1 - p_x.mean) / 20_000).sqrt()
    assert ((draws.mean(0) - p_x.mean).abs() < 4.5 * std_error).all()


@pytest.mark.parametrize("x", [0.5, -1.0, 255.0, float("nan")])
def test_bernoulli_refuses_what_is_not_binary(x: float) -> None:
    with pytest.raises(DataError, match="1 of 2 pixel values"):
        Bernoulli().check(torch.tensor([x, 1.0]).reshape(1, 1, 1, 2))
