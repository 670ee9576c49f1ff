"""Checkpoints of a training: written atomically, verified when they are read."""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vae_pyro.errors import CheckpointError
from vae_pyro.files import make_folder, read_tensors, write_tensors

logger = logging.getLogger(__name__)

FOLDER = "checkpoint"
"""Where a job keeps its checkpoints, in its own folder."""
_KEPT = 2  # checkpoints: the last one, and the one before in case it is damaged
_BETWEEN_COPIES = 0.25  # seconds; a copy in memory takes as long as a few steps
_SHARE = 0.05  # at most this share of the time is spent on writing checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """Everything that the rest of a training depends on.

    Attributes:
        epoch: number of finished epochs.
        tensors: weights, optimiser state and random generators, by name.
        about: the rest, as JSON values.
    """

    epoch: int
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


class Checkpoints:
    """The last checkpoints of one training, in one folder.

    Args:
        folder: where they are written; created with the first.
        seconds: the longest time between two checkpoints. They are written less often where writing
            takes more than a twentieth of the time.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self._seconds = seconds
        self._latest: Checkpoint | None = None
        self._written_epoch = -1
        self._due = 0.0
        self._next_copy = 0.0
        self._must_wait: Callable[[], bool] = lambda: False

    def wait_for(self, must_wait: Callable[[], bool]) -> None:
        """None are due while this says that something else of their epoch is unfinished."""
        self._must_wait = must_wait

    def are_due(self) -> bool:
        """Whether enough time has passed for another copy: what an interruption loses is a moment.

        Copies are taken at most four times a second.
        """
        return time.monotonic() >= self._next_copy and not self._must_wait()

    def keep(self, checkpoint: Checkpoint) -> None:
        """Remember the latest checkpoint; write it where one is due.

        Raises:
            StorageError: where it cannot be written; those before remain.
        """
        self._latest = checkpoint
        self._next_copy = time.monotonic() + min(_BETWEEN_COPIES, self._seconds)
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write the latest checkpoint now, unless it is on disk already.

        Raises:
            StorageError: as ``keep``.
        """
        if self._latest is None or self._latest.epoch == self._written_epoch:
            return
        start = time.monotonic()
        make_folder(self.folder)
        path = self.folder / f"epoch-{self._latest.epoch:06d}.safetensors"
        write_tensors(path, self._latest.tensors, self._latest.about)
        self._written_epoch = self._latest.epoch
        for old in self.paths()[:-_KEPT]:
            old.unlink(missing_ok=True)
        end = time.monotonic()
        self._due = end + max(self._seconds, (end - start) / _SHARE)

    def read(self) -> Checkpoint | None:
        """The last checkpoint that is whole; None where there is none.

        A damaged one is set aside, with a note in the log.
        """
        for path in reversed(self.paths()):
            try:
                tensors, about = read_tensors(path)
            except CheckpointError as error:
                logger.warning("%s; it is left out", error)
                path.replace(path.with_suffix(".damaged"))
                continue
            self._written_epoch = _epoch(path)
            return Checkpoint(self._written_epoch, tensors, about)
        return None

    def remove(self) -> None:
        """Remove all of them, as when the training and what follows it have ended."""
        for path in self.paths():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # there are other files
            self.folder.rmdir()

    def paths(self) -> list[Path]:
        """The checkpoint files, the oldest first."""
        found = (p for p in self.folder.glob("epoch-*.safetensors") if p.stem[6:].isdigit())
        return sorted(found, key=_epoch)


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))
