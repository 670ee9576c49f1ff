"""The charts of a report, as plotly.js draws them: data, and the script that draws it."""

import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from vae_pyro.reporting.chart import ChartPoint, Panel
from vae_pyro.reporting.figures import AXIS, BOUND_COLOURS

Plot = dict[str, Any]
_SYMBOLS = ("circle", "square", "triangle-down", "triangle-up", "triangle-left", "triangle-right")
_FAINT = 0.35


def script() -> str:
    """plotly.js, whole: a page that holds it needs no network."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def bounds_plot(panel: Panel) -> Plot:
    """ELBO, IWAE-K and log p(x) of every configuration, as ``chart.sweep_figure`` has them.

    Args:
        panel: of the sweep.

    Returns:
        ``data`` and ``layout`` of plotly.js, in values that JSON has.

    >>> points = [ChartPoint(-24.1, -24.3, -23.9), ChartPoint(-22.0, -22.2, -21.8)]
    >>> panel = Panel("digits", ["2", "10"], "latent_dim", True, {"ELBO": points})
    >>> (line,) = bounds_plot(panel)["data"]
    >>> line["x"], line["y"], line["hovertext"][0]
    (['2', '10'], [-24.1, -22.0], 'ELBO, latent_dim 2: -24.10 [-24.30, -23.90]')
    """
    data = []
    for index, (name, points) in enumerate(panel.series.items()):
        last = index == len(panel.series) - 1
        colour = BOUND_COLOURS[-1 if last else index % (len(BOUND_COLOURS) - 1)]
        symbol = "diamond" if last else _SYMBOLS[index % len(_SYMBOLS)]
        data.append(_trace(panel, name, points, colour, symbol))
        singles = [
            (label, value)
            for label, point in zip(panel.labels, points, strict=True)
            for value in (point.singles if len(point.singles) > 1 else ())
        ]
        if singles:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "showlegend": False,
                    "marker": {"color": colour, "size": 5, "opacity": _FAINT},
                    "hovertext": [f"{name}, one seed: {value:.2f}" for _, value in singles],
                    "hoverinfo": "text",
                    **_placed(panel, [label for label, _ in singles], [v for _, v in singles]),
                }
            )
    return {"data": data, "layout": _layout(panel, AXIS)}


def differences_plot(panel: Panel) -> Plot:
    """log p(x) minus the highest, paired over images, with 95% intervals; likewise."""
    trace = _trace(panel, "difference", panel.differences, BOUND_COLOURS[-1], "diamond")
    trace["mode"] = "markers"
    return {"data": [trace], "layout": _layout(panel, "nats")}


def _trace(
    panel: Panel, name: str, points: Sequence[ChartPoint], colour: str, symbol: str
) -> dict[str, Any]:
    ends = {
        "array": [_number(max(0.0, point.high - point.value)) or 0 for point in points],
        "arrayminus": [_number(max(0.0, point.value - point.low)) or 0 for point in points],
    }
    bars = {"type": "data", "symmetric": False, "thickness": 1.5, **ends}
    return {
        "type": "scatter",
        "mode": "lines+markers" if panel.ordered else "markers",
        "name": name,
        "marker": {"color": colour, "symbol": symbol, "size": 8},
        "line": {"color": colour},
        "hovertext": [
            f"{name}, {panel.axis} {label}: {_words(point)}"
            for label, point in zip(panel.labels, points, strict=True)
        ],
        "hoverinfo": "text",
        f"error_{'y' if panel.ordered else 'x'}": bars,
        **_placed(panel, panel.labels, [_number(point.value) for point in points]),
    }


def _placed(
    panel: Panel, labels: Sequence[str], values: Sequence[float | None]
) -> dict[str, list[Any]]:
    """Ordered configurations stand side by side, others one above the other."""
    names = ("x", "y") if panel.ordered else ("y", "x")
    return dict(zip(names, (list(labels), list(values)), strict=True))


def _layout(panel: Panel, axis: str) -> dict[str, Any]:
    grid = {"gridcolor": "#dddddd", "zeroline": False, "automargin": True}
    category = {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(panel.labels),
        "title": {"text": panel.axis},
        **grid,
    }
    # -65,800 and not -65.8k
    digits = {"exponentformat": "none", "separatethousands": True}
    value = {"title": {"text": axis}, **digits, **grid}
    if panel.ordered:
        axes, height = {"xaxis": category, "yaxis": value}, 420
    else:
        axes = {"xaxis": value, "yaxis": {**category, "autorange": "reversed"}}
        height = 160 + 36 * len(panel.labels)
    return {
        **axes,
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 20, "b": 50},
        "plot_bgcolor": "white",
        "hovermode": "closest",
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        "font": {"family": "inherit", "size": 13},
    }


def _words(point: ChartPoint) -> str:
    if math.isnan(point.value):
        return "not estimated"
    known = [end for end in (point.low, point.high) if math.isfinite(end)]
    return f"{point.value:.2f}" + (f" [{point.low:.2f}, {point.high:.2f}]" if known else "")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
