"""Networks keep every batch axis and give the number of outputs that was asked for."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_pyro.networks import ACTIVATIONS, MLP

shapes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
batches = st.lists(st.integers(1, 3), max_size=3).map(tuple)


@given(shapes, batches, st.lists(st.integers(1, 7), max_size=3).map(tuple), st.integers(1, 6))
def test_shapes(
    image: tuple[int, int, int], batch: tuple[int, ...], hidden: tuple[int, ...], outputs: int
) -> None:
    network = MLP(hidden)
    assert network.encoder(image, outputs)(torch.randn(*batch, *image)).shape == (*batch, outputs)
    decoded = network.decoder(outputs, 2, image)(torch.randn(*batch, outputs))
    assert decoded.shape == (*batch, 2, *image)


def test_the_decoder_mirrors_the_encoder() -> None:
    def widths(module: torch.nn.Module) -> list[int]:
        linear = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
        return [linear[0].in_features, *(layer.out_features for layer in linear)]

    network = MLP((30, 20))
    assert widths(network.encoder((1, 2, 2), 6)) == [4, 30, 20, 6]
    assert widths(network.decoder(3, 1, (1, 2, 2))) == [3, 20, 30, 4]


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_make_it_nonlinear(name: str) -> None:
    encoder = MLP((8,), name).encoder((1, 1, 2), 1).double()
    a, b = torch.randn(2, 1, 1, 1, 2).double()
    with torch.no_grad():
        middle = encoder((a + b) / 2)
        assert not torch.allclose(middle, (encoder(a) + encoder(b)) / 2, atol=1e-9)


def test_a_width_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="hidden"):
        MLP((4, 0))
