"""Networks keep every batch axis and give the number of outputs that was asked for."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vae_pyro.networks import ACTIVATIONS, MLP, Activation, Conv, Linear, Network

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))
batches = st.lists(st.integers(1, 3), max_size=3).map(tuple)
widths = st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple)
networks = st.one_of(st.just(Linear()), widths.map(MLP), widths.map(Conv))


@given(networks, shapes, batches, st.integers(1, 6))
def test_shapes(
    network: Network, image: tuple[int, int, int], batch: tuple[int, ...], outputs: int
) -> None:
    x, z = torch.randn(*batch, *image), torch.randn(*batch, outputs)
    assert network.encoder(image, outputs)(x).shape == (*batch, outputs)
    decoder = network.decoder(outputs, torch.zeros(2, *image))
    assert decoder(z).shape == (*batch, 2, *image)


@given(networks)
@settings(max_examples=15)
def test_every_image_is_treated_alone(network: Network) -> None:
    """What is said of an image does not depend on the others of its batch."""
    encoder = network.encoder((1, 4, 6), 3).double()
    decoder = network.decoder(2, torch.zeros(1, 1, 4, 6)).double()
    x, z = torch.randn(5, 1, 4, 6).double(), torch.randn(3, 5, 2).double()
    torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]))
    torch.testing.assert_close(decoder(z)[2, 4], decoder(z[2, 4]))


@pytest.mark.parametrize("network", [Linear(), MLP((6,)), Conv((4, 6))])
@pytest.mark.parametrize("image", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_the_output_starts_about_the_given_parameters(
    network: Network, image: tuple[int, int, int]
) -> None:
    """Each pixel and parameter has its own output bias, and z moves the output from there."""
    initial = 100 * torch.randn(2, *image)
    decoder, z = network.decoder(3, initial), torch.randn(500, 3)
    with torch.no_grad():
        outputs = decoder(z)
    # Whatever else the untrained network adds is of the order of 1.
    assert (outputs.mean(0) - initial).abs().max() < 5
    assert outputs.std(0).min() > 0
    biases = [p for p in decoder.parameters() if p.numel() == initial.numel()]
    assert any(torch.equal(p.detach().reshape(initial.shape), initial) for p in biases)


def test_a_linear_network_is_affine() -> None:
    for module, size in (
        (Linear().encoder((1, 2, 3), 4), (1, 2, 3)),
        (Linear().decoder(5, torch.randn(2, 1, 2, 3)), (5,)),
    ):
        a, b = torch.randn(2, *size)
        torch.testing.assert_close(module(a + b) + module(torch.zeros(size)), module(a) + module(b))


def test_the_decoder_mirrors_the_encoder() -> None:
    def widths(module: nn.Module) -> list[int]:
        linear = [layer for layer in module.children() if isinstance(layer, nn.Linear)]
        return [linear[0].in_features, *(layer.out_features for layer in linear)]

    network = MLP((30, 20))
    assert widths(network.encoder((1, 2, 2), 6)) == [4, 30, 20, 6]
    assert widths(network.decoder(3, torch.zeros(1, 1, 2, 2))) == [3, 20, 30, 4]


def test_a_convolution_sees_neighbours_before_it_sees_the_whole() -> None:
    """Moving a patch by one stride of all stages moves the features, and changes no value."""
    encoder = Conv((4, 6)).encoder((1, 24, 24), 2)[0]  # without the last, fully connected layer
    x = torch.zeros(2, 1, 24, 24)
    patch = torch.randn(4, 4)
    x[0, 0, 8:12, 8:12] = patch
    x[1, 0, 12:16, 8:12] = patch
    with torch.no_grad():
        first, second = encoder(x)
    torch.testing.assert_close(first[:, 1:4, 1:4], second[:, 2:5, 1:4])


def test_residual_blocks_start_as_the_identity() -> None:
    encoder = Conv((4,)).encoder((1, 6, 6), 2)[0].module
    h = torch.randn(2, 4, 3, 3)
    assert torch.equal(encoder[1](h), h)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("network", [MLP, Conv])
def test_activations_make_it_nonlinear(network: type[MLP | Conv], name: Activation) -> None:
    encoder = network((8,), name).encoder((1, 4, 4), 1).double()
    a, b = torch.randn(2, 1, 1, 4, 4).double()
    with torch.no_grad():
        middle = encoder((a + b) / 2)
        assert not torch.allclose(middle, (encoder(a) + encoder(b)) / 2, atol=1e-9)


@pytest.mark.parametrize("widths", [(4, 0), ()])
def test_a_width_of_zero_is_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^hidden: needs one or more"):
        MLP(widths)
    with pytest.raises(ValueError, match=r"^channels: needs one or more"):
        Conv(widths)


INITIAL = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def _linear_layers(network: MLP) -> list[nn.Linear]:
    """Three of an encoder and three of a decoder, the last of each its output layer."""
    torch.manual_seed(0)
    encoder, decoder = network.encoder((1, 8, 8), 50), network.decoder(25, INITIAL)
    parts = [*encoder.modules(), *decoder.modules()]
    layers = [layer for layer in parts if isinstance(layer, nn.Linear)]
    assert len(layers) == 6
    return layers


def test_glorots_initialisation_is_pytorchs_with_zero_biases() -> None:
    """Uniform up to sqrt(6 / (inputs + outputs)); the output's bias is the given one."""
    for number, layer in enumerate(_linear_layers(MLP((300, 200), initialisation="glorot"))):
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        largest = layer.weight.abs().max().item()
        assert 0.99 * bound < largest <= bound
        variance = layer.weight.var().item()
        size = layer.weight.numel()  # the square of a uniform number has the variance 4 b^4 / 45
        assert abs(variance - bound**2 / 3) < 5 * math.sqrt(4 / 45 / size) * bound**2
        expected = INITIAL.flatten() if number == 5 else torch.zeros(layer.out_features)
        assert torch.equal(layer.bias, expected)


def test_hes_initialisation_is_that_of_hidden_layers() -> None:
    """A normal with variance 2 / inputs and zero biases; output layers are PyTorch's."""
    for number, layer in enumerate(_linear_layers(MLP((300, 200), initialisation="he"))):
        if number in {2, 5}:
            bound = layer.in_features**-0.5
            assert 0.99 * bound < layer.weight.abs().max().item() <= bound
            continue
        scaled = layer.weight.double().flatten() * math.sqrt(layer.in_features / 2)
        size = scaled.numel()
        assert abs(scaled.mean().item()) < 5 * size**-0.5
        assert abs(scaled.square().mean().item() - 1) < 5 * math.sqrt(2 / size)
        assert abs(scaled.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / size)  # of a normal
        assert torch.equal(layer.bias, torch.zeros(layer.out_features))
