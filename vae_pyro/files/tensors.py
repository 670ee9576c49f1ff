"""Tensors in a file, with a description of them and a checksum of both."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from vae_pyro.errors import CheckpointError, StorageError
from vae_pyro.files.disk import parse_json, regular_size, write_atomically

if TYPE_CHECKING:  # slow to import, and the process that records needs none of it
    from torch import Tensor


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name, from the header of a safetensors file; no tensor is read.

    Raises:
        OSError: where there is no such file, or it is no regular file.
        SafetensorError: where it is damaged.
    """
    regular_size(path)
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], about: Mapping[str, Any]) -> None:
    """Write tensors and a description of them atomically, with the SHA-256 of both.

    ``read_tensors`` returns the tensors in the order in which they are given here.

    Args:
        path: a safetensors file.
        tensors: by name.
        about: the description, of JSON's types.

    Raises:
        StorageError: as ``write_atomically``.
    """
    from safetensors.torch import save

    words = json.dumps(about)
    alone = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # A safetensors file holds its tensors in an order of its own, so theirs is kept beside them.
    names = json.dumps(list(alone))
    metadata = {"about": words, "names": names, "sha256": _digest(alone, words)}
    write_atomically(path, save(alone, metadata))


def read_tensors(path: Path) -> tuple[dict[str, "Tensor"], dict[str, Any]]:
    """Tensors by name, and their description, as ``write_tensors`` wrote them, to the bit.

    Nothing in the file is executed.

    Raises:
        CheckpointError: where the file is missing or damaged, or is no regular file.
        StorageError: where the disk does not let it be read.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would hang
            raise CheckpointError(f"{path} cannot be read: it is not a regular file")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in json.loads(metadata["names"])}
        words = metadata["about"]
        if metadata["sha256"] != _digest(tensors, words):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the saved one")
        about: dict[str, Any] = parse_json(words)
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read now: {error.strerror or error}") from error
    return tensors, about


def _digest(tensors: Mapping[str, "Tensor"], words: str) -> str:
    """SHA-256 of the words, and of the tensors with their names, in this order."""
    import torch

    digest = hashlib.sha256(words.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
