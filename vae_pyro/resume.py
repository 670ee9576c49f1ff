"""A job's folder from one process to the next: gone on with, read back, or set aside."""

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import IO

from vae_pyro.errors import ResumeError
from vae_pyro.files import cannot_write, make_folder
from vae_pyro.provenance import Fingerprint
from vae_pyro.results import JobResult

FINGERPRINT_FILE = "fingerprint.json"
_LOCK = ".lock"
# What is about the process that starts and not about the job that was here before.
_NOT_SET_ASIDE = (".hydra", _LOCK, "job.json", "run.log", "multirun.yaml")


def claim(folder: Path) -> IO[str]:
    """Let no other process work in this folder until what is returned is closed.

    A process that is killed loses its claim.

    Raises:
        ResumeError: where another process is at work there.
        StorageError: where the folder cannot be written.
    """
    make_folder(folder)
    try:
        lock = (folder / _LOCK).open("a")
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ResumeError(
            f"another process is at work in {folder}: wait for it or end it, or choose another "
            "folder (hydra.run.dir=..., in a sweep hydra.sweep.dir=...)"
        ) from error
    return lock


def continue_or_begin(
    folder: Path, fingerprint: Fingerprint, *, resume: bool, tell: Callable[[str], None]
) -> JobResult | None:
    """Prepare a job's folder for it.

    What a job with another fingerprint left there is set aside whole, and so is what the same one
    left, unless it is to be resumed.

    Args:
        folder: the job's own.
        fingerprint: of the job that starts.
        resume: whether to go on with what is there.
        tell: called with one line where something was to be resumed and cannot be.

    Returns:
        its result, where it has finished before and is resumed; None where it is to run.
    """
    earlier = Fingerprint.read(folder / FINGERPRINT_FILE)
    if earlier is not None:
        if resume and earlier == fingerprint:
            result = JobResult.read(folder)
            return result if result is not None and result.error is None else None
        aside = _set_aside(folder)
        if resume:
            tell(
                f"not resumed, a new run: changed was {fingerprint.changes_since(earlier)} "
                f"(what was there is in {aside})"
            )
    fingerprint.write(folder / FINGERPRINT_FILE)
    return None


def _set_aside(folder: Path) -> Path:
    number = 1 + len(list(folder.glob("superseded-*")))
    aside = folder / f"superseded-{number}"
    make_folder(aside)
    # The fingerprint goes last: interrupted here, the rest follows the next time.
    others = [p for p in folder.iterdir() if p.name not in (*_NOT_SET_ASIDE, FINGERPRINT_FILE)]
    for path in (*others, folder / FINGERPRINT_FILE):
        if not path.name.startswith("superseded-"):
            path.replace(aside / path.name)
    return aside
