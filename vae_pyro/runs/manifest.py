"""What a sweep or a job writes when it starts, so that a later process finds it again.

Hydra imports this at every start, so it imports nothing heavy.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T", "Sweep", "StartedJob")
# Recorded like the rest of the configuration, but no part of what a result depends on.
NOT_IN_FINGERPRINT = (
    "tracking",
    "data.root",
    "resume",
    "name",
    "training.checkpoint_seconds",
    "training.keep_checkpoints",
)
SWEEP_FILE = "sweep.json"
JOB_FILE = "job.json"


@dataclass(frozen=True)
class Sweep:
    """``sweep.json`` in the sweep's folder, through which jobs find their parent.

    Attributes:
        overrides: the command, see ``task_overrides``.
        token: identifies this sweep among those that used the folder; a resumed one keeps it.
        parent: its run id; None where nothing is tracked.
    """

    overrides: list[str]
    token: str
    parent: str | None = None

    @property
    def command(self) -> str:
        """The command line, as a shell understands it."""
        return shlex.join(["python", "run.py", *self.overrides, "-m"])

    def write(self, folder: Path) -> None:
        _write(folder / SWEEP_FILE, self)

    @classmethod
    def read(cls, folder: Path) -> "Sweep | None":
        return _read(cls, folder / SWEEP_FILE)


@dataclass(frozen=True)
class StartedJob:
    """``job.json`` in the job's folder.

    Attributes:
        overrides: likewise.
        sweep: its sweep's token; None for a single job.
        error: why it failed; None where it did not, or was killed.
    """

    overrides: list[str]
    sweep: str | None
    error: str | None = None

    @property
    def command(self) -> str:
        """The command line, as a shell understands it."""
        return shlex.join(["python", "run.py", *self.overrides])

    def write(self, folder: Path) -> None:
        _write(folder / JOB_FILE, self)

    @classmethod
    def read(cls, folder: Path) -> "StartedJob | None":
        return _read(cls, folder / JOB_FILE)


def task_overrides(typed: Sequence[str]) -> list[str]:
    """The overrides as typed, without ``resume``."""
    return [str(o) for o in typed if _key(str(o)) != "resume"]


def relevant_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that a result depends on; a run is named after them."""
    return [o for o in overrides if not _key(o).startswith(NOT_IN_FINGERPRINT)]


def is_same_command(overrides: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two commands have the same results: the order of overrides does not matter."""
    return sorted(relevant_overrides(overrides)) == sorted(relevant_overrides(others))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def last_started(
    kind: type[Sweep] | type[StartedJob], overrides: Sequence[str], like: Path
) -> Path | None:
    """The folder of the last sweep or single job with these overrides, in any order.

    Args:
        kind: which of the two.
        overrides: see ``task_overrides``.
        like: a folder as Hydra would choose it now, ``.../<date>/<time>``; the others lie beside.
    """
    found = None
    for folder in sorted(path for path in like.parent.parent.glob("*/*") if path.is_dir()):
        started = kind.read(folder)
        if started is None or not is_same_command(started.overrides, overrides):
            continue
        if not (isinstance(started, StartedJob) and started.sweep is not None):
            found = folder
    return found


def _write(path: Path, started: Sweep | StartedJob) -> None:
    from vae_pyro.files import write_atomically

    write_atomically(path, json.dumps(asdict(started), indent=2).encode())


def _read(kind: type[T], path: Path) -> T | None:
    """None where there is none, or it is not what ``_write`` writes."""
    from vae_pyro.files import parse_file

    return parse_file(kind, path)
