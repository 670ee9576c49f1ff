"""One experiment from its overrides to figure, numbers, page and MLflow run."""

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.context import OUTPUTS, Context, Experiment, Result, as_typed
from experiments.pages import HERE, NAMES, fill, fill_table
from vae_pyro.cli.console import explain, fail, make_console, print_notes
from vae_pyro.config import flatten
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import Interrupted, interruptible, leave_if_told, uninterrupted
from vae_pyro.reporting.figures import png, render
from vae_pyro.runs.fingerprint import git_tags
from vae_pyro.runs.folder import claim
from vae_pyro.tracking import Run, SilentRun, open_run


def load(name: str) -> Experiment:
    """The experiment in the folder of this name."""
    experiment: Experiment = importlib.import_module(f"experiments.{name}.experiment").experiment
    return experiment


def run_experiment(experiment: Experiment, overrides: Sequence[str]) -> None:
    """Run one experiment with these overrides; a failure ends the program with status 1."""
    try:
        with interruptible():
            _run(experiment, overrides)
    except Interrupted as interruption:
        fail(f"{interruption}; the same command continues from the last checkpoint")
        leave_if_told()
        sys.exit(interruption.status)
    except Exception as error:
        fail(explain(error))
        sys.exit(1)


def _run(experiment: Experiment, typed: Sequence[str]) -> None:
    console = make_console()
    print_notes(console)
    context = Context(experiment, typed, console)
    work = OUTPUTS / experiment.name
    page = HERE / experiment.name
    run: Run = SilentRun()
    with claim(work):
        record = work / f"record-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        tags = {"experiment": experiment.name, **git_tags()}
        run = open_run(context.tracker, record, experiment.name, tags, must_respond=True)
        try:
            options = dataclasses.asdict(context.options)
            run.log_params(
                {
                    **flatten(context.chosen),
                    **{f"experiment.{name}": value for name, value in options.items()},
                    "seed": ",".join(str(seed) for seed in context.seeds),
                }
            )
            result = experiment.run(context)
            results = {
                "question": experiment.question,
                "command": context.command,
                "answer": result.answer,
                "predictions": dict(result.predictions),
                "numbers": {k: dataclasses.asdict(n) for k, n in result.numbers.items()},
                "cost": context.cost(),
            }
            _record(run, result)
            _leave(work, result, results)
            if context.is_default:
                _leave(page, result, results)
                table = HERE / "README.md"
                write_atomically(table, fill_table(table.read_text(), NAMES).encode())
            for name in ("results.json", "figure.png"):
                run.log_file(work / name)
            run.end("FINISHED")
        except BaseException as error:
            with uninterrupted(), suppress(Exception):
                run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        finally:
            run.close()
    for name, number in result.numbers.items():
        console.print(f"  {name}: {number} {number.unit}".rstrip(), highlight=False, markup=False)
    for name, verdict in result.predictions.items():
        console.print(f"  {name}: {verdict}", highlight=False)
    folder = page if context.is_default else work
    context.tell(f"{experiment.question}\n{result.answer}\nresults.json and figure.png: {folder}")


def _record(run: Run, result: Result) -> None:
    metrics = {}
    for name, number in result.numbers.items():
        metrics[name] = number.value
        if number.std_error is not None:
            metrics[f"{name}_std_error"] = number.std_error
    run.log_metrics(metrics, step=0)
    rows = [f"| {name} | {number} | {number.unit} |" for name, number in result.numbers.items()]
    rows += [f"| {name} | **{verdict}** | |" for name, verdict in result.predictions.items()]
    run.describe("\n".join([result.answer, "", "| | | |", "|---|---|---|", *rows]))


def _leave(folder: Path, result: Result, results: Mapping[str, Any]) -> None:
    """Write the figure, the numbers, and the README that quotes them, where there is one."""
    make_folder(folder)
    result.figure.set_dpi(110)
    write_atomically(folder / "figure.png", png(render(result.figure)))
    write_atomically(folder / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    page = folder / "README.md"
    if page.is_file():
        write_atomically(page, fill(page.read_text(), results).encode())


def describe(experiment: Experiment) -> str:
    """The question, how to run the experiment, and every option with its default."""
    options = experiment.options()
    lines = [
        experiment.question,
        "",
        f"python -m experiments {experiment.name} [key=value ...]",
        f"  seed={','.join(map(str, experiment.seeds))}",
        *(
            f"  experiment.{option.name}={as_typed(getattr(options, option.name))}"
            for option in dataclasses.fields(options)
        ),
        "  and every key that python run.py --help lists",
    ]
    return "\n".join(lines)
