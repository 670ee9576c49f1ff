"""``vae-pyro report``: a sweep or a run as one HTML page, or its table for a paper."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.cli.app import split_overrides
from vae_pyro.cli.console import add_uri, attempt, write_output
from vae_pyro.errors import ReportError
from vae_pyro.reporting.configurations import grouped
from vae_pyro.reporting.html_report import html_report
from vae_pyro.reporting.naming import job_name, sweep_name
from vae_pyro.reporting.sweep_data import summary_csv
from vae_pyro.reporting.sweeps import sweep_latex, sweep_markdown
from vae_pyro.runs.finding import found_runs, with_settings
from vae_pyro.runs.manifest import JOB_FILE, SWEEP_FILE, StartedJob, Sweep, relevant_overrides

_PLACES = ("multirun", "outputs")  # where sweeps and jobs are by default
_LONGEST_TITLE = 200  # characters


def main(arguments: Sequence[str]) -> int:
    """Write the report of a sweep or of a run.

    Args:
        arguments: of the command line.

    Returns:
        0; or 1 where there is no finished run.
    """
    parser = argparse.ArgumentParser(prog="vae-pyro report", description=__doc__)
    parser.add_argument(
        "run",
        nargs="?",
        metavar="RUN",
        help="folder of a sweep or a job, or id of a run in MLflow (default: the last one here)",
    )
    parser.add_argument(
        "--format",
        choices=("html", "markdown", "latex", "csv"),
        default="html",
        help="html is written to a file, the tables are printed; csv: a row per configuration",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report.html"), help="the file (default: report.html)"
    )
    add_uri(parser)
    options = parser.parse_args(arguments)

    def work() -> None:
        run = options.run or str(_last())
        with found_runs(run, options.uri, pictures=options.format == "html") as results:
            groups = grouped(with_settings(results))
            if options.format == "html":
                page = html_report(groups, *_title_and_command(run))
                write_output(options.out, page.encode())
            else:
                tables = {"markdown": sweep_markdown, "latex": sweep_latex, "csv": summary_csv}
                sys.stdout.write(tables[options.format](groups).rstrip() + "\n")

    return attempt(work)


def _title_and_command(run: str) -> tuple[str, str | None]:
    """What the page is called, and what was typed, as far as the folder says it."""
    sweep, job = Sweep.read(Path(run)), StartedJob.read(Path(run))
    if sweep is not None:
        varied = split_overrides(relevant_overrides(sweep.overrides))
        return sweep_name(varied, longest=_LONGEST_TITLE), sweep.command
    if job is not None:
        chosen = split_overrides(relevant_overrides(job.overrides))
        return job_name(chosen, longest=_LONGEST_TITLE), job.command
    return f"Report of {run}", None


def _last() -> Path:
    """The sweep or single job that was started last in the current folder.

    Raises:
        ReportError: where there is none.
    """
    names = zip(_PLACES, (SWEEP_FILE, JOB_FILE), strict=True)
    started = [path for place, name in names for path in Path(place).glob(f"*/*/{name}")]
    if not started:
        raise ReportError(
            f"there is no sweep in {_PLACES[0]}/ and no job in {_PLACES[1]}/ here: name the folder "
            "of one, or the id of a run in MLflow"
        )
    return max(started, key=lambda path: path.stat().st_mtime).parent
