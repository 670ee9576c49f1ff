"""``vae-pyro compare``: which of several runs has the higher log p(x), paired over images."""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from vae_pyro.cli import startup
from vae_pyro.cli.console import add_uri, attempt, make_console
from vae_pyro.errors import ReportError
from vae_pyro.reporting.configurations import Group, grouped
from vae_pyro.reporting.results import JobResult
from vae_pyro.reporting.sweep_data import comparison_csv
from vae_pyro.reporting.sweeps import print_sweep, sweep_latex, sweep_markdown
from vae_pyro.runs.finding import found_runs, with_settings

_FORMATS = ("table", "markdown", "latex", "csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison of the runs that are named.

    Runs that differ only in their training seed are one row. All must have the same test images
    and the same kind of x.

    Args:
        arguments: of the command line; those of this process unless given.

    Returns:
        0; 1 where they cannot be compared; or the status of a signal.
    """
    parser = argparse.ArgumentParser(prog="vae-pyro compare", description=__doc__)
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a job or a sweep, or id of a run in MLflow",
    )
    parser.add_argument(
        "--format", choices=_FORMATS, default="table", help="csv: one row for each pair"
    )
    add_uri(parser)
    options = parser.parse_args(arguments)

    def work() -> None:
        with ExitStack() as kept:
            results = [
                r for run in options.runs for r in kept.enter_context(found_runs(run, options.uri))
            ]
            group = _one_group(with_settings(results))
        if options.format == "table":
            print_sweep([group], make_console())
        else:
            written = {"markdown": sweep_markdown, "latex": sweep_latex, "csv": comparison_csv}
            sys.stdout.write(written[options.format]([group]).rstrip() + "\n")

    return attempt(work)


def _one_group(results: Sequence[JobResult]) -> Group:
    """The runs as one group.

    Raises:
        ReportError: where they differ in what x is, or in the test images.
    """
    groups = grouped(results)
    if len(groups) > 1:
        kinds = [f"  {group.x}: {group.runs[0].name}" for group in groups]
        same_x = len({group.x for group in groups}) == 1
        why = "have other test images" if same_x else "are of different kinds of x"
        raise ReportError(
            f"these runs {why}, so their log p(x) cannot be compared:\n" + "\n".join(kinds)
        )
    return groups[0]


if __name__ == "__main__":
    startup.prepare()
    sys.exit(main())
