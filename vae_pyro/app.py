"""Between Hydra and the pipeline: what a job is called, where it writes, how it fails."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from vae_pyro.config import without_passwords
from vae_pyro.errors import UserError
from vae_pyro.pipeline import Job, run_job
from vae_pyro.results import JobResult, print_summary

PARENT_FILE = "parent_run_id"


def main(cfg: DictConfig) -> None:
    """Run one job of ``python run.py``, alone or in a sweep.

    A job that fails says why in one message. Alone, it ends the program with status 1; in a sweep
    it leaves its message in ``result.json``, so that the other jobs run and the sweep reports it.
    """
    hydra = HydraConfig.get()
    output = Path(hydra.runtime.output_dir)
    in_sweep = hydra.mode == RunMode.MULTIRUN
    overrides = [without_passwords(override) for override in hydra.overrides.task]
    choices = {k: v for k, v in hydra.runtime.choices.items() if not k.startswith("hydra/")}
    job = Job(
        name=", ".join(overrides) if overrides else "defaults",
        settings=split_overrides(overrides),
        choices=choices,
        output=output,
        parent=_read_parent(Path(hydra.sweep.dir)) if in_sweep else None,
    )
    console = make_console()
    try:
        tree = OmegaConf.to_container(cfg, resolve=True)
        assert isinstance(tree, dict)
        result = run_job({str(key): value for key, value in tree.items()}, job, console)
        if not in_sweep:
            print_summary([result], console)
            console.print(f"pictures and weights: {output}", highlight=False, soft_wrap=True)
    except KeyboardInterrupt:
        fail("interrupted")
        sys.exit(130)
    except Exception as error:
        message = explain(error)
        JobResult(job.name, dict(job.settings), error=message).write(output)
        fail(message)
        if not in_sweep:
            sys.exit(1)


def explain(error: Exception) -> str:
    """One clear message for whatever went wrong."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)"


def fail(message: str) -> None:
    """Print an error, with the traceback of the one in hand where the user asked for it."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and sys.exc_info()[0] is not None:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr, flush=True)


def make_console() -> Console:
    """Standard output; wide enough for the table where it is not a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, 140))


def split_overrides(overrides: Sequence[str]) -> Mapping[str, str]:
    """``["a=1", "+b.c=x"]`` -> ``{"a": "1", "b.c": "x"}``."""
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def _read_parent(sweep: Path) -> str | None:
    try:
        return (sweep / PARENT_FILE).read_text() or None
    except FileNotFoundError:
        return None
