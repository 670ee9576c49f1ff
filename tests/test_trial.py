"""Few threads where a step is short."""

import pytest
import torch

from vae_pyro.compilation.operations import Operations
from vae_pyro.compilation.precision import threads
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP, Conv, Network
from vae_pyro.objectives import ELBO, IWAE
from vae_pyro.training.trial import threads_for, try_out
from vae_pyro.vae import VAE, build_vae


def build(network: Network, shape: tuple[int, int, int] = (1, 28, 28)) -> VAE:
    return build_vae(10, shape, network, Bernoulli(2), DiagNormal)


@pytest.mark.parametrize("network", [MLP((400, 400)), MLP((30,)), Conv((8, 16))])
@pytest.mark.parametrize("objective", [ELBO(), IWAE(3)])
def test_operations_are_counted_as_pytorchs_own_counter_does(
    network: Network, objective: ELBO | IWAE
) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    vae, x = build(network), torch.zeros(5, 1, 28, 28)
    with FlopCounterMode(display=False) as theirs:
        try_out(vae, objective, x)
    ours = Operations()
    with ours:
        try_out(vae, objective, x)
    assert ours.total == theirs.get_total_flops() > 0


def test_short_steps_take_one_thread_and_long_ones_all() -> None:
    digits, mnist = build(MLP((400, 400)), (1, 8, 8)), build(MLP((400, 400)))
    few, many = torch.zeros(300, 1, 8, 8), torch.zeros(300, 1, 28, 28)
    assert threads_for(digits, ELBO(), few, 64, 2) == 1
    assert threads_for(digits, ELBO(), few, 640, 16) == 7  # 1.5 G operations
    assert threads_for(mnist, ELBO(), many, 256, 2) == 2
    assert threads_for(mnist, ELBO(), many[:8], 256, 2) == 2, "scaled to the size of a batch"
    assert threads_for(mnist, ELBO(), many, 256, 1) == 1


def test_they_are_the_same_at_each_call_and_nothing_else_changes() -> None:
    vae, x = build(MLP((30,))), torch.zeros(5, 1, 28, 28)
    before, state = torch.get_num_threads(), torch.get_rng_state()
    weights = [weight.clone() for weight in vae.parameters()]
    assert len({threads_for(vae, ELBO(), x, 64, 8) for _ in range(3)}) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, weights, vae.parameters()))
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_vae_that_cannot_be_tried_out_is_left_to_the_first_step() -> None:
    vae = build(MLP((30,)))
    with torch.no_grad():
        next(vae.parameters()).fill_(float("nan"))
    assert threads_for(vae, ELBO(), torch.zeros(5, 1, 28, 28), 64, 2) in (1, 2)
