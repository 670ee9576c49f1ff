"""One look for all figures: legible, colour-blind safe, axes with units."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from vae_pyro.reporting.figures import tile

# Paul Tol's "bright" scheme; markers differ too, for grey prints.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")
MARKERS = "osD^vPX"


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """A figure of this size in inches, and its axes as ``Figure.subplots`` returns them."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Set the title, and the names of the axes with units."""
    axes.set_title(title, fontsize="medium")
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.25)


def show_images(axes: Axes, images: Tensor, columns: int, title: str = "") -> None:
    """Show images ``(N, C, H, W)`` in [0, 1], row by row."""
    axes.imshow(tile(images, columns), interpolation="nearest")
    axes.set_title(title, fontsize="medium")
    axes.set_axis_off()


def show_rows(axes: Axes, rows: Sequence[Tensor], names: Sequence[str], title: str) -> None:
    """Show rows of images, each ``(columns, C, H, W)``, with their names on the left."""
    show_images(axes, torch.cat(list(rows)), len(rows[0]), title)
    height = rows[0].shape[-2] + 1
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks(
        [height * (row + 0.5) for row in range(len(rows))], list(names), fontsize="small"
    )
    axes.tick_params(length=0)


def error_line(
    axes: Axes,
    x: Sequence[float],
    values: Sequence[float],
    errors: Sequence[float],
    index: int,
    name: str,
) -> None:
    """Draw one series with bars of ± 1 standard error; ``index`` chooses colour and marker."""
    axes.errorbar(
        x,
        values,
        yerr=errors,
        color=COLOURS[index % len(COLOURS)],
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        capsize=3,
        label=name,
    )
