"""Every metric of the contract, on a model whose exact answers are known."""

import math

import numpy as np
import pytest
import torch

from tests.linear_gaussian import PIXELS, LinearGaussian
from vae_pyro.evaluation import evaluate, validate
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, Normal
from vae_pyro.networks import MLP
from vae_pyro.vae import build_vae


def test_metrics_are_the_closed_forms() -> None:
    """K = 150 does not divide the 200 samples: one group and a rest."""
    truth = LinearGaussian(shift=0.2, stretch=1.3)
    x = truth.sample(400)
    m = evaluate(truth.vae, x, 200, [10, 150])
    exact = truth.log_marginal(x).mean().item()
    elbo = truth.elbo(x).mean().item()
    assert m["test/log_px"] == pytest.approx(exact, abs=4.5 * m["test/log_px_std_error"])
    assert m["test/elbo"] == pytest.approx(elbo, abs=4.5 * m["test/elbo_std_error"])
    assert m["test/gap"] == pytest.approx(m["test/log_px"] - m["test/elbo"])
    assert not any(name.startswith("test/bits_per_dim") for name in m)  # x is not made of levels
    assert m["test/elbo"] < m["test/iwae_10"] < exact
    assert 0 < m["test/iwae_150_std_error"] < 2 * m["test/log_px_std_error"]
    assert m["test/active_units"] == 2
    assert all(math.isfinite(value) for value in m.values())


def test_bits_per_dim_is_of_the_levels() -> None:
    """A density of x = (level + u) / L is 1 / L^D of a probability: D log L nats are added."""
    truth = LinearGaussian(num_levels=17)
    m = evaluate(truth.vae, truth.sample(50), 30, [1])
    expected = (-m["test/log_px"] + PIXELS * math.log(17)) / (PIXELS * math.log(2))
    assert m["test/bits_per_dim"] == pytest.approx(expected)
    assert m["test/bits_per_dim_std_error"] == pytest.approx(
        m["test/log_px_std_error"] / (PIXELS * math.log(2)), abs=1e-12
    )
    vae = build_vae(2, (1, 2, 3), MLP((4,)), Bernoulli(17), DiagNormal)
    m = evaluate(vae, torch.bernoulli(torch.full((5, 1, 2, 3), 0.5)), 30, [1])
    assert m["test/bits_per_dim"] == pytest.approx(-m["test/log_px"] / (6 * math.log(2)))


def test_standard_errors_contain_the_dequantisation() -> None:
    """Over fresh draws of x from the same images, the number moves as much as it says."""
    likelihood = Normal(5, scale=0.05)
    vae = build_vae(2, (1, 2, 3), MLP((4,)), likelihood, DiagNormal)
    images = torch.randint(0, 5, (60, 1, 2, 3), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    values, std_errors = [], []
    for _ in range(150):
        x = torch.cat([likelihood.prepare(images, generator) for _ in range(3)])
        m = evaluate(vae, x, 30, [1], draws=3)
        values.append(m["test/log_px"])
        std_errors.append(m["test/log_px_std_error"])
    spread = torch.tensor(values).std().item()
    assert spread == pytest.approx(np.mean(std_errors), rel=4.5 / (2 * 149) ** 0.5)
    fixed = evaluate(vae, x, 30, [1])["test/log_px_std_error"]
    assert fixed < 0.7 * spread  # the draw of x is most of it
    with pytest.raises(ValueError, match="180 values are not 7 draws"):
        evaluate(vae, x, 30, [1], draws=7)


def test_diagnostics_tell_a_good_guide_from_a_bad_one() -> None:
    truth = LinearGaussian()
    x = truth.sample(100)
    perfect = evaluate(truth.vae, x, 200, [1])
    assert perfect["test/effective_sample_size"] == pytest.approx(200)
    assert perfect["test/pareto_k_high"] == 0
    narrow = LinearGaussian(stretch=0.1)
    bad = evaluate(narrow.vae, x, 200, [1])
    assert bad["test/effective_sample_size"] < 50
    assert bad["test/pareto_k_high"] > 0.5
    assert bad["test/log_px"] < truth.log_marginal(x).mean() - 0.1  # too low, and k-hat said so


def test_validation_parts_add_up() -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.3)
    x = truth.sample(300)
    m = validate(truth.vae, x, 50)
    elbo = truth.elbo(x).mean().item()
    assert m["valid/elbo"] == pytest.approx(elbo, abs=4.5 * m["valid/elbo_std_error"])
    assert m["valid/elbo"] == pytest.approx(m["valid/reconstruction"] - m["valid/kl"])
    assert torch.tensor(list(m.values())).isfinite().all()
