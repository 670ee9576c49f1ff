"""A job's folder from one process to the next: gone on with, read back, or set aside."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from vae_pyro.errors import ResumeError
from vae_pyro.files import cannot_write, lock, make_folder, remove_leftovers
from vae_pyro.reporting.results import JobResult
from vae_pyro.runs.fingerprint import Fingerprint

FINGERPRINT_FILE = "fingerprint.json"
_LOCK = ".lock"
# What a job leaves in its folder; whatever else lies there is not its own.
_LEFT_BEHIND = (
    "result.json",
    "config.yaml",
    "record",
    "checkpoint",
    "evaluation",
    "model",
    "per_image.csv",
    "latent.csv",
    "estimators.csv",
    "elbo_vs_iwae.png",
    "samples.png",
    "reconstructions.png",
    "latent_space.png",
    FINGERPRINT_FILE,
)


def claim(folder: Path) -> IO[str]:
    """Let no other process work in this folder until what is returned is closed.

    What a process that was killed there had not finished writing is removed.

    A process that is killed loses its claim.

    Raises:
        ResumeError: where another process is at work there.
        StorageError: where the folder cannot be written.
    """
    make_folder(folder)
    try:
        # Neither through a link that somebody left there, nor waiting at a pipe.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
        claimed = os.fdopen(os.open(folder / _LOCK, flags, 0o666), "r+")
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        lock(claimed, wait=False)
    except BlockingIOError as error:
        claimed.close()
        raise ResumeError(
            f"another process is at work in {folder}: wait for it or end it, or choose another "
            "folder (hydra.run.dir=..., in a sweep hydra.sweep.dir=...)"
        ) from error
    remove_leftovers(folder, *(folder / name for name in _LEFT_BEHIND))
    return claimed


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
        tell: called with one line where something is set aside.

    Returns:
        its result, where it has finished before and is resumed; None where it is to run.
    """
    earlier = Fingerprint.read(folder / FINGERPRINT_FILE)
    if resume and earlier == fingerprint:
        return JobResult.read(folder)
    if (aside := set_aside(folder, _LEFT_BEHIND)) is not None:
        why = "to go on with it, ask for resume=true"
        if resume:
            changes = earlier and fingerprint.changes_since(earlier)
            why = f"changed was {changes}" if changes else f"{FINGERPRINT_FILE} cannot be read"
        tell(f"a new run; what was there before is in {aside} ({why})")
    fingerprint.write(folder / FINGERPRINT_FILE)
    return None


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
