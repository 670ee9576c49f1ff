"""Files that are whole or not there at all, and the files that this code is made of."""

import ast
import fcntl
import functools
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vae_pyro.errors import CheckpointError, StorageError

COMPUTING = (
    "compilation",
    "data",
    "evaluation",
    "guide.py",
    "likelihoods",
    "log_marginal",
    "model.py",
    "networks.py",
    "objectives.py",
    "randomness.py",
    "runs/evaluator.py",
    "runs/preparation.py",
    "runs/trainer.py",
    "saving.py",
    "training",
    "vae.py",
)
"""The part of this package that a result depends on."""


@functools.cache
def code_digest() -> str:
    """SHA-256 of the code that computes results, in hexadecimal.

    It does not depend on comments, docstrings, and the words of errors and of the log; nor on the
    modules that report, record or run the command line. So better words do not make a stopped run
    another one.
    """
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for name in COMPUTING:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()} ".encode())
            digest.update(without_words(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()


def without_words(source: str) -> str:
    """The syntax tree of a module, as text, without comments and without words for people.

    Docstrings, arguments of ``logger``'s methods and of errors that are raised are left out.
    """
    return ast.dump(_WordRemover().visit(ast.parse(source)))


class _WordRemover(ast.NodeTransformer):
    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:  # the name that ast wants
        """Drop docstrings, and calls of a logger."""
        value = node.value
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            return None
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            owner = value.func.value
            if isinstance(owner, ast.Name) and owner.id == "logger":
                return None
        return self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Keep which error is raised, and drop its words."""
        if isinstance(node.exc, ast.Call):
            return ast.Raise(exc=node.exc.func, cause=node.cause)
        return node


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, whole.

    Raises:
        StorageError: where the disk is full or the folder cannot be written; the old file remains.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


_LEFTOVER = re.compile(r"\..+\.(csv|json|jsonl|png|safetensors|yaml)\.\d+")


def remove_leftovers(*folders: Path) -> None:
    """Remove the unfinished files of killed processes; no other process may write there.

    Args:
        folders: each by itself, without the folders in it; one that is missing is passed over.
    """
    for folder in folders:
        for path in [] if folder.is_symlink() else folder.glob(".*"):
            if _LEFTOVER.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def read_regular(path: Path, limit: int) -> bytes:
    """The content of a small file that somebody else may have made.

    Args:
        path: of the file; links are followed.
        limit: the most bytes it may have.

    Raises:
        OSError: where it cannot be read, is no regular file (a pipe would hang), or is larger.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write into it.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        _require_regular(path, os.fstat(file.fileno()))
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"{path} has more than {limit:,} bytes")
    return content


def regular_size(path: Path) -> int:
    """The bytes of a file that is about to be opened by its name.

    Raises:
        OSError: where there is none, or it is no regular file.
    """
    status = path.stat()
    _require_regular(path, status)
    return status.st_size


def _require_regular(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"{path} is not a regular file")


def parse_json(text: str | bytes) -> Any:
    """JSON from a file that somebody else may have made.

    Raises:
        ValueError: where it is no JSON, or is nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes that a safetensors file announces, by name; no tensor is read.

    Raises:
        OSError: where there is no such file, or it is no regular file.
        SafetensorError: where it is damaged.
    """
    regular_size(path)
    with safe_open(path, "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in sorted(file.keys())}


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Of the processes that name this file, one at a time is inside; the others wait.

    Raises:
        OSError: where the file cannot be created.
    """
    with path.open("a") as file:
        lock(file)
        yield


def lock(file: IO[str], *, wait: bool = True) -> None:
    """Lock an open file until it is closed, on file systems that have locks.

    Some file systems that clusters share have none (ENOLCK); there nothing is locked.

    Raises:
        BlockingIOError: where another process holds the lock and ``wait`` is False.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        pass


def flush_folder(folder: Path) -> None:
    """Let a rename in this folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder, and those above it.

    Raises:
        StorageError: where that is not allowed, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from error


def cannot_write(path: Path, error: OSError) -> StorageError:
    """What to tell of a file that could not be written."""
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}. Make room, or choose another folder "
        "(hydra.run.dir=..., in a sweep hydra.sweep.dir=...); what was written before is whole, "
        "and resume=true goes on from there"
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a few words about them, with the SHA-256 of both, atomically.

    ``read_tensors`` returns both in the order in which they are given here.

    Args:
        path: a safetensors file.
        tensors: by name.
        about: of whatever JSON has.

    Raises:
        StorageError: as ``write_atomically``.
    """
    words = json.dumps(about)
    alone = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    # A safetensors file holds its tensors in an order of its own, so theirs is kept beside them.
    names = json.dumps(list(alone))
    metadata = {"about": words, "names": names, "sha256": _digest(alone, words)}
    write_atomically(path, safetensors.torch.save(alone, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What ``write_tensors`` wrote, to the bit. Nothing in the file is executed.

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


def _digest(tensors: Mapping[str, Tensor], words: str) -> str:
    """SHA-256 of the words, and of the tensors with their names, in this order."""
    digest = hashlib.sha256(words.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
