"""Files: written whole or not at all, read with care, locked."""

import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from filelock import lock_descriptor

from vae_pyro.errors import StorageError

T = TypeVar("T")
_LARGEST_JSON = 16 << 20  # bytes
# Flags of Unix, and one of Windows. Opening a pipe would wait for its other end, and Windows would
# change the ends of lines.
_AS_IT_IS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)


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
    """Remove the unfinished files of killed processes; no other process may be writing there.

    Args:
        folders: each without its subfolders; missing ones are passed over.
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
    with os.fdopen(os.open(path, os.O_RDONLY | _AS_IT_IS), "rb") as file:
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
    """Parse JSON from a file that somebody else may have made.

    Raises:
        ValueError: where it is no JSON, or is nested more deeply than Python can follow.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def parse_file(kind: type[T], path: Path) -> T | None:
    """A dataclass that was written as JSON; None where the file does not hold one.

    Args:
        kind: the dataclass, whose annotations are checked.
        path: of the file, of at most 16 MB.
    """
    from pydantic import TypeAdapter

    try:
        content = read_regular(path, _LARGEST_JSON)
        return TypeAdapter(kind).validate_json(content, strict=True)
    except (OSError, ValueError):  # pydantic's error is a ValueError
        return None


def lock(path: Path, *, wait: bool = True) -> IO[bytes]:
    """Lock a file: only one process at a time holds the lock.

    The lock lasts until the returned file is closed; a process that is killed loses it. The lock
    file stays: if it were removed, two processes could hold locks on two files of one name. Some
    file systems that clusters share have no locks (ENOLCK, ENOSYS); there nothing is locked.

    Args:
        path: of the lock file, which is created where it is missing; it holds nothing.
        wait: whether to wait for another process that holds the lock.

    Returns:
        the open lock file, to be used in a ``with`` statement or closed.

    Raises:
        BlockingIOError: where another process holds the lock and ``wait`` is False.
        OSError: where the file cannot be created, or is a link or no regular file.
    """
    flags = os.O_RDWR | os.O_CREAT | _NO_LINK | _AS_IT_IS
    file = os.fdopen(os.open(path, flags, 0o666), "rb+", buffering=0)
    try:
        _require_regular(path, os.fstat(file.fileno()))
        if not _try_to_lock(file, wait=wait):
            raise BlockingIOError(f"{path} is locked by another process")
    except BaseException:
        file.close()
        raise
    return file


def _try_to_lock(file: IO[bytes], *, wait: bool) -> bool:
    try:
        return lock_descriptor(file.fileno(), blocking=wait)
    except OSError:  # this file system, or this Python, has no locks
        return True


def flush_folder(folder: Path) -> None:
    """Let a rename in this folder survive a loss of power; Windows needs no such call."""
    if not hasattr(os, "O_DIRECTORY"):
        return
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
    """The error to raise where a file could not be written."""
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}. Make room, or choose another folder "
        "(hydra.run.dir=..., in a sweep hydra.sweep.dir=...). What was written before is whole: "
        "run the same command with resume=true to continue"
    )
