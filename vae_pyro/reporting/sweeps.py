"""The tables, files and chart of a sweep: its configurations, and what the data decide."""

import math
from collections.abc import Sequence

from rich.console import Console

from vae_pyro.evaluation.comparison import Comparison, rank_set
from vae_pyro.evaluation.difference import Scope, seed_interval
from vae_pyro.reporting.chart import ChartPoint, Panel, sweep_figure
from vae_pyro.reporting.configurations import Configuration, Group
from vae_pyro.reporting.figures import png, render
from vae_pyro.reporting.results import bound_label, bound_names
from vae_pyro.reporting.tables import (
    SummaryTable,
    bound_notes,
    markdown_rows,
    print_notes,
    print_table,
    table_latex,
    table_markdown,
)

DIFFERENCE = "difference to the highest"
_DIM = "latent_dim"
_CAPTION = "nats per test image, higher is better, means over the training seeds"
_RANKS = "rank: what all comparisons together decide at 95% (Holm); * marks the best set"
_WHERE = (
    "Charts of the bounds: *Model metrics*, `sweep/`. Tables, comparisons and a figure: "
    "*Artifacts*, `sweep/`; all on one page: `sweep/report.html`. Pictures of a job: *Model "
    "metrics* of the job, `final/`."
)
_INCOMPARABLE = (
    "each kind of x has its own table; probabilities of different kinds of x are not to be compared"
)
_ONE_SIDED = (
    "≥ or ≤ before a difference: log p(x) of this row (≥) or of the highest (≤) may be higher by "
    "more than any error bar, so none is printed; ?: of both"
)


def sweep_table(group: Group) -> SummaryTable:
    """One row for each configuration, in nats per test image."""
    names = bound_names(group.runs)
    rows = [_row(group, configuration, names) for configuration in group.configurations]
    header = list({name: None for row in rows for name in row})
    return SummaryTable(group.x, header, [[row.get(name, "") for name in header] for row in rows])


def _row(group: Group, one: Configuration, names: Sequence[str]) -> dict[str, str]:
    """One configuration's cells by column."""
    row = {**one.settings, "seeds": str(one.scores.num_seeds)}
    for name in names[:-1]:
        row[bound_label(name)] = _shown(one.nats(name))
    at_least = one.is_bound or not one.scores.is_trusted
    row[bound_label(names[-1])] = "≥ " * at_least + _shown(one.scores.mean())
    if len(group.configurations) > 1:
        comparison = group.comparison
        best = comparison.highest
        row[DIFFERENCE] = "" if one.name == best else str(comparison.difference(one.name, best))
        row["rank"] = rank_set(comparison.ranks[one.name]) + " *" * (
            one.name in comparison.best_set
        )
    optional = {
        "true log p(x)": ("test/log_px_true", ".2f"),
        "gap": ("test/gap", ".2f"),
        "bits/dim": ("test/bits_per_dim", ".4f"),
        "high k-hat": ("test/pareto_k_high", ".0%"),
        "active units": ("test/active_units", ".3g"),
    }
    for name, (metric, form) in optional.items():
        if (mean := one.mean(metric)) is not None:
            row[name] = format(mean, form)
    seconds = (one.mean("time/train_seconds") or 0.0) + (one.mean("time/evaluate_seconds") or 0.0)
    row["seconds"] = f"{seconds:.0f}"
    return row


def _shown(number: float | None) -> str:
    return "" if number is None else f"{number:.2f}"


def sweep_notes(groups: Sequence[Group]) -> list[str]:
    """How to read the tables and what can be compared, a line each."""
    scopes = dict.fromkeys(scope for c in _comparisons(groups) for scope in c.scopes)
    alone = [group.configurations[0] for group in groups if len(group.configurations) == 1]
    return [
        _CAPTION,
        *([_RANKS] if scopes else []),
        *(scope.value for scope in scopes),
        *(_over_seeds(one) for one in alone if len(one.runs) > 1),
        *_limits(groups),
    ]


def _over_seeds(one: Configuration) -> str:
    """What is known of a configuration that is compared with no other."""
    means = one.scores.value.mean(1)
    low, high = seed_interval(means.tolist())
    return (
        f"log p(x) over {len(means)} training seeds, on these images: {one.scores.mean():.2f}, 95% "
        f"interval [{low:.2f}, {high:.2f}]; standard deviation from seed to seed {means.std():.2g}"
    )


def _limits(groups: Sequence[Group]) -> list[str]:
    """What is not to be concluded, a line each."""
    rows = [one for group in groups for one in group.configurations]
    notes = bound_notes(
        any_bound=any(one.is_bound for one in rows),
        all_trusted=all(one.scores.is_trusted for one in rows),
    )
    if any(d.may_be_higher for c in _comparisons(groups) for d in c.differences):
        notes.append(_ONE_SIDED)
    if len(groups) > 1:
        notes.append(_INCOMPARABLE)
    return notes


def _comparisons(groups: Sequence[Group]) -> list[Comparison]:
    return [group.comparison for group in groups if len(group.configurations) > 1]


def print_sweep(groups: Sequence[Group], console: Console) -> None:
    """Print the tables, and how to read them."""
    for group in groups:
        print_table(sweep_table(group), console)
    print_notes(sweep_notes(groups), console)


def sweep_markdown(groups: Sequence[Group]) -> str:
    """The tables and their notes as Markdown."""
    return "\n\n".join([*map(table_markdown, map(sweep_table, groups)), *sweep_notes(groups)])


def sweep_latex(groups: Sequence[Group]) -> str:
    """The tables as LaTeX, and their notes as comments."""
    tables = [table_latex(sweep_table(group)) for group in groups]
    return "\n\n".join(tables) + "\n" + "\n".join(f"% {note}" for note in sweep_notes(groups))


def sweep_description(groups: Sequence[Group], command: str) -> str:
    """A sweep in MLflow, as Markdown: first a few columns, which is what its box shows unopened.

    Args:
        groups: of the sweep.
        command: that started it.
    """
    parts = []
    for group in groups:
        table = sweep_table(group)
        bounds = [bound_label(name) for name in bound_names(group.runs)]
        shown = [*group.keys, bounds[0], *bounds[-2:], "rank"]
        few = [index for index, name in enumerate(table.header) if name in shown]
        rows = [[row[index] for index in few] for row in table.rows]
        parts.append(markdown_rows([table.header[index] for index in few], rows))
    return "\n\n".join([*parts, f"`{command}`", _WHERE, sweep_markdown(groups)])


def sweep_chart(groups: Sequence[Group]) -> bytes:
    """The chart as the content of a PNG file; see ``chart.sweep_figure``."""
    panels = [panel_of(group, groups) for group in groups]
    return png(render(sweep_figure(panels, _limits(groups))))


def panel_of(group: Group, groups: Sequence[Group]) -> Panel:
    """The configurations with one kind of x, as a chart shows them.

    Args:
        group: of a sweep.
        groups: all of it.
    """
    named = [k for k in group.keys if len({c.settings[k] for c in group.configurations}) > 1]
    keys = named or [_DIM]
    shared = [k for k in group.keys if k not in keys and len(groups) > 1]
    ordered = keys == [_DIM]
    shown = sorted(
        group.configurations,
        key=lambda c: int(c.settings[_DIM]) if ordered else -c.scores.mean(),
    )
    of_group = ", ".join(f"{key}={shown[0].settings[key]}" for key in shared)
    return Panel(
        title=", ".join(filter(None, [group.x, of_group])),
        labels=[", ".join(c.settings[key] for key in keys) + " (≥)" * c.is_bound for c in shown],
        axis=", ".join(keys),
        ordered=ordered,
        series={
            bound_label(name): [_point(c, name) for c in shown] for name in bound_names(group.runs)
        },
        differences=_differences(group, shown),
        is_about_seeds=Scope.WEIGHTS not in group.comparison.scopes,
    )


def _point(one: Configuration, name: str) -> ChartPoint:
    """A metric's mean over seeds, and where it lies over other seeds on the same images."""
    values = [run.nats(name) for run in one.runs if name in run.metrics]
    if not values:
        return ChartPoint(math.nan, math.nan, math.nan)
    low, high = seed_interval(values)
    return ChartPoint(sum(values) / len(values), low, high, values)


def _differences(group: Group, shown: Sequence[Configuration]) -> list[ChartPoint]:
    """To the highest, with 95% intervals; none where there is nothing to compare."""
    if len(shown) < 2:
        return []
    comparison, best = group.comparison, group.comparison.highest
    points = []
    for one in shown:
        if one.name == best:
            points.append(ChartPoint(0.0, math.nan, math.nan))
            continue
        difference = comparison.difference(one.name, best)
        points.append(ChartPoint(difference.value, *difference.interval()))
    return points
