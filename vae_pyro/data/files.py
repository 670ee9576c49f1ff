"""Data sets that are read from files, and downloaded where the files are missing."""

import hashlib
import os
import tempfile
from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vae_pyro.data.dataset import Dataset
from vae_pyro.data.source import ImageSource
from vae_pyro.errors import DataError
from vae_pyro.files import lock


@dataclass(frozen=True)
class DownloadedSource(ImageSource, ABC):
    """A data set in torchvision's folder layout under ``root``; missing files are downloaded.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        root: the folder with all such data sets, each in its own subfolder.
    """

    root: str = "data"

    name: ClassVar[str]
    """The data set's usual name, for messages."""
    subfolder: ClassVar[str]
    """Its folder under ``root``, as torchvision names it."""

    @property
    def folder(self) -> Path:
        """The folder with its files."""
        return Path(self.root) / self.subfolder

    def load(self) -> Dataset:
        """Read and split; a user's processes on one machine take turns, so one of them downloads.

        Raises:
            DataError: where the files are missing or damaged, or the lock file cannot be used.
        """
        digest = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]
        # Users who share a folder for temporary files cannot open each other's locks.
        user = os.getuid() if hasattr(os, "getuid") else "user"
        path = Path(tempfile.gettempdir()) / f"vae-pyro-{user}-{digest}.lock"
        try:
            turn = lock(path)
        except OSError as error:
            raise DataError(
                f"{path} cannot be used as a lock file ({error.strerror or error}): remove it, or "
                "name another folder for temporary files in the environment variable TMPDIR"
            ) from error
        with turn:
            return super().load()

    @contextmanager
    def downloading(self, missing: str) -> Iterator[None]:
        """Within the block, a failed download raises one message and leaves no empty folder.

        Args:
            missing: the files to put into the folder by hand if the download fails.

        Raises:
            DataError: where the download fails.
        """
        new_folders = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            yield
        except (RuntimeError, OSError) as error:
            for path in new_folders:
                with suppress(OSError):  # not empty: a part of the download is kept
                    path.rmdir()
            raise DataError(
                f"{self.name} is not in {self.folder.resolve()} and could not be downloaded: "
                f"missing or damaged {missing}. Put it there, point data.root or VAE_PYRO_DATA at "
                f"a folder that holds {self.subfolder}, or use data=digits, which needs no "
                "download."
            ) from error
