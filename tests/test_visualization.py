"""Pictures show what their titles say, where they say it."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.collections import PathCollection

from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli
from vae_pyro.networks import MLP
from vae_pyro.reporting.chart import ChartPoint, Panel, sweep_figure
from vae_pyro.reporting.figures import (
    bounds_figure,
    latent_figure,
    reconstruction_grid,
    render,
    sample_grid,
    tile,
)
from vae_pyro.vae import VAE, build_vae


def test_tiles_lie_row_by_row_with_a_line_between() -> None:
    images = torch.arange(6).reshape(6, 1, 1, 1).expand(-1, 1, 2, 3) / 5
    pixels = tile(images, columns=4)
    assert pixels.shape == (2 * 3 + 1, 4 * 4 + 1, 3)
    for index in range(6):
        row, column = divmod(index, 4)
        part = pixels[row * 3 + 1 : row * 3 + 3, column * 4 + 1 : column * 4 + 4]
        np.testing.assert_allclose(part, index / 5, rtol=1e-6)
    np.testing.assert_allclose(pixels[0], 0.6, rtol=1e-6)


class Compass(torch.nn.Module):
    """A decoder whose one row of pixels is lit by z[0] and whose second row by z[1]."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return z.unsqueeze(-1).unsqueeze(-3).unsqueeze(-3)  # (*batch, 1, 1, 2, 1)


def test_the_manifold_is_drawn_as_the_axes_of_the_scatter_plot() -> None:
    """z[0] grows to the right and z[1] upwards, like the plot beside it."""
    vae = build_vae(2, (1, 2, 1), MLP((3,)), Bernoulli(17), DiagNormal, seed=None)
    vae.model.decoder = Compass()
    figure = latent_figure(vae, torch.randn(30, 2), torch.arange(30) % 3)
    manifold = figure.axes[0].images[0].get_array()[..., 0]
    first, second = manifold[1::3, 1::2], manifold[2::3, 1::2]  # lit by z[0], by z[1]
    assert (np.diff(first, axis=1) > 0).all()
    assert (np.diff(second, axis=0) < 0).all()  # the top row of the picture has the largest z[1]
    np.testing.assert_allclose(first[:, ::-1], 1 - first, atol=1e-5)  # symmetric quantiles


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_every_latent_size_has_its_pictures(latent_dim: int) -> None:
    vae = build_vae(latent_dim, (1, 4, 4), MLP((6,)), Bernoulli(17), DiagNormal, seed=None)
    x = torch.bernoulli(torch.full((32, 1, 4, 4), 0.5))
    figures = (
        sample_grid(vae, 16),
        reconstruction_grid(vae, x),
        latent_figure(vae, torch.randn(32, latent_dim), torch.arange(32) % 10),
    )
    for figure in figures:
        pixels = render(figure)
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3
        assert pixels.std() > 5  # something is drawn


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 28, 28), (3, 9, 32)])
def test_everything_is_inside_its_picture_and_nothing_overlaps(
    latent_dim: int, shape: tuple[int, int, int]
) -> None:
    """Places are computed without matplotlib's layout."""
    vae = build_vae(latent_dim, shape, MLP((6,)), Bernoulli(17), DiagNormal, seed=None)
    x = torch.bernoulli(torch.full((40, *shape), 0.5))
    for figure in (
        sample_grid(vae),
        reconstruction_grid(vae, x),
        reconstruction_grid(vae, x[:3]),
        latent_figure(vae, 30 * torch.randn(40, latent_dim), torch.arange(40) % 10),
    ):
        render(figure)
        boxes = [axes.get_tightbbox() for axes in figure.axes]
        for box in boxes:
            assert box.x0 >= -1
            assert box.y0 >= -1
            assert box.x1 <= figure.bbox.x1 + 1
            assert box.y1 <= figure.bbox.y1 + 1
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)


def test_reconstructions_stand_under_their_originals(digits_vae: VAE) -> None:
    x = torch.zeros(32, 1, 8, 8)
    x[:, :, 3] = 1
    figure = reconstruction_grid(digits_vae, x, columns=16)
    shown = figure.axes[0].images[0].get_array()[..., 0]
    assert shown.shape == (4 * 9 + 1, 16 * 9 + 1)
    for row in (0, 2):  # originals
        np.testing.assert_allclose(shown[row * 9 + 1 : row * 9 + 9, 1:9], x[0, 0], atol=1e-6)


def test_curves_are_drawn_at_the_numbers_given() -> None:
    figure = bounds_figure({1: (-30.0, 0.1), 5: (-28.0, 0.2)}, (-27.0, 0.05), 100)
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 5, 100]
    assert line.get_ydata().tolist() == [-30.0, -28.0, -27.0]


@pytest.mark.parametrize(("number", "rows", "per_row"), [(20, 1, 16), (5, 1, 5), (1, 1, 1)])
def test_what_fills_no_row_is_left_out(
    digits_vae: VAE, number: int, rows: int, per_row: int
) -> None:
    figure = reconstruction_grid(digits_vae, torch.zeros(number, 1, 8, 8))
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape[:2] == (2 * rows * 9 + 1, per_row * 9 + 1)


def points(*values: float, singles: int = 3) -> list[ChartPoint]:
    return [ChartPoint(v, v - 0.3, v + 0.2, [v + 0.1 * i for i in range(singles)]) for v in values]


def test_every_kind_of_x_has_its_own_panel() -> None:
    series = {"ELBO": points(-3.0, -2.0), "log p(x)": points(-2.5, -1.5)}
    ordered = Panel("binary pixels", ["2", "10"], "latent_dim", ordered=True, series=series)
    differences = points(-1.0, 0.0)
    others = Panel("17 levels", ["beta, 2", "normal, 2"], "likelihood", False, series, differences)
    figure = sweep_figure([ordered, others], ["not to be compared"])
    assert figure.get_supxlabel() == "not to be compared"
    assert sweep_figure([ordered]).get_supxlabel() == ""
    upright, lying, right = figure.get_axes()
    assert upright.get_title() == "binary pixels"
    assert lying.get_title() == "17 levels"
    drawn = [line.get_ydata().tolist() for line in upright.lines]
    assert [-3.0, -2.0] in drawn
    assert [-2.5, -1.5] in drawn
    assert [-3.3, -2.3] in drawn  # the lower ends of the bars
    assert [text.get_text() for text in upright.get_xticklabels()] == ["2", "10"]
    drawn = [list(line.get_xdata()) for line in lying.lines]
    assert [-3.0, -2.0] in drawn
    assert [-2.5, -1.5] in drawn
    assert [text.get_text() for text in lying.get_yticklabels()] == ["beta, 2", "normal, 2"]
    assert lying.yaxis_inverted()  # the first, the best, on top
    assert [-1.0, 0.0] in [list(line.get_xdata()) for line in right.lines]
    assert "paired" in right.get_title()
    for legend in (part.legends[0] for part in figure.subfigs):
        assert [text.get_text() for text in legend.get_texts()] == ["log p(x)", "ELBO"]
    assert render(figure).std() > 5


@pytest.mark.parametrize("labels", [["10"], ["2", "10", "20"]])
def test_seeds_are_dots_close_to_their_mean(labels: list[str]) -> None:
    series = {"log p(x)": points(*range(len(labels)))}
    (axes,) = sweep_figure([Panel("digits", labels, "latent_dim", True, series)]).get_axes()
    low, high = axes.get_xlim()
    seeds = [drawn for drawn in axes.collections if isinstance(drawn, PathCollection)]
    assert len(seeds) == len(labels)
    for place, dots in enumerate(seeds):
        apart = (dots.get_offsets()[:, 0] - place) / (high - low)
        assert (abs(apart) < 0.1).all()


def test_seeds_are_dots_and_one_seed_has_no_bars() -> None:
    series = {"ELBO": points(-3.0, -2.0), "log p(x)": points(-2.5, -1.5)}
    below = points(-1.0, 0.0)
    panel = Panel("digits", ["2", "10"], "latent_dim", True, series, below, is_about_seeds=True)
    figure = sweep_figure([panel])
    upper, lower = figure.get_axes()
    dots = [dot.get_offsets()[:, 1].tolist() for dot in upper.collections if len(dot.get_offsets())]
    assert [pytest.approx([-2.5, -2.4, -2.3])] == [d for d in dots if d[0] == -2.5]
    assert "dots: single seeds" in figure.get_suptitle()
    assert "other seeds" in " ".join(lower.get_title().split())
    one = [ChartPoint(-3.0, math.nan, math.nan, [-3.0]), ChartPoint(-2.0, -math.inf, -1.5, [-2.0])]
    figure = sweep_figure([Panel("digits", ["2", "10"], "latent_dim", True, {"ELBO": one}, one)])
    assert "one training seed" in figure.get_suptitle()
    upper, lower = figure.get_axes()
    assert "these weights" in " ".join(lower.get_title().split())
    ends = [line.get_ydata().tolist() for line in upper.lines]
    assert [-3.0, -1.5] in ends  # an end that is not finite is not drawn
    assert render(figure).std() > 5


@pytest.mark.parametrize("size", [3, 28, 64, 130, 250])
def test_every_image_is_framed_at_any_size(size: int) -> None:
    """A line across sixteen black images meets seventeen grey ones, also where pixels are fewer."""
    vae = build_vae(2, (1, size, size), MLP((2,)), Bernoulli(17), DiagNormal, seed=None)
    figure = reconstruction_grid(vae, torch.zeros(16, 1, size, size))
    pixels = render(figure)[..., 0].astype(float)
    box = figure.axes[0].get_window_extent()
    across = pixels[round(len(pixels) - box.y1 + box.height / 4), round(box.x0) : round(box.x1)]
    is_line = across > 40
    assert np.diff(np.concatenate([[0], is_line, [0]]).astype(int)).clip(0).sum() == 17


def test_only_labelled_images_have_badges(digits_vae: VAE) -> None:
    means = torch.randn(30, digits_vae.latent_dim)
    badges = [
        [text.get_text() for text in latent_figure(digits_vae, means, labels).axes[-1].texts]
        for labels in (torch.arange(30) % 2, torch.zeros(30, dtype=torch.int64))
    ]
    assert badges == [["0", "1"], []]
