"""Compiled graphs on disk, for later processes: private to the user, checked, limited in size.

A graph holds native code. So graphs are read only from one folder that no other user can write
(``private_folder``).
"""

import ctypes
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vae_pyro.compilation.tape import Tape
from vae_pyro.errors import CheckpointError, StorageError
from vae_pyro.files import private_folder, read_tensors, write_tensors

logger = logging.getLogger(__name__)

_MOST_BYTES = 200 << 20  # of all graphs; one has 100 to 300 kB
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class StoredGraph:
    """A tape with its kernels.

    Attributes:
        tape: what it does.
        library: the content of a shared library, its kernels.
        constants: the last inputs of the tape.
    """

    tape: Tape
    library: bytes
    constants: Sequence[Tensor]

    def load(self) -> ctypes.CDLL:
        """The kernels, loaded from a file of their own: the system knows libraries by their files.

        Raises:
            OSError: where the system does not load them.
        """
        with tempfile.TemporaryDirectory(prefix="vae-pyro-") as folder:  # private to the user
            path = Path(folder) / "kernels.so"
            path.write_bytes(self.library)
            return ctypes.CDLL(str(path))


def read(digest: str) -> StoredGraph | None:
    """The graph of this digest; None where there is none that is whole."""
    home = private_folder()
    path = None if home is None else home / f"{digest}{_SUFFIX}"
    if path is None or not path.is_file() or path.is_symlink():
        return None
    try:
        tensors, about = read_tensors(path)
        library = bytes(tensors.pop("library").numpy().data)
        graph = StoredGraph(Tape.from_json(about), library, list(tensors.values()))
        os.utime(path)  # the least recently used is the first to go
    except (CheckpointError, StorageError, OSError, KeyError, TypeError, ValueError) as error:
        logger.debug("%s is made anew: %s", path, error)
        return None
    except AttributeError as error:  # a type that this version of PyTorch does not have
        logger.debug("%s is made anew: %s", path, error)
        return None
    return graph


def write(digest: str, graph: StoredGraph) -> None:
    """Keep a graph, and remove the least recently used ones where there are too many bytes."""
    home = private_folder()
    if home is None:
        return
    tensors = {
        "library": torch.frombuffer(bytearray(graph.library), dtype=torch.uint8),
        **{f"constant {n}": tensor for n, tensor in enumerate(graph.constants)},
    }
    with suppress(StorageError):  # without it, the next process compiles again
        write_tensors(home / f"{digest}{_SUFFIX}", tensors, graph.tape.as_json())
    with suppress(OSError):
        paths = sorted(home.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
        total = sum(path.stat().st_size for path in paths)
        while total > _MOST_BYTES:
            oldest = paths.pop(0)
            total -= oldest.stat().st_size
            oldest.unlink(missing_ok=True)


def forget(digest: str) -> None:
    """Remove a graph that does not give the program's numbers."""
    home = private_folder()
    if home is not None:
        (home / f"{digest}{_SUFFIX}").unlink(missing_ok=True)
