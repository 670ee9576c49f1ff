"""Streams are reproducible, apart from each other, and leave the global generator alone."""

import torch

from vae_pyro.randomness import RandomStream


def draws(stream: RandomStream) -> torch.Tensor:
    with stream.active():
        return torch.randn(100)


def test_name_and_seed_decide_the_numbers() -> None:
    same = draws(RandomStream("training", 3))
    assert torch.equal(same, draws(RandomStream("training", 3)))
    assert not torch.equal(same, draws(RandomStream("training", 4)))
    assert not torch.equal(same, draws(RandomStream("evaluation", 3)))


def test_a_stream_goes_on_where_it_stopped() -> None:
    stream = RandomStream("training", 0)
    first, second = draws(stream), draws(stream)
    with RandomStream("training", 0).active():
        assert torch.equal(torch.randn(100), first)
        torch.rand(5)  # what happens inside belongs to the stream
    assert not torch.equal(first, second)


def test_the_global_generator_is_put_back_even_after_an_error() -> None:
    before = torch.get_rng_state()
    try:
        with RandomStream("training", 0).active():
            torch.randn(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)
