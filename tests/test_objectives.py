"""Objectives against closed forms and quadrature: values, gradients, and the ELBO beside them."""

import math
from collections.abc import Sequence

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from tests.linear_gaussian import LinearGaussian
from vae_pyro.errors import ConfigError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal
from vae_pyro.likelihoods import Normal
from vae_pyro.networks import Linear
from vae_pyro.objectives import ELBO, IWAE, BetaELBO, DReG, ELBOAnalyticKL, Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training.svi import train
from vae_pyro.vae import VAE, build_vae


def losses_and_gradients(
    objective: Objective, vae: VAE, x: Tensor, repeats: int
) -> tuple[Tensor, Tensor]:
    """What SVI is given, many times: ``(repeats, losses)`` and ``(repeats, parameters)``."""
    losses, gradients = [], []
    estimator = objective.estimator()
    for _ in range(repeats):
        vae.zero_grad()
        with pyro.get_param_store().scope():
            loss = estimator.loss_and_grads(vae.model, vae.guide, x)
        losses.append(loss if isinstance(loss, tuple) else (loss,))
        gradients.append(torch.cat([p.grad.flatten() for p in vae.parameters()]))
    return torch.tensor(losses, dtype=torch.float64), torch.stack(gradients)


def assert_mean(draws: Tensor, exact: Tensor | float) -> None:
    """Within 4.5 standard errors of the mean, entry by entry."""
    std_error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - exact).abs() <= 4.5 * std_error + 1e-9).all()


def gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(parameters))])


@pytest.mark.parametrize("kind", [ELBO, ELBOAnalyticKL])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_elbos_are_the_closed_form(kind: type[Objective], num_particles: int) -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(30)
    exact = truth.elbo(x).sum()
    losses, gradients = losses_and_gradients(kind(num_particles), truth.vae, x, 500)
    assert_mean(-losses[:, 0], exact.item())
    assert_mean(-gradients, gradient(exact, truth.vae.parameters()))


def small_vae(guide: type = DiagNormal) -> VAE:
    """One latent dimension, so that two particles are a quadrature in the plane."""
    torch.manual_seed(3)
    return build_vae(1, (1, 1, 3), Linear(), Normal(None, 0.8), guide, seed=None).double()


def iwae_2_by_quadrature(vae: VAE, x: Tensor) -> Tensor:
    """E[log (w_1 + w_2) / 2] for each image, differentiable in every parameter."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    e, weight = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    loc, raw_scale = vae.guide.encoder(x).chunk(2, -1)
    scale = nn.functional.softplus(raw_scale) + 1e-4
    z = loc + scale * e  # (batch, nodes)
    residual = x.flatten(1)[:, None] - vae.model.decoder(z.unsqueeze(-1)).flatten(2)
    log_2_pi = math.log(2 * math.pi)
    log_w = (
        (-0.5 * (residual / 0.8) ** 2 - math.log(0.8) - 0.5 * log_2_pi).sum(-1)
        - 0.5 * z**2
        + 0.5 * e**2
        + scale.log()
    )
    bound = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - math.log(2)
    return (bound * weight[:, None] * weight).sum((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_iwae_value_and_gradient_are_the_quadratures(kind: type[Objective]) -> None:
    vae, x = small_vae(), torch.randn(10, 1, 1, 3).double()
    exact = iwae_2_by_quadrature(vae, x).sum()
    losses, gradients = losses_and_gradients(kind(2), vae, x, 2000)
    assert_mean(-losses[:, 0], exact.item())
    assert_mean(-gradients, gradient(exact, vae.parameters()))
    assert losses[:, 0].mean() < losses[:, 1].mean() - 0.1  # the ELBO beside it is lower


@pytest.mark.parametrize("kind", [IWAE, DReG])
def test_with_the_true_posterior_the_gradient_is_that_of_log_p(kind: type[Objective]) -> None:
    truth = LinearGaussian()
    x = truth.sample(20)
    decoder = truth.decoder
    covariance = decoder.weight @ decoder.weight.T + 0.49 * torch.eye(6)
    marginal = torch.distributions.MultivariateNormal(decoder.bias, covariance)
    exact = gradient(marginal.log_prob(x.flatten(1)).sum(), decoder.parameters())
    losses, gradients = losses_and_gradients(kind(7), truth.vae, x, 600)
    size = len(exact)
    assert_mean(-gradients[:, :size], exact)
    torch.testing.assert_close(-losses[:, 0], truth.log_marginal(x).sum().expand(600))
    noise = gradients[:, size:].abs().max()
    if kind is DReG:  # nothing left to learn, and no noise about it
        assert noise < 1e-5
    else:
        assert noise > 0.1


def test_dreg_is_less_noisy_with_many_particles() -> None:
    truth = LinearGaussian(shift=0.1, stretch=1.2)
    x = truth.sample(10)
    of_guide = slice(sum(p.numel() for p in truth.decoder.parameters()), None)
    iwae, dreg = (
        losses_and_gradients(kind(64), truth.vae, x, 200)[1][:, of_guide].std(0).norm()
        for kind in (IWAE, DReG)
    )
    assert dreg < iwae / 2


@pytest.mark.slow
@pytest.mark.parametrize("guide", [FullRankNormal, Flow])
def test_dreg_works_with_every_guide(guide: type) -> None:
    """Its expected gradient is IWAE's, also where q correlates and has parameters of its own."""
    torch.manual_seed(3)
    vae = build_vae(2, (1, 1, 3), Linear(), Normal(None, 0.8), guide, seed=None).double()
    with torch.no_grad():
        for parameter in vae.guide.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(10, 1, 1, 3).double()
    iwae, dreg = (losses_and_gradients(kind(3), vae, x, 1200)[1] for kind in (IWAE, DReG))
    std_error = ((iwae.var(0) + dreg.var(0)) / 1200).sqrt()
    assert ((iwae.mean(0) - dreg.mean(0)).abs() <= 5 * std_error + 1e-9).all()  # 5,000 numbers
    assert all(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.parametrize(
    "objective", [ELBO(2), ELBOAnalyticKL(2), IWAE(3), DReG(3), BetaELBO(2, beta=1.0)]
)
def test_a_loss_can_be_asked_for_without_gradients(objective: Objective) -> None:
    """``SVI.evaluate_loss`` gives what ``SVI.step`` would, and leaves the parameters alone."""
    truth = LinearGaussian(stretch=1.4)
    x = truth.sample(2000)
    with pyro.get_param_store().scope():
        svi = pyro.infer.SVI(
            truth.vae.model, truth.vae.guide, pyro.optim.Adam({}), objective.estimator()
        )
        loss = svi.evaluate_loss(x)
    elbo = truth.elbo(x)
    lowest = -(loss[-1] if isinstance(loss, tuple) else loss)
    # The spread of log w over z is of the order of that of the ELBO over x, per image.
    assert abs(lowest - elbo.sum().item()) < 4.5 * elbo.std().item() * 2000**0.5
    assert all(parameter.grad is None for parameter in truth.vae.parameters())


@pytest.mark.parametrize(
    ("free_bits", "analytic_kl"), [(0.0, False), (0.35, False), (50.0, False), (0.0, True)]
)
def test_beta_elbo_is_the_closed_form(free_bits: float, analytic_kl: bool) -> None:
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(30)
    kl = truth.kl(x).mean(0)
    assert kl.min() < 0.35 < kl.max()  # so that the middle case charges one dimension of two
    charged = kl.clamp(min=free_bits).sum()
    exact = truth.reconstruction(x).sum() - 3 * len(x) * charged
    objective = BetaELBO(2, beta=3.0, free_bits=free_bits, analytic_kl=analytic_kl)
    losses, gradients = losses_and_gradients(objective, truth.vae, x, 600)
    assert_mean(-losses[:, 0], exact.item())
    assert_mean(-losses[:, 1], truth.elbo(x).sum().item())  # neither beta nor free bits in it
    assert_mean(-gradients, gradient(exact, truth.vae.parameters()))


def test_beta_one_is_the_elbo_draw_by_draw() -> None:
    truth = LinearGaussian(stretch=1.4)
    losses, _ = losses_and_gradients(BetaELBO(3, beta=1.0), truth.vae, truth.sample(5), 4)
    torch.testing.assert_close(losses[:, 0], losses[:, 1])


def test_an_analytic_kl_has_no_noise() -> None:
    """From the same z's, beta = 3 and beta = 1 differ by exactly 2 KL."""
    truth = LinearGaussian(shift=0.2, stretch=1.4)
    x = truth.sample(5)
    losses = []
    for beta in (3.0, 1.0):
        torch.manual_seed(0)
        objective = BetaELBO(2, beta=beta, analytic_kl=True)
        losses.append(losses_and_gradients(objective, truth.vae, x, 3)[0][:, 0])
    exact = 2 * truth.kl(x).sum().detach()
    torch.testing.assert_close(losses[0] - losses[1], exact.double().expand(3))


def test_beta_warms_up_linearly_from_zero() -> None:
    objective = BetaELBO(beta=2.0, warmup_epochs=4)
    betas = [objective.at_epoch(epoch).beta for epoch in range(1, 8)]
    assert betas == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert BetaELBO(beta=2.0).at_epoch(1).beta == 2.0
    short = objective.shortened(0.5)
    assert [short.at_epoch(epoch).beta for epoch in range(1, 4)] == [0.0, 1.0, 2.0]
    assert ELBO().shortened(0.5) == ELBO()


@pytest.mark.parametrize("objective", [IWAE(5), DReG(5), BetaELBO(beta=30.0), BetaELBO(beta=0.0)])
def test_an_epoch_reports_the_true_elbo_beside_the_objective(objective: Objective) -> None:
    truth = LinearGaussian(shift=0.3, stretch=1.5)
    x = truth.sample(4000)
    (record,) = train(
        truth.vae,
        objective,
        lambda: x.split(100),
        epochs=1,
        learning_rate=1e-12,
        noise=RandomStream("training", 0),
    )
    elbo = truth.elbo(x).mean().item()
    assert abs(record.elbo - elbo) < 4.5 * record.elbo_std_error
    if isinstance(objective, BetaELBO):
        exact = (truth.reconstruction(x) - objective.beta * truth.kl(x).sum(-1)).mean().item()
        assert abs(record.objective - exact) < 4.5 * record.objective_std_error
    else:
        assert elbo < record.objective < truth.log_marginal(x).mean()


@pytest.mark.parametrize("objective", [ELBOAnalyticKL(), BetaELBO(analytic_kl=True)])
def test_without_a_closed_form_the_kl_is_refused_in_words(objective: Objective) -> None:
    vae, x = small_vae(Flow), torch.randn(2, 1, 1, 3).double()
    with pytest.raises(ConfigError, match=r"no closed form; use objective=elbo"):
        losses_and_gradients(objective, vae, x, 1)


def test_free_bits_need_independent_dimensions() -> None:
    vae, x = small_vae(FullRankNormal), torch.randn(2, 1, 1, 3).double()
    with pytest.raises(ConfigError, match=r"objective.free_bits needs .*guide=diag_normal"):
        losses_and_gradients(BetaELBO(free_bits=0.1), vae, x, 1)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"num_particles": 0}, "num_particles"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.inf}, "beta"),
        ({"warmup_epochs": -1}, "warmup_epochs"),
        ({"free_bits": math.nan}, "free_bits"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: must be"):
        BetaELBO(**options)
