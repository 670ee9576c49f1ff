"""``vae-pyro compare``: which of several runs has the higher log p(x), paired over images."""

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae_pyro.cli import startup
from vae_pyro.cli.console import fail, make_console, print_notes
from vae_pyro.errors import ReportError, UserError
from vae_pyro.evaluation.names import put_back
from vae_pyro.reporting.configurations import PER_IMAGE_FILE, SEED, Group, grouped
from vae_pyro.reporting.results import RESULT_FILE, JobResult
from vae_pyro.reporting.sweep_data import comparison_csv
from vae_pyro.reporting.sweeps import print_sweep, sweep_markdown, sweep_notes, sweep_table
from vae_pyro.reporting.tables import table_latex
from vae_pyro.runs.fingerprint import FINGERPRINT_FILE, Fingerprint
from vae_pyro.tracking import RecordedRun, downloaded, recorded_runs

_CODE = "code"  # a setting of this name tells runs of different versions of the code apart
_NOT_A_SETTING = (SEED, "device")
_FORMATS = ("table", "markdown", "latex", "csv")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison of the runs that are named.

    Runs that differ only in their training seed are one row. All must have the same test images
    and the same kind of x.

    Args:
        arguments: of the command line; those of this process unless given.

    Returns:
        0; or 1 where they cannot be compared.
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
    parser.add_argument(
        "--uri",
        help="of the tracking store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )
    options = parser.parse_args(arguments)
    console = make_console()
    print_notes(console)
    try:
        with ExitStack() as kept:
            results = [
                r for run in options.runs for r in kept.enter_context(_found(run, options.uri))
            ]
            group = _one_group(_with_settings(results))
    except UserError as error:
        fail(str(error))
        return 1
    if options.format == "table":
        print_sweep([group], console)
    else:
        written = {
            "markdown": lambda: sweep_markdown([group]),
            "latex": lambda: "\n".join(
                [table_latex(sweep_table(group)), *(f"% {note}" for note in sweep_notes([group]))]
            ),
            "csv": lambda: comparison_csv([group]),
        }
        sys.stdout.write(written[options.format]().rstrip() + "\n")
    return 0


@contextmanager
def _found(run: str, uri: str | None) -> Iterator[list[JobResult]]:
    """The finished runs that an argument names; copies of their files stay until this is left.

    Raises:
        ReportError: where it names none.
        TrackingError: where the tracking store does not respond, or has no such run.
    """
    folder = Path(run)
    if folder.is_dir():
        places = sorted(folder.rglob(RESULT_FILE), key=lambda path: (len(str(path)), path))
        found = [JobResult.read(place.parent) for place in places if "superseded" not in str(place)]
        finished = [result for result in found if result is not None and result.error is None]
        if not finished:
            raise ReportError(f"{folder} has no finished run ({RESULT_FILE}) in it or below it")
        yield [replace(one, name=f"{one.name} ({one.folder})") for one in finished]
    elif re.fullmatch("(runs:/)?[0-9a-f]{32}", run):
        recorded = recorded_runs(run.removeprefix("runs:/"), uri)
        ended = [one for one in recorded if one.status == "FINISHED"]
        if not ended:
            raise ReportError(f"run {run} has not finished, so it cannot be compared")
        with ExitStack() as kept:
            yield [_of_store(one, uri, kept) for one in ended]
    else:
        raise ReportError(
            f"there is no folder {run}: name the folder of a job or a sweep, or the id of a run in "
            "MLflow (32 hexadecimal digits)"
        )


def _of_store(run: RecordedRun, uri: str | None, kept: ExitStack) -> JobResult:
    """A run in MLflow, with the files that are needed in a folder that ``kept`` removes."""
    files = [
        kept.enter_context(downloaded(run.run_id, name, uri))
        for name in (PER_IMAGE_FILE, FINGERPRINT_FILE)
    ]
    folder = files[0].parent
    os.replace(files[1], folder / FINGERPRINT_FILE)
    try:
        volume = run.tags["log_cell_volume"]
        result = JobResult(
            f"{run.name} (run {run.run_id})",
            {},
            int(run.params["latent_dim"]),
            x=run.tags["x"],
            images=run.tags["images"],
            log_cell_volume=float(volume) if volume else None,
            metrics=put_back(run.metrics),
            folder=folder,
        )
    except (KeyError, ValueError) as error:
        raise ReportError(
            f"run {run.run_id} ({run.name}) cannot be compared: {error} is missing or damaged; was "
            "it recorded by an earlier version?"
        ) from error
    if not result.is_complete:
        raise ReportError(f"run {run.run_id} ({run.name}) has no final metrics; name another run")
    return result


def _with_settings(results: Sequence[JobResult]) -> list[JobResult]:
    """The runs with what differs between them as their settings, whatever the user typed.

    Raises:
        ReportError: where a run's configuration cannot be read.
    """
    configs = [_config(result) for result in results]
    keys = dict.fromkeys(key for config in configs for key in config)
    varying = [key for key in keys if len({json.dumps(c.get(key)) for c in configs}) > 1]
    # Another class has other options: its name stands for all of them.
    classes = [key.removesuffix("_target_") for key in varying if key.endswith("._target_")]
    own = [
        key
        for key in varying
        if key not in _NOT_A_SETTING
        and (key.endswith("._target_") or not key.startswith(tuple(classes)))
    ]
    return [
        replace(
            result,
            settings={
                SEED: str(config[SEED]),
                **{key.removesuffix("._target_"): _word(key, config.get(key)) for key in own},
            },
        )
        for result, config in zip(results, configs, strict=True)
    ]


def _config(result: JobResult) -> dict[str, Any]:
    fingerprint = Fingerprint.read((result.folder or Path()) / FINGERPRINT_FILE)
    if fingerprint is None or SEED not in fingerprint.config:
        raise ReportError(f"{FINGERPRINT_FILE} of {result.name} is missing or damaged")
    return {**fingerprint.config, _CODE: fingerprint.code_digest[:7]}


def _word(key: str, value: Any) -> str:
    return str(value).rpartition(".")[2] if key.endswith("._target_") else str(value)


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
