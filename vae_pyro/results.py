"""What a job leaves behind for its sweep, and the table that is made of it."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAVY
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from vae_pyro.checkpoint import write_atomically

RESULT_FILE = "result.json"
_SPARED_FIRST = ("ESS", "bits/dim", "k-hat > 0.7", "gap", "seconds")
CAPTION = "nats per test image, higher is better; ± is one Monte Carlo standard error"


@dataclass(frozen=True)
class JobResult:
    """How one job ended.

    Attributes:
        name: the job's overrides in a sweep, its main choices otherwise.
        settings: what the user set for it, by key.
        latent_dim: the size of z; None where the configuration was refused.
        error: why it failed; None where it finished.
        metrics: final metrics by their contract names.
    """

    name: str
    settings: dict[str, str]
    latent_dim: int | None = None
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_atomically(folder / RESULT_FILE, json.dumps(asdict(self), indent=2).encode())

    @classmethod
    def read(cls, folder: Path) -> "JobResult":
        return cls(**json.loads((folder / RESULT_FILE).read_bytes()))


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


def bound_names(results: Sequence[JobResult]) -> list[str]:
    """Metrics from the loosest bound to log p(x): elbo, iwae_K in order of K, log_px.

    IWAE-1 is left out, for it is the ELBO.
    """
    iwae = {
        int(name.removeprefix("test/iwae_"))
        for result in results
        for name in result.metrics
        if name.startswith("test/iwae_") and not name.endswith("_std_error")
    }
    return ["test/elbo", *(f"test/iwae_{k}" for k in sorted(iwae - {1})), "test/log_px"]


def bound_label(name: str) -> str:
    """``test/iwae_50`` -> ``IWAE-50``."""
    short = name.removeprefix("test/")
    return {"elbo": "ELBO", "log_px": "log p(x)"}.get(short, short.upper().replace("_", "-"))


def summary_csv(results: Sequence[JobResult]) -> str:
    """Every finished job and every final metric, one row per job."""
    keys = varying_settings(results)
    finished = [result for result in results if result.error is None]
    metrics = list({name: None for result in finished for name in result.metrics})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*keys, *metrics])
    for result in finished:
        values = (setting(result, key) for key in keys)
        writer.writerow([*values, *(result.metrics.get(name, "") for name in metrics)])
    return text.getvalue()


def summary_table(results: Sequence[JobResult]) -> tuple[list[str], list[list[str]]]:
    """The header and the rows that a run or a sweep ends with: nats per test image."""
    finished = [result for result in results if result.error is None]
    keys = varying_settings(results)
    names = bound_names(finished)
    header = [*keys, *map(bound_label, names)]
    header += ["gap", "bits/dim", "ESS", "k-hat > 0.7", "active units", "seconds"]
    rows = []
    for result in finished:
        m = result.metrics
        rows.append(
            [
                *(setting(result, key) for key in keys),
                *(f"{m[name]:.2f}" if name in m else "" for name in names[:-1]),
                f"{m['test/log_px']:.2f} ± {m['test/log_px_std_error']:.3f}",
                f"{m['test/gap']:.2f}",
                f"{m['test/bits_per_dim']:.4f}",
                f"{m['test/effective_sample_size']:.0f}",
                f"{m['test/pareto_k_high']:.0%}",
                f"{m['test/active_units']:.0f}",
                f"{m['time/train_seconds'] + m['time/evaluate_seconds']:.0f}",
            ]
        )
    return header, rows


def print_summary(results: Sequence[JobResult], console: Console) -> None:
    """Print the table; on a narrow terminal without the columns that can best be spared."""
    header, rows = summary_table(results)
    left_out: list[str] = []
    for spared in (None, *_SPARED_FIRST):
        left_out += [spared] if spared else []
        table = _table(header, rows, left_out)
        any_width = console.options.update_width(1000)
        if Measurement.get(console, any_width, table).maximum <= console.width:
            break
    console.print(table)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], left_out: Sequence[str]) -> Table:
    shown = [index for index, name in enumerate(header) if name not in left_out]
    table = Table(caption=CAPTION, caption_justify="left", box=SIMPLE_HEAVY, padding=(0, 1, 0, 0))
    for index in shown:
        name = header[index].replace("active ", "active\n").replace("k-hat ", "k-hat\n")
        table.add_column(name, justify="right", vertical="bottom")
    for row in rows:
        table.add_row(*(row[index] for index in shown))
    return table


def summary_markdown(results: Sequence[JobResult]) -> str:
    """The table for a page of notes."""
    header, rows = summary_table(results)
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{CAPTION}"
