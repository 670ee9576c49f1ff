"""A job's folder from one process to the next: continued, read back, or set aside."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from vae_pyro.errors import ResumeError
from vae_pyro.files import cannot_write, lock, make_folder, remove_leftovers
from vae_pyro.reporting.results import RESULT_FILE, JobResult
from vae_pyro.runs import evaluator, pictures, recording, trainer
from vae_pyro.runs.fingerprint import FINGERPRINT_FILE, Fingerprint
from vae_pyro.runs.manifest import JOB_FILE
from vae_pyro.saving import MODEL_FOLDER

_LOCK = ".lock"
_BEFORE_IT_BEGAN = _LOCK, "run.log", JOB_FILE

logger = logging.getLogger(__name__)

LEFT_BEHIND = (
    RESULT_FILE,
    *recording.FILES,
    *trainer.FILES,
    *evaluator.FILES,
    MODEL_FOLDER,
    *pictures.FILES,
    FINGERPRINT_FILE,  # the last to be set aside: a process killed on the way starts again
)
"""What a job leaves in its folder: each writer lists its own. Other files there are not touched."""


def claim(folder: Path) -> IO[bytes]:
    """Let no other process work in this folder until what is returned is closed.

    A process that is killed loses its claim. Files that it had not finished writing are removed.

    Raises:
        ResumeError: where another process is at work there.
        StorageError: where the folder cannot be written.
    """
    make_folder(folder)
    try:
        claimed = lock(folder / _LOCK, wait=False)
    except BlockingIOError as error:
        raise ResumeError(
            f"another process is at work in {folder}: wait for it or end it, or choose another "
            "folder (hydra.run.dir=..., in a sweep hydra.sweep.dir=...)"
        ) from error
    except OSError as error:
        raise cannot_write(folder, error) from error
    remove_leftovers(folder, *(folder / name for name in LEFT_BEHIND))
    return claimed


def continue_or_begin(folder: Path, fingerprint: Fingerprint, *, resume: bool) -> JobResult | None:
    """Prepare a job's folder for it.

    The files of a job with another fingerprint are set aside. So are those of the same job, unless
    it is to be resumed.

    Args:
        folder: the job's own.
        fingerprint: of the job that starts.
        resume: whether to continue the job that is there.

    Returns:
        its result, where it has finished before and is resumed; None where it is to run.
    """
    earlier = Fingerprint.read(folder / FINGERPRINT_FILE)
    if resume and earlier == fingerprint:
        return JobResult.read(folder)
    if (aside := set_aside(folder, LEFT_BEHIND)) is not None:
        why = "resume=true continues it"
        if resume:
            changes = earlier and fingerprint.changes_since(earlier)
            why = f"changed was {changes}" if changes else f"{FINGERPRINT_FILE} cannot be read"
        logger.info("a new run; what was there before is in %s (%s)", aside, why)
    fingerprint.write(folder / FINGERPRINT_FILE)
    return None


def remove_unused(folder: Path, below: Path) -> None:
    """Remove the folder of a job that was refused before it began, unless more is in it.

    Args:
        folder: the job's own.
        below: this folder, and those in it, go as well where they are empty then.
    """
    if (folder / FINGERPRINT_FILE).exists():
        return
    with suppress(OSError):  # what cannot be removed stays
        for path in (*folder.glob(".hydra/*"), *(folder / name for name in _BEFORE_IT_BEGAN)):
            path.unlink(missing_ok=True)
        (folder / ".hydra").rmdir()
        for path in (folder, *folder.parents):
            if path == folder or path.is_relative_to(below):
                path.rmdir()


def set_aside(folder: Path, names: Sequence[str]) -> Path | None:
    """Move what is there of ``names`` into the next ``superseded-N``, the last name last.

    Returns:
        where it is now; None where there was nothing.
    """
    found = [folder / name for name in names if (folder / name).exists()]
    if not found:
        return None
    taken = [int(n) for p in folder.glob("superseded-*") if (n := p.name.split("-")[1]).isdigit()]
    aside = folder / f"superseded-{1 + max(taken, default=0)}"
    make_folder(aside)
    for path in found:
        path.replace(aside / path.name)
    return aside
