"""What a job leaves behind for its sweep, and the table that is made of it."""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from vae_pyro.files import parse_file, write_atomically

RESULT_FILE = "result.json"
_SPARED_FIRST = (
    "ESS",
    "k-hat > 0.7",
    "seconds",
    "active units",
    "gap",
    "bits/dim",
    "rank",
    "± images",
    "decoder evaluations",
)
_SHOWN = {
    "test/elbo",
    "test/log_px",
    "test/log_px_std_error",
    "test/log_px_image_std_error",
    "test/gap",
    "test/effective_sample_size",
    "test/pareto_k_high",
    "test/active_units",
    "time/train_seconds",
    "time/evaluate_seconds",
}
CAPTION = (
    "nats per test image, higher is better; ± is one Monte Carlo standard error: the same images "
    "evaluated anew; ± images is one standard error for other images of the same kind"
)
DENSITIES = (
    "≥ marks a density, shown as its lower bound on log P(image): log p(x) of the dequantised x "
    "plus the log volume of the image's cell"
)
INCOMPARABLE = (
    "each kind of x stands by itself, ranked by log p(x): probabilities of different things are "
    "not to be compared"
)


@dataclass(frozen=True)
class JobResult:
    """How one job ended.

    Attributes:
        name: the job's overrides in a sweep, its main choices otherwise.
        settings: what the user set for it, by key.
        latent_dim: the size of z; None where the configuration was refused.
        error: why it failed; None where it finished, as all that are written have.
        x: what log p(x) is of, for instance ``digits: 17 levels``.
        images: tells one set of test images from another.
        log_cell_volume: nats that make log p(x) (a lower bound on) the log probability of the
            image as levels: 0 for probabilities; None for real-valued data.
        metrics: final metrics by their contract names.
        sweep: token of the sweep that the job belongs to, see ``started.Sweep``.
    """

    name: str
    settings: dict[str, str]
    latent_dim: int | None = None
    error: str | None = None
    x: str = ""
    images: str = ""
    log_cell_volume: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    sweep: str | None = None

    def write(self, folder: Path) -> None:
        write_atomically(folder / RESULT_FILE, json.dumps(asdict(self), indent=2).encode())

    def nats(self, name: str) -> float:
        """One bound per image; of a density of dequantised images, as bound on log P(image)."""
        return self.metrics[name] + (self.log_cell_volume or 0.0)

    @property
    def is_bound(self) -> bool:
        """Whether ``nats`` speaks of the image by way of a density."""
        return bool(self.log_cell_volume)

    @classmethod
    def read(cls, folder: Path) -> "JobResult | None":
        """None where there is none, or one that finished lacks what a table shows."""
        result = parse_file(cls, folder / RESULT_FILE)
        if result is None or (result.error is None and not result.metrics.keys() >= _SHOWN):
            return None
        return result


def varying_settings(results: Sequence[JobResult]) -> list[str]:
    """The keys whose value is not the same in all jobs, and always ``latent_dim``."""
    keys = {key: None for result in results for key in result.settings}
    varying = [key for key in keys if len({result.settings.get(key) for result in results}) > 1]
    return varying if "latent_dim" in varying else ["latent_dim", *varying]


def setting(result: JobResult, key: str) -> str:
    """One job's value of a key, as the user would write it."""
    if key == "latent_dim" and result.latent_dim is not None:
        return str(result.latent_dim)
    return result.settings.get(key, "")


def shared_settings(group: Sequence[JobResult], results: Sequence[JobResult]) -> str:
    """What the jobs of a group have in common and others have not, in words."""
    own = varying_settings(group)
    shared = [key for key in varying_settings(results) if key not in own]
    return ", ".join(f"{key}={setting(group[0], key)}" for key in shared)


def bound_names(results: Sequence[JobResult]) -> list[str]:
    """Metrics from the loosest bound to log p(x): elbo, iwae_K in order of K, log_px.

    IWAE-1 is left out, for it is the ELBO.
    """
    iwae = {
        int(found[1])
        for result in results
        for name in result.metrics
        if (found := re.fullmatch(r"test/iwae_(\d+)", name))
    }
    return ["test/elbo", *(f"test/iwae_{k}" for k in sorted(iwae - {1})), "test/log_px"]


def bound_label(name: str) -> str:
    """``test/iwae_50`` -> ``IWAE-50``."""
    short = name.removeprefix("test/")
    return {"elbo": "ELBO", "log_px": "log p(x)"}.get(short, short.upper().replace("_", "-"))


def groups(results: Sequence[JobResult]) -> list[list[JobResult]]:
    """The finished jobs by what their x is: only within a group may log p(x) be compared."""
    by_x: dict[tuple[str, str], list[JobResult]] = {}
    for result in results:
        if result.error is None:
            by_x.setdefault((result.x, result.images), []).append(result)
    return list(by_x.values())


def summary_csv(results: Sequence[JobResult]) -> str:
    """Every finished job and every final metric, one row per job."""
    keys = varying_settings(results)
    finished = [result for result in results if result.error is None]
    metrics = list({name: None for result in finished for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["x", "images", "log_cell_volume", *keys, *metrics])
    for result in finished:
        volume = "" if result.log_cell_volume is None else result.log_cell_volume
        values = (setting(result, key) for key in keys)
        writer.writerow(
            [
                result.x,
                result.images,
                volume,
                *values,
                *(result.metrics.get(name, "") for name in metrics),
            ]
        )
    return text.getvalue()


@dataclass(frozen=True)
class SummaryTable:
    """The jobs of one group, as they are shown.

    Attributes:
        title: what x is.
        header, rows: cells in words.
    """

    title: str
    header: list[str]
    rows: list[list[str]]


def summary_tables(results: Sequence[JobResult]) -> list[SummaryTable]:
    """One table for every kind of x, in nats per test image; ranks are within a table."""
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
    m = result.metrics
    row = {key: setting(result, key) for key in keys}
    for name in names[:-1]:
        row[bound_label(name)] = f"{result.nats(name):.2f}" if name in m else ""
    row[bound_label(names[-1])] = (
        f"{'≥ ' * result.is_bound}{result.nats('test/log_px'):.2f} "
        f"± {m['test/log_px_std_error']:.3f}"
    )
    row["± images"] = f"{m['test/log_px_image_std_error']:.2f}"
    if "test/log_px_true" in m:
        row["true log p(x)"] = f"{m['test/log_px_true']:.2f}"
    row["gap"] = f"{m['test/gap']:.2f}"
    if "test/bits_per_dim" in m:
        row["bits/dim"] = f"{m['test/bits_per_dim']:.4f}"
    row["ESS"] = f"{m['test/effective_sample_size']:.0f}"
    row["k-hat > 0.7"] = f"{m['test/pareto_k_high']:.0%}"
    row["active units"] = f"{m['test/active_units']:.0f}"
    row["seconds"] = f"{m['time/train_seconds'] + m['time/evaluate_seconds']:.0f}"
    return row


def summary_notes(results: Sequence[JobResult]) -> list[str]:
    """What a reader must know to compare the numbers, a line each."""
    notes = [CAPTION]
    by_x = groups(results)
    if any(result.is_bound for group in by_x for result in group):
        notes.append(DENSITIES)
    if len(by_x) > 1:
        notes.append(INCOMPARABLE)
    return notes


def print_summary(results: Sequence[JobResult], console: Console) -> None:
    """Print the tables of a sweep, or of one job, and what must be known to read them."""
    for table in summary_tables(results):
        print_table(table, console)
    for note in summary_notes(results):
        console.print(note, style="italic dim", highlight=False)


def print_table(table: SummaryTable, console: Console) -> None:
    """Print a table; on a narrow terminal without the columns that can best be spared."""
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
        for first in ("active", "k-hat", "±", "decoder", "seconds"):
            name = name.replace(f"{first} ", f"{first}\n")
        rich.add_column(name, justify="right", vertical="bottom")
    for row in table.rows:
        rich.add_row(*(row[index] for index in shown))
    return rich


def summary_markdown(results: Sequence[JobResult]) -> str:
    """The tables for a page of notes."""
    tables = [table_markdown(table) for table in summary_tables(results)]
    return "\n\n".join([*tables, *summary_notes(results)])


def table_markdown(table: SummaryTable) -> str:
    """One table for a page of notes."""
    lines = [table.header, ["---:"] * len(table.header), *table.rows]
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"**{table.title}**\n\n{rows}"
