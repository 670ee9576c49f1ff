"""``python -m experiments.<name>``: from the command line to figure, numbers, page and record."""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.pages import HERE, NAMES, fill, fill_table
from experiments.study import OUTPUTS, Findings, Lab, Study, as_typed
from vae_pyro.cli.app import explain, fail
from vae_pyro.cli.console import make_console, print_notes
from vae_pyro.config import flatten
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import Interrupted, interruptible, leave_if_told, uninterrupted
from vae_pyro.reporting.figures import png, render
from vae_pyro.runs.fingerprint import git_tags
from vae_pyro.runs.folder import claim
from vae_pyro.tracking import Run, SilentRun, open_run


def main(study: Study, arguments: Sequence[str] | None = None) -> None:
    """Run one experiment from the command line; ends with status 1 where it fails."""
    typed = sys.argv[1:] if arguments is None else list(arguments)
    if {"-h", "--help"} & set(typed):
        make_console().print(_help(study), highlight=False, markup=False)
        return
    try:
        with interruptible():
            _run(study, typed)
    except Interrupted as interruption:
        fail(f"{interruption}; the same command goes on from the last checkpoint")
        leave_if_told()
        sys.exit(interruption.status)
    except Exception as error:
        fail(explain(error))
        sys.exit(1)


def _run(study: Study, typed: Sequence[str]) -> None:
    console = make_console()
    print_notes(console)
    lab = Lab(study, typed, console)
    work = OUTPUTS / study.name
    folder = HERE / study.name if lab.is_default else work
    run: Run = SilentRun()
    with claim(work):
        record = work / f"record-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        tags = {"experiment": study.name, **git_tags()}
        run = open_run(lab.tracker, record, study.name, tags, must_respond=True)
        try:
            run.log_params(
                {
                    **flatten(lab.chosen),
                    **{f"experiment.{k}": v for k, v in dataclasses.asdict(lab.options).items()},
                    "seed": ",".join(str(seed) for seed in lab.seeds),
                }
            )
            findings = study.run(lab)
            results = {
                "question": study.question,
                "command": lab.command,
                "answer": findings.answer,
                "predictions": dict(findings.predictions),
                "numbers": {k: dataclasses.asdict(n) for k, n in findings.numbers.items()},
                "cost": lab.cost(),
            }
            _record(run, findings)
            _leave(folder, findings, results)
            if lab.is_default:
                table = HERE / "README.md"
                write_atomically(table, fill_table(table.read_text(), NAMES).encode())
            for name in ("results.json", "figure.png"):
                run.log_file(folder / name)
            run.end("FINISHED")
        except BaseException as error:
            with uninterrupted(), suppress(Exception):
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            run.close()
    for name, number in findings.numbers.items():
        console.print(f"  {name}: {number} {number.unit}".rstrip(), highlight=False, markup=False)
    for name, held in findings.predictions.items():
        console.print(f"  {name}: {'held' if held else 'did not hold'}", highlight=False)
    lab.tell(f"{study.question}\n{findings.answer}\nresults.json and figure.png: {folder}")


def _record(run: Run, findings: Findings) -> None:
    metrics = {}
    for name, number in findings.numbers.items():
        metrics[name] = number.value
        if number.std_error is not None:
            metrics[f"{name}_std_error"] = number.std_error
    run.log_metrics(metrics, step=0)
    rows = [f"| {name} | {number} | {number.unit} |" for name, number in findings.numbers.items()]
    run.describe("\n".join([findings.answer, "", "| | | |", "|---|---|---|", *rows]))


def _leave(folder: Path, findings: Findings, results: Mapping[str, Any]) -> None:
    """The figure, the numbers, and the README that quotes them, where the folder has one."""
    make_folder(folder)
    findings.figure.set_dpi(110)
    write_atomically(folder / "figure.png", png(render(findings.figure)))
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    page = folder / "README.md"
    if page.is_file():
        write_atomically(page, fill(page.read_text(), results).encode())


def _help(study: Study) -> str:
    options = study.options()
    lines = [
        study.question,
        "",
        f"python -m experiments.{study.name} [key=value ...]",
        f"  seed={','.join(map(str, study.seeds))}",
        *(
            f"  experiment.{option.name}={as_typed(getattr(options, option.name))}"
            for option in dataclasses.fields(options)
        ),
        "  and every key of python run.py --help",
    ]
    return "\n".join(lines)
