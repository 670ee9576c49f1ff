"""``vae-pyro evaluate``: evaluate a trained run again, with other settings, without training it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.errors import ReportError
from vae_pyro.runs.manifest import JOB_FILE, StartedJob
from vae_pyro.runs.weights import Weights

_NOT_TAKEN_OVER = {"weights", "name"}


def arguments_for(arguments: Sequence[str]) -> list[str]:
    """The command line of the job that evaluates: the settings of the run, and the new ones.

    Args:
        arguments: of ``vae-pyro evaluate``.

    Raises:
        CheckpointError: where the folder holds no trained model.
        ReportError: where it does not say how it was trained.
    """
    parser = argparse.ArgumentParser(
        prog="vae-pyro evaluate",
        usage="%(prog)s [-h] RUN [KEY=VALUE ...]",
        description=__doc__,
        epilog="For instance: vae-pyro evaluate outputs/2026-01-31/12-00-00 evaluation=full",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a job")
    options, settings = parser.parse_known_args(arguments)
    Weights.of(str(options.run))
    started = StartedJob.read(options.run)
    if started is None:
        raise ReportError(f"{options.run / JOB_FILE} is missing or damaged: name the job's folder")
    given = {_key(one) for one in settings}

    def is_kept(override: str) -> bool:
        key = _key(override)
        is_replaced = "evaluation" in given and key.startswith("evaluation")
        return not (is_replaced or key in given | _NOT_TAKEN_OVER)

    weights = str(options.run).replace("\\", "\\\\").replace("'", "\\'")
    return [*filter(is_kept, started.overrides), *settings, f"weights='{weights}'"]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]
