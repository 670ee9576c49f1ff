"""The tables, files and chart of a sweep: its configurations, and what the data decide."""

import math
from collections.abc import Sequence

from rich.console import Console

from vae_pyro.evaluation.comparison import Comparison, rank_set
from vae_pyro.evaluation.difference import Scope, seed_interval
from vae_pyro.reporting.chart import ChartPoint, Panel, sweep_figure
from vae_pyro.reporting.configurations import SEED, Configuration, Group
from vae_pyro.reporting.figures import png, render
from vae_pyro.reporting.results import JobResult, bound_label, bound_names, setting
from vae_pyro.reporting.tables import (
    SummaryTable,
    bound_notes,
    print_notes,
    print_table,
    table_markdown,
    to_csv,
)

DIFFERENCE = "difference to the highest"
_DIGITS = 7  # significant, of a number in a file
_CAPTION = "nats per test image, higher is better, means over the training seeds"
_RANKS = "rank: what all comparisons together decide at 95% (Holm); * marks the best set"
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


def summary_csv(groups: Sequence[Group]) -> str:
    """One row for each configuration: means over seeds, difference to the highest, rank."""
    rows = []
    for group in groups:
        # A mean of error bars is no error bar of the mean; those of each run are in runs.csv.
        metrics = [
            name
            for name in dict.fromkeys(name for run in group.runs for name in run.metrics)
            if not name.endswith("_std_error")
        ]
        for one in group.configurations:
            row: dict[str, object] = {
                **_about_x(one.runs[0]),
                **one.settings,
                "seeds": one.scores.num_seeds,
                **_compared(group, one),
                **{name: one.mean(name) for name in metrics},
            }
            rows.append(row)
    return _csv(rows)


def _compared(group: Group, one: Configuration) -> dict[str, object]:
    """A configuration among those of its group."""
    comparison, best = group.comparison, group.comparison.highest
    low_rank, high_rank = comparison.ranks[one.name]
    parts = one.scores.components()
    row: dict[str, object] = {
        "log_px_seed_std": one.scores.value.mean(1).std().item() if len(one.runs) > 1 else None,
        **{f"log_px_variance_{name}": number for name, number in vars(parts).items()},
        "rank_first": low_rank,
        "rank_last": high_rank,
        "in_best_set": one.name in comparison.best_set,
    }
    if one.name != best:
        difference = comparison.difference(one.name, best)
        low, high = difference.interval()
        row |= {
            "difference_to_highest": difference.value,
            "difference_std_error": difference.std_error,
            "difference_low": low,
            "difference_high": high,
            "difference_is_about": difference.scope.name.lower(),
        }
    return row


def runs_csv(groups: Sequence[Group]) -> str:
    """One row for each run, with every final metric and its own errors."""
    return _csv(
        [
            {
                **_about_x(run),
                **one.settings,
                SEED: setting(run, SEED),
                **run.metrics,
            }
            for group in groups
            for one in group.configurations
            for run in one.runs
        ]
    )


def comparison_csv(groups: Sequence[Group]) -> str:
    """One row for each pair of configurations with one kind of x."""
    rows: list[dict[str, object]] = []
    for group in groups:
        seeds = {one.name: one.scores.num_seeds for one in group.configurations}
        for difference in group.comparison.differences:
            low, high = difference.interval()
            rows.append(
                {
                    "x": group.x,
                    "first": difference.first,
                    "second": difference.second,
                    "first_seeds": seeds[difference.first],
                    "second_seeds": seeds[difference.second],
                    "num_images": group.configurations[0].scores.num_images,
                    "difference": difference.value,
                    "std_error": difference.std_error,
                    "degrees_of_freedom": difference.degrees_of_freedom,
                    "low": low,
                    "high": high,
                    "is_about": difference.scope.name.lower(),
                    "monte_carlo_std_error": difference.monte_carlo_std_error,
                    "unpaired_std_error": difference.unpaired_std_error,
                    "p_value": difference.p_value,
                    "p_value_holm": difference.adjusted_p_value,
                    "verdict": difference.verdict,
                }
            )
    return _csv(rows)


def _about_x(run: JobResult) -> dict[str, object]:
    return {"x": run.x, "images": run.images, "log_cell_volume": run.log_cell_volume}


def _csv(rows: Sequence[dict[str, object]]) -> str:
    """Rows with the columns of all of them; numbers have seven significant digits."""
    columns = list({name: None for row in rows for name in row})
    return to_csv([{name: _cell(cell) for name, cell in row.items()} for row in rows], columns)


def _cell(cell: object) -> object:
    if isinstance(cell, float):
        return float(f"{cell:.{_DIGITS}g}")
    return "" if cell is None else cell


def sweep_chart(groups: Sequence[Group]) -> bytes:
    """The chart as the content of a PNG file; see ``chart.sweep_figure``."""
    panels = [_panel(group, groups) for group in groups]
    return png(render(sweep_figure(panels, _limits(groups))))


def _panel(group: Group, groups: Sequence[Group]) -> Panel:
    """The configurations with one kind of x."""
    named = [k for k in group.keys if len({c.settings[k] for c in group.configurations}) > 1]
    keys = named or ["latent_dim"]
    shared = [k for k in group.keys if k not in keys and len(groups) > 1]
    ordered = keys == ["latent_dim"]
    shown = sorted(
        group.configurations,
        key=lambda c: int(c.settings["latent_dim"]) if ordered else -c.scores.mean(),
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
