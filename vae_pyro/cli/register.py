"""``vae-pyro register``: a trained run as a model that MLflow serves over HTTP."""

import argparse
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.cli.console import add_uri, attempt
from vae_pyro.reporting.figures import png
from vae_pyro.runs.trained import NEEDED, load_run, run_folder
from vae_pyro.tracking import existing_store, recorded_as, register

_SCRIPT = Path(__file__).with_name("served_model.py")


def main(arguments: Sequence[str]) -> int:
    """Register a run, and print the command that serves it.

    Args:
        arguments: of the command line.

    Returns:
        0; or 1 where it cannot be registered.
    """
    parser = argparse.ArgumentParser(prog="vae-pyro register", description=__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a job, or id of a run in MLflow")
    parser.add_argument("--name", default="vae-pyro", help="of the model (default: vae-pyro)")
    add_uri(parser)
    options = parser.parse_args(arguments)

    def work() -> None:
        with run_folder(options.run, options.uri) as folder:
            _print(*_register(folder, options))

    return attempt(work)


def _print(address: str, store: str) -> None:
    programs = Path(sys.executable).parent  # MLflow starts one of them by its name
    path = "" if shutil.which("uvicorn") else f'PATH={shlex.quote(str(programs))}:"$PATH" '
    sys.stdout.write(
        f"{address}\nserve it: {path}MLFLOW_TRACKING_URI={shlex.quote(store)} mlflow models "
        f"serve -m {address} --env-manager local --host 127.0.0.1 --port 5001\n"
    )


def _register(folder: Path, options: argparse.Namespace) -> tuple[str, str]:
    run = load_run(folder)
    store = existing_store(options.uri)
    is_id = re.fullmatch("(runs:/)?[0-9a-f]{32}", options.run) and not Path(options.run).is_dir()
    run_id = (
        options.run.removeprefix("runs:/")
        if is_id
        else recorded_as(run.fingerprint.digest, options.uri)
    )
    with tempfile.TemporaryDirectory() as place:
        files = Path(place) / "run"
        files.mkdir()
        for name in NEEDED:
            source = folder / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, files / name)
        address = register(store, run_id, files, _SCRIPT, options.name, png(run.example()))
    return address, store.options()["uri"]
