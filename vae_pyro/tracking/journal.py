"""The file of a run's record: one line an entry, appended, flushed, and read back whole."""

import json
import os
from pathlib import Path
from typing import Any

from vae_pyro.errors import TrackingError
from vae_pyro.files import cannot_write, write_atomically

JOURNAL = "journal.jsonl"
_DELIVERED = "delivered"
Entry = dict[str, Any]
_FIELDS = {
    "start": {"op", "name", "tags", "parent", "tracker"},
    "params": {"op", "params"},
    "metrics": {"op", "metrics", "step", "at"},
    "image": {"op", "key", "step", "file"},
    "file": {"op", "path", "folder"},
    "describe": {"op", "markdown"},
    "end": {"op", "status"},
}


def write_journal(folder: Path, entries: list[Entry]) -> None:
    """All of it anew.

    Raises:
        StorageError: where it cannot be written; the old one remains.
    """
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    write_atomically(folder / JOURNAL, lines.encode())


def append_entry(folder: Path, entry: Entry) -> None:
    """Add a line, flushed to disk.

    Raises:
        StorageError: where it cannot be written; nothing of it remains.
    """
    path = folder / JOURNAL
    size = path.stat().st_size
    try:
        with path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        os.truncate(path, size)
        raise cannot_write(path, error) from error


def write_delivered(folder: Path, count: int, run_id: str | None) -> None:
    """Not flushed: where a loss of power loses it, entries are delivered again."""
    aside = folder / f".{_DELIVERED}"
    aside.write_text(f"{count} {run_id}")
    aside.replace(folder / _DELIVERED)


def read_journal(folder: Path) -> list[Entry]:
    """The whole entries; what a crash left of a last one is cut off.

    Raises:
        TrackingError: where an earlier entry is damaged.
    """
    path = folder / JOURNAL
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    entries: list[Entry] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            is_whole = set(entry) == _FIELDS[entry["op"]] and (entry["op"] == "start") == (
                number == 1
            )
        except (ValueError, TypeError, KeyError):
            is_whole = False
        if not is_whole:
            raise TrackingError(
                f"{path} is damaged in line {number}: the run's records are in the tracking store "
                "as far as they were delivered; move the folder away to start the job anew"
            )
        entries.append(entry)
    return entries


def read_delivered(folder: Path) -> tuple[int, str | None]:
    """How many entries were delivered at least, and to which run."""
    try:
        count, run_id = (folder / _DELIVERED).read_text().split()
        return int(count), run_id
    except (OSError, ValueError):
        return 0, None


def identities(entry: Entry) -> set[tuple[Any, ...]]:
    """What a resumed job would say again."""
    if entry["op"] == "metrics":
        return {("metric", name, entry["step"]) for name in entry["metrics"]}
    if entry["op"] == "image":
        return {("image", entry["key"], entry["step"])}
    return {("params",)} if entry["op"] == "params" else set()
