"""Tables on a terminal, as Markdown, LaTeX and CSV; and the one of a run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from vae_pyro.reporting.results import (
    JobResult,
    bound_label,
    bound_names,
    setting,
)

_LATEX = {"±": r"$\pm$", "≥": r"$\geq$", "≤": r"$\leq$", "−": "$-$"}
CAPTION = (
    "nats per test image, higher is better; ± is one Monte Carlo standard error (the same images "
    "evaluated again); ± images is one standard error for other images of the same kind"
)
DENSITIES = (
    "≥ marks a density; the number is a lower bound on log P(image): log p(x) of the dequantised x "
    "plus the log volume of the image's cell"
)
UNTRUSTED = (
    "≥ without ±: for over 5% of the images the error bar of log p(x) cannot be trusted (k-hat is "
    "too high, or a second estimate disagrees), so the number is a lower bound and the true value "
    "may be much higher"
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


def run_table(result: JobResult) -> SummaryTable:
    """The results of one run with their error bars, nats per test image."""
    from vae_pyro.log_marginal.estimate import shown  # imports torch

    m = result.metrics
    names = bound_names([result])
    row = {"latent_dim": setting(result, "latent_dim")}
    for name in names[:-1]:
        row[bound_label(name)] = f"{result.nats(name):.2f}"
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
    return SummaryTable(result.x, list(row), [list(row.values())])


def print_run(result: JobResult, console: Console) -> None:
    """Print the table of one run, and how to read it."""
    print_table(run_table(result), console)
    notes = bound_notes(any_bound=result.is_bound, all_trusted=result.is_trusted)
    print_notes([CAPTION, *notes], console)


def bound_notes(*, any_bound: bool, all_trusted: bool) -> list[str]:
    """What ``≥`` means, where a table has one.

    Args:
        any_bound: whether a row is a density's.
        all_trusted: whether all error bars of log p(x) can be trusted.
    """
    return [DENSITIES] * any_bound + [UNTRUSTED] * (not all_trusted)


def print_notes(notes: Sequence[str], console: Console) -> None:
    """Print how to read a table, a line each."""
    for note in notes:
        console.print(note, style="italic dim", highlight=False)


def print_table(table: SummaryTable, console: Console) -> None:
    """Print a table; on a narrow terminal without its less important columns."""
    left_out: list[str] = []
    for spared in (None, *_spared_first(table.header)):
        left_out += [spared] if spared else []
        shown = _rich_table(table, left_out)
        any_width = console.options.update_width(1000)
        if Measurement.get(console, any_width, shown).maximum <= console.width:
            break
    console.print(shown)


def _spared_first(header: Sequence[str]) -> list[str]:
    """The columns that a narrow terminal can do without, the first ones first."""
    *looser, tightest = [name for name in header if name.startswith("IWAE-")] or [""]
    return [
        "ESS",
        "seconds",
        "active units",
        "gap",
        *looser,
        "high k-hat",
        "bits/dim",
        "± images",
        "decoder evaluations",
        tightest,
        "ELBO",
    ]


def _rich_table(table: SummaryTable, left_out: Sequence[str]) -> Table:
    shown = [index for index, name in enumerate(table.header) if name not in left_out]
    rich = Table(title=table.title, title_justify="left", box=SIMPLE_HEAVY, padding=(0, 1, 0, 0))
    for index in shown:
        name = table.header[index]
        for first in ("active", "high", "±", "decoder", "seconds"):
            name = name.replace(f"{first} ", f"{first}\n")
        rich.add_column(name, justify="right", vertical="bottom")
    for row in table.rows:
        rich.add_row(*(Text(row[index]) for index in shown))  # [ais] is no markup
    return rich


def table_markdown(table: SummaryTable) -> str:
    """One table as Markdown.

    >>> print(table_markdown(SummaryTable("digits", ["ELBO"], [["-24.50"]])))
    **digits**
    <BLANKLINE>
    | ELBO |
    | ---: |
    | -24.50 |
    """
    return f"**{table.title}**\n\n{markdown_rows(table.header, table.rows)}"


def markdown_rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A header and rows as Markdown, aligned to the right."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def table_latex(table: SummaryTable) -> str:
    """One table as LaTeX, with the rules of the package booktabs.

    >>> print(table_latex(SummaryTable("digits", ["ELBO"], [["-24.50 ± 0.02"]])))
    \\begin{tabular}{r}
    \\toprule
    ELBO \\\\
    \\midrule
    -24.50 $\\pm$ 0.02 \\\\
    \\bottomrule
    \\end{tabular}
    """
    import pandas as pd

    frame = pd.DataFrame(table.rows, columns=table.header)
    text: str = frame.to_latex(index=False, escape=True, column_format="r" * len(table.header))
    for sign, command in _LATEX.items():
        text = text.replace(sign, command)
    return text.rstrip()
