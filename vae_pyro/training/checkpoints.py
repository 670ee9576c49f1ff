"""Checkpoints of a training: written atomically, verified when they are read."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vae_pyro.errors import CheckpointError
from vae_pyro.files import make_folder, read_tensors, write_tensors

_KEPT = 2  # checkpoints: the last one, and the one before should it be damaged


_SHARE = 0.05  # of the time, at most, is spent on writing checkpoints


@dataclass(frozen=True)
class Checkpoint:
    """All that the rest of a training depends on.

    Attributes:
        epoch: how many were done.
        tensors: weights, optimiser and random generators, by name.
        about: what goes with them; whatever JSON has.
    """

    epoch: int
    tensors: Mapping[str, Tensor]
    about: Mapping[str, Any]


class Checkpoints:
    """The last checkpoints of one training.

    Args:
        folder: where they are; created with the first.
        seconds: how long a training may go on without one. Where writing one takes longer than a
            twentieth of that, it is done less often.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder = folder
        self._seconds = seconds
        self._latest: Checkpoint | None = None
        self._written_epoch = -1
        self._due = 0.0

    def keep(self, checkpoint: Checkpoint) -> None:
        """Take note of one; write it where it is time to.

        Raises:
            StorageError: where it cannot be written; those before remain.
        """
        self._latest = checkpoint
        if time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write the latest, unless it is written; as when the training is about to be stopped.

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

    def read(self, tell: Callable[[str], None]) -> Checkpoint | None:
        """The last one that is whole; None where there is none.

        Args:
            tell: called with one line about each that is damaged.
        """
        for path in reversed(self.paths()):
            try:
                tensors, about = read_tensors(path)
            except CheckpointError as error:
                tell(f"{error}; it is left out")
                path.replace(path.with_suffix(".damaged"))
                continue
            self._written_epoch = _epoch(path)
            return Checkpoint(self._written_epoch, tensors, about)
        return None

    def paths(self) -> list[Path]:
        """The files that are there, the oldest first."""
        found = (p for p in self.folder.glob("epoch-*.safetensors") if p.stem[6:].isdigit())
        return sorted(found, key=_epoch)


def _epoch(path: Path) -> int:
    return int(path.stem.removeprefix("epoch-"))
