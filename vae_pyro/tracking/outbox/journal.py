"""The journal of a run: a file with one line per entry, appended, flushed and read back whole.

A journal may come from somebody else's folder, so every entry is checked before it is used.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, create_model

from vae_pyro.errors import TrackingError
from vae_pyro.files import cannot_write, read_regular, write_atomically
from vae_pyro.tracking.base import Status

# Names on disk and in the store stay: what earlier versions recorded must still be delivered.
RECORD_FOLDER = "record"  # of a job or sweep
JOURNAL = "journal.jsonl"
TAG = "record"  # of the run in the tracker, so that it is found again and never opened twice
_DELIVERED = "delivered"
_LARGEST = 1 << 30  # bytes
Entry = dict[str, Any]
_WORD = "[A-Za-z0-9_][A-Za-z0-9_.-]*"
_Name = Annotated[str, Field(pattern=f"^{_WORD}$", max_length=100)]
_Key = Annotated[str, Field(pattern=f"^{_WORD}(/{_WORD})?$", max_length=100)]
_Step = Annotated[int, Field(ge=0, lt=2**63)]
_Time = Annotated[float, Field(ge=0, lt=1e11)]  # seconds since 1970
_Path = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4000)]

_FIELDS: dict[str, dict[str, Any]] = {
    "start": {
        "name": str,
        "tags": Mapping[str, str],
        "parent": _Name | None,
        "tracker": Mapping[str, str],
    },
    "params": {"params": Mapping[str, str]},
    "metrics": {"metrics": Mapping[str, float], "step": _Step, "at": _Time},
    "image": {"key": _Key, "step": _Step, "file": _Name},
    "dataset": {"name": str, "digest": str, "source": str, "profile": Mapping[str, Any]},
    "file": {"path": _Path, "folder": _Name | None},
    "model": {"name": _Name},
    "tag": {"name": _Name, "value": str},
    "describe": {"markdown": str},
    "end": {"status": Status},
}
_Entries: Any = create_model  # its types do not allow for fields from a table
_SCHEMAS = {
    op: _Entries(
        op,
        __config__=ConfigDict(strict=True, extra="forbid"),
        op=(str, ...),
        **{name: (kind, ...) for name, kind in fields.items()},
    )
    for op, fields in _FIELDS.items()
}


def write_journal(folder: Path, entries: list[Entry]) -> None:
    """Write all entries anew.

    Raises:
        StorageError: where the journal cannot be written; the old one remains.
    """
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    write_atomically(folder / JOURNAL, lines.encode())


def append_entry(folder: Path, entry: Entry) -> None:
    """Append one entry and flush it to disk.

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
    """Note how far delivery has come; where this note is lost, entries are delivered again."""
    aside = folder / f".{_DELIVERED}"
    with suppress(OSError):
        aside.unlink(missing_ok=True)
        with aside.open("x") as file:  # never through a link that lies there
            file.write(f"{count} {run_id}")
        aside.replace(folder / _DELIVERED)


def read_journal(folder: Path) -> list[Entry]:
    """All whole entries; a last line that a crash left incomplete is cut off.

    Returns:
        the entries in order; none where there is no journal.

    Raises:
        TrackingError: where an entry is damaged, or the file is no journal.
    """
    path = folder / JOURNAL
    try:
        content = read_regular(path, _LARGEST)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise TrackingError(f"{path} cannot be read: {error.strerror or error}") from error
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        try:
            os.truncate(path, len(whole))
        except OSError as error:
            raise cannot_write(path, error) from error
    entries: list[Entry] = []
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            _SCHEMAS[entry["op"]].model_validate(entry)
            is_whole = (entry["op"] == "start") == (number == 1)
            is_whole &= number > 1 or TAG in entry["tags"]
        except (ValueError, TypeError, KeyError, RecursionError):
            is_whole = False
        if not is_whole:
            raise TrackingError(
                f"{path} is damaged in line {number}: the run's records are in the tracking store "
                "as far as they were delivered; move the folder away to start the job anew"
            )
        entries.append(entry)
    return entries


def read_delivered(folder: Path) -> tuple[int, str | None]:
    """How many entries were delivered at least, and the id of the run that has them."""
    try:
        count, run_id = read_regular(folder / _DELIVERED, 1000).decode().split()
        return max(0, int(count)), run_id
    except (OSError, ValueError):
        return 0, None


def identities(entry: Entry) -> set[tuple[Any, ...]]:
    """Keys of what a resumed job would record a second time."""
    if entry["op"] == "metrics":
        return {("metric", name, entry["step"]) for name in entry["metrics"]}
    if entry["op"] == "image":
        return {("image", entry["key"], entry["step"])}
    if entry["op"] == "dataset":
        return {("dataset", entry["name"], entry["digest"])}
    return {(entry["op"],)} if entry["op"] in {"params", "model"} else set()
