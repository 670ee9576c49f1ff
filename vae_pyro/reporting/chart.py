"""The chart of a sweep: ELBO, IWAE-K and log p(x) of every configuration, and the differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae_pyro.reporting.figures import AXIS, BOUND_COLOURS


@dataclass(frozen=True)
class ChartPoint:
    """A number with the interval that it lies in; NaN where there is none.

    Attributes:
        value: of the marker.
        low, high: the ends of its bar.
        singles: what it is the mean of.
    """

    value: float
    low: float
    high: float
    singles: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """The configurations of a sweep with one kind of x.

    Attributes:
        title: what x is.
        labels: one per configuration.
        axis: the quantity that the labels are values of.
        ordered: whether the labels are steps of one quantity; lines then join the configurations.
        series: by name, from the loosest bound to log p(x): one point per configuration, with its
            interval over training seeds.
        differences: of log p(x) to the highest, paired over images; none for one configuration.
        is_about_seeds: whether their intervals hold for other training seeds.
    """

    title: str
    labels: Sequence[str]
    axis: str
    ordered: bool
    series: Mapping[str, Sequence[ChartPoint]]
    differences: Sequence[ChartPoint] = ()
    is_about_seeds: bool = False


def sweep_figure(panels: Sequence[Panel], notes: Sequence[str] = ()) -> Figure:
    """ELBO, IWAE-K and log p(x) of every configuration, and the paired differences of log p(x).

    Ordered configurations stand side by side, with the differences below; others one above the
    other, with the differences to the right.

    Args:
        panels: from top to bottom.
        notes: how to compare the panels, a line each, under the last one.
    """
    heights = [
        (6.3 if panel.differences else 4.5) if panel.ordered else 1.8 + 0.36 * len(panel.labels)
        for panel in panels
    ]
    width = max(8.5 if panel.ordered else 12 for panel in panels)
    figure = Figure(figsize=(width, sum(heights) + 0.6), layout="constrained")
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, panel in zip(parts, panels, strict=True):
        if not panel.differences:
            bounds = part.subplots()
        elif panel.ordered:
            bounds, below = part.subplots(2, 1, sharex=True, height_ratios=[5, 2])
            _draw_differences(below, panel)
            below.set(xlabel=panel.axis)
        else:
            bounds, right = part.subplots(1, 2, sharey=True, width_ratios=[5, 3])
            _draw_differences(right, panel)
        _draw_bounds(bounds, panel)
        handles, names = bounds.get_legend_handles_labels()
        part.legend(handles[::-1], names[::-1], loc="outside right upper", frameon=False)
    lines = [line for panel in panels for line in panel.series.values()]
    bars = (
        "means over training seeds; dots: single seeds; bars: 95% intervals over seeds, same images"
        if any(len(point.singles) > 1 for line in lines for point in line)
        else "one training seed, so no bars: another seed would move every point"
    )
    figure.suptitle(f"from the ELBO up to log p(x)\n{bars}", fontsize="medium")
    if notes:
        wrapped = [line for note in notes for line in wrap(note, 130)]
        figure.supxlabel("\n".join(wrapped), fontsize="small", x=0.02, horizontalalignment="left")
    return figure


def _draw_bounds(axes: Axes, panel: Panel) -> None:
    for index, (name, points) in enumerate(panel.series.items()):
        last = index == len(panel.series) - 1
        colour = BOUND_COLOURS[-1 if last else index % (len(BOUND_COLOURS) - 1)]
        style = {"fmt": "D" if last else "osv^<>"[index % 6], "color": colour}
        _draw_points(axes, panel, points, ls="-" if panel.ordered else "", label=name, **style)
        for place, point in enumerate(points):
            if len(point.singles) > 1:
                places = [place + 0.06] * len(point.singles)  # beside the bar
                x, y = (places, point.singles) if panel.ordered else (point.singles, places)
                axes.scatter(x, y, s=10, color=colour, alpha=0.35, linewidths=0)
    if panel.ordered:
        axes.set_xticks(range(len(panel.labels)), panel.labels)
        axes.set(ylabel=AXIS, xlim=(-0.5, len(panel.labels) - 0.5))
        if not panel.differences:
            axes.set(xlabel=panel.axis)
    else:
        axes.set_yticks(range(len(panel.labels)), panel.labels)
        axes.invert_yaxis()
        axes.set(ylabel=panel.axis, xlabel=AXIS)
    axes.grid(axis="y" if panel.ordered else "both", alpha=0.3)
    axes.set_title(panel.title)


def _draw_differences(axes: Axes, panel: Panel) -> None:
    """log p(x) minus the highest, paired over images."""
    about = "other seeds and images" if panel.is_about_seeds else "these weights, other images"
    words = f"log p(x) − the highest, paired over images; bars: 95%, {about}"
    _draw_points(axes, panel, panel.differences, fmt="D", color=BOUND_COLOURS[-1], ls="")
    if panel.ordered:
        axes.axhline(0.0, color="#777777", lw=0.8)
        axes.set_ylabel("nats")
    else:
        axes.axvline(0.0, color="#777777", lw=0.8)
        axes.set_xlabel("nats")
    axes.set_title("\n".join(wrap(words, 90 if panel.ordered else 45)), fontsize="small")
    axes.grid(axis="y" if panel.ordered else "both", alpha=0.3)


def _draw_points(axes: Axes, panel: Panel, points: Sequence[ChartPoint], **style: Any) -> None:
    """Markers with bars; an end that is not finite has none."""
    values = np.array([point.value for point in points])
    ends = np.array([[p.value - p.low for p in points], [p.high - p.value for p in points]])
    bars = np.where(np.isfinite(ends), ends, 0.0).clip(min=0)  # equal seeds: a rounding below
    places = range(len(points))
    if panel.ordered:
        axes.errorbar(places, values, yerr=bars, capsize=4, **style)
    else:
        axes.errorbar(values, places, xerr=bars, capsize=4, **style)
