"""The tables of a job and of a sweep: on a terminal, as Markdown, as CSV."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from vae_pyro.reporting.results import (
    JobResult,
    bound_label,
    bound_names,
    groups,
    setting,
    varying_settings,
)

_SPARED_FIRST = (
    "ESS",
    "high k-hat",
    "seconds",
    "active units",
    "gap",
    "bits/dim",
    "rank",
    "± images",
    "decoder evaluations",
)
CAPTION = (
    "nats per test image, higher is better; ± is one Monte Carlo standard error (the same images "
    "evaluated again); ± images is one standard error for other images of the same kind"
)
DENSITIES = (
    "≥ marks a density; the number is a lower bound on log P(image): log p(x) of the dequantised x "
    "plus the log volume of the image's cell"
)
UNTRUSTED = (
    "no ± beside log p(x): for over 5% of the images the error bar cannot be trusted (k-hat is "
    "too high, or a second estimate disagrees), so the number is a lower bound and the true value "
    "may be much higher"
)
INCOMPARABLE = (
    "each kind of x has its own table, ranked by log p(x); probabilities of different kinds of x "
    "are not to be compared"
)


def to_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> str:
    """Rows as CSV: floats with all their digits, NaN as ``nan``, a missing cell empty.

    Args:
        rows: cells by column.
        columns: from left to right.

    >>> to_csv([{"a": 0.1, "b": float("nan")}, {"a": 2}], ["a", "b"])
    'a,b\\n0.1,nan\\n2,\\n'
    """
    import pandas as pd

    # Objects, not floats: a column may hold both numbers and empty cells.
    cells = [[row.get(name, "") for name in columns] for row in rows]
    frame = pd.DataFrame(cells, columns=list(columns), dtype=object)
    text: str = frame.to_csv(index=False, na_rep="nan", lineterminator="\n")
    return text


def summary_csv(results: Sequence[JobResult]) -> str:
    """Every finished job and every final metric, one row per job."""
    keys = varying_settings(results)
    finished = [result for result in results if result.error is None]
    metrics = list({name: None for result in finished for name in result.metrics})
    rows: list[dict[str, object]] = [
        {
            "x": result.x,
            "images": result.images,
            "log_cell_volume": "" if result.log_cell_volume is None else result.log_cell_volume,
            **{key: setting(result, key) for key in keys},
            **result.metrics,
        }
        for result in finished
    ]
    return to_csv(rows, ["x", "images", "log_cell_volume", *keys, *metrics])


@dataclass(frozen=True)
class SummaryTable:
    """A table in words, for instance of the jobs of one group.

    Attributes:
        title: what x is.
        header, rows: cells in words.
    """

    title: str
    header: list[str]
    rows: list[list[str]]


def summary_tables(results: Sequence[JobResult]) -> list[SummaryTable]:
    """One table for each kind of x, in nats per test image; jobs are ranked within a table."""
    keys = varying_settings(results)
    tables = []
    for group in groups(results):
        names = bound_names(group)
        rows = [_row(result, keys, names) for result in group]
        if len(group) > 1:
            best_first = sorted((result.nats("test/log_px") for result in group), reverse=True)
            for row, result in zip(rows, group, strict=True):
                row["rank"] = str(1 + best_first.index(result.nats("test/log_px")))
        header = list({name: None for row in rows for name in row})
        cells = [[row.get(name, "") for name in header] for row in rows]
        tables.append(SummaryTable(group[0].x, header, cells))
    return tables


def _row(result: JobResult, keys: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """One job's cells by column."""
    from vae_pyro.log_marginal.estimate import shown  # imports torch

    m = result.metrics
    row = {key: setting(result, key) for key in keys}
    for name in names[:-1]:
        row[bound_label(name)] = f"{result.nats(name):.2f}" if name in m else ""
    row[bound_label(names[-1])] = shown(
        result.nats("test/log_px"),
        m["test/log_px_std_error"],
        result.is_trusted,
        sign="≥ " * result.is_bound,
    )
    row["± images"] = f"{m['test/log_px_image_std_error']:.2f}"
    if "test/log_px_true" in m:
        row["true log p(x)"] = f"{m['test/log_px_true']:.2f}"
    row["gap"] = f"{m['test/gap']:.2f}"
    if "test/bits_per_dim" in m:
        row["bits/dim"] = f"{m['test/bits_per_dim']:.4f}"
    row["ESS"] = f"{m['test/effective_sample_size']:.0f}"
    row["high k-hat"] = f"{m['test/pareto_k_high']:.0%}"
    row["active units"] = f"{m['test/active_units']:.0f}"
    row["seconds"] = f"{m['time/train_seconds'] + m['time/evaluate_seconds']:.0f}"
    return row


def summary_notes(results: Sequence[JobResult]) -> list[str]:
    """How to read the numbers and what can be compared, a line each."""
    notes = [CAPTION]
    by_x = groups(results)
    finished = [result for group in by_x for result in group]
    if any(result.is_bound for result in finished):
        notes.append(DENSITIES)
    if not all(result.is_trusted for result in finished):
        notes.append(UNTRUSTED)
    if len(by_x) > 1:
        notes.append(INCOMPARABLE)
    return notes


def print_summary(results: Sequence[JobResult], console: Console) -> None:
    """Print the tables of a sweep, or of one job, and how to read them."""
    for table in summary_tables(results):
        print_table(table, console)
    for note in summary_notes(results):
        console.print(note, style="italic dim", highlight=False)


def print_table(table: SummaryTable, console: Console) -> None:
    """Print a table; on a narrow terminal without its less important columns."""
    left_out: list[str] = []
    for spared in (None, *_SPARED_FIRST):
        left_out += [spared] if spared else []
        shown = _rich_table(table, left_out)
        any_width = console.options.update_width(1000)
        if Measurement.get(console, any_width, shown).maximum <= console.width:
            break
    console.print(shown)


def _rich_table(table: SummaryTable, left_out: Sequence[str]) -> Table:
    shown = [index for index, name in enumerate(table.header) if name not in left_out]
    rich = Table(title=table.title, title_justify="left", box=SIMPLE_HEAVY, padding=(0, 1, 0, 0))
    for index in shown:
        name = table.header[index]
        for first in ("active", "high", "±", "decoder", "seconds"):
            name = name.replace(f"{first} ", f"{first}\n")
        rich.add_column(name, justify="right", vertical="bottom")
    for row in table.rows:
        rich.add_row(*(row[index] for index in shown))
    return rich


def summary_markdown(results: Sequence[JobResult]) -> str:
    """The tables and their notes as Markdown."""
    tables = [table_markdown(table) for table in summary_tables(results)]
    return "\n\n".join([*tables, *summary_notes(results)])


def table_markdown(table: SummaryTable) -> str:
    """One table as Markdown.

    >>> print(table_markdown(SummaryTable("digits", ["ELBO"], [["-24.50"]])))
    **digits**
    <BLANKLINE>
    | ELBO |
    | ---: |
    | -24.50 |
    """
    lines = [table.header, ["---:"] * len(table.header), *table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{table.title}**\n\n{rows}"
