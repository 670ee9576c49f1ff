"""A run's own record on disk: written first, delivered to the tracker when it answers."""

import json
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_pyro.errors import TrackingError
from vae_pyro.files import cannot_write, make_folder, write_atomically
from vae_pyro.interruption import uninterrupted
from vae_pyro.passwords import without_passwords
from vae_pyro.tracking.base import NoTracking, Run, Status, Tracker

JOURNAL = "journal.jsonl"
TAG = "record"  # of the run in the tracker, so that it is found again and never opened twice
_DELIVERED = "delivered"
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the tracker is away
_LAST_TRIES = 5.0  # seconds spent on delivering when the run ends

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
Tell = Callable[[str], None]


class Record(Run):
    """Everything is appended to ``journal.jsonl`` first, and handed to the tracker in that order.

    Where the tracker does not answer, the run goes on and the tracker is tried again with later
    entries, ever less often. Nothing is recorded twice: not what a resumed job says again, and not
    what is delivered again because it is unknown whether it had arrived.

    Args:
        folder: of the record; pictures are kept there too.
        tracker: where it is delivered.
        tell: called with one line where the tracker went away or came back.

    Raises:
        StorageError: from every method, where the journal cannot be written.
    """

    def __init__(self, folder: Path, tracker: Tracker, tell: Tell) -> None:
        self._folder = folder
        self._tracker = tracker
        self._tell = tell
        self._run: Run | None = None
        self._entries = read_journal(folder)
        self._delivered, self.run_id = _read_delivered(folder)
        self._known: set[tuple[Any, ...]] = set()
        for entry in self._entries:
            self._known |= _identities(entry)
        self._unsure = len(self._entries)  # what of these has arrived is not known for certain
        self._wait = self._retry_at = 0.0
        self._why = ""

    @property
    def undelivered(self) -> int:
        """How many entries wait for the tracker."""
        return len(self._entries) - self._delivered

    def start(
        self, name: str, tags: Mapping[str, str], parent: str | None = None, *, must_answer: bool
    ) -> None:
        """Open the run, or open it again.

        Args:
            name: of the run.
            tags: likewise.
            parent: run id of the sweep it belongs to.
            must_answer: whether a tracker that is away is an error, and not only told of.

        Raises:
            TrackingError: where it must answer and does not; nothing is left behind.
        """
        tracker = self._tracker.options()
        is_new = not self._entries
        if is_new:
            make_folder(self._folder)
            tags = {**tags, TAG: uuid.uuid4().hex}
            first = {"op": "start", "name": name, "tags": tags, "parent": parent}
            self._entries = [{**first, "tracker": tracker}]
        elif self._entries[0]["tracker"] != tracker:  # all of it goes to another store
            self._entries[0]["tracker"] = tracker
            self._delivered, self.run_id = 0, None
        # Before the run is opened: a process that is killed in between finds the run by its tag.
        lines = "".join(json.dumps(entry) + "\n" for entry in self._entries)
        write_atomically(self._folder / JOURNAL, lines.encode())
        if must_answer:
            try:
                self._open()
            except TrackingError:
                if is_new:
                    (self._folder / JOURNAL).unlink()
                raise
        if not is_new:
            self._add({"op": "end", "status": "RUNNING"})
        self.deliver()

    def log_params(self, params: Mapping[str, Any]) -> None:
        entry = {"op": "params", "params": {key: str(value) for key, value in params.items()}}
        if not _identities(entry) <= self._known:
            self._add(entry)

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        new = {n: float(v) for n, v in metrics.items() if ("metric", n, step) not in self._known}
        if new:
            at = time.time() if at is None else at
            self._add({"op": "metrics", "metrics": new, "step": step, "at": at})

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        if ("image", key, step) in self._known:
            return
        name = f"{key}-{step:06d}.png"
        try:
            Image.fromarray(image).save(self._folder / name)
        except OSError as error:
            raise cannot_write(self._folder / name, error) from error
        self._add({"op": "image", "key": key, "step": step, "file": name})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._add({"op": "file", "path": os.path.relpath(path, self._folder), "folder": folder})

    def describe(self, markdown: str) -> None:
        self._add({"op": "describe", "markdown": markdown})

    def end(self, status: Status) -> None:
        self._add({"op": "end", "status": status})
        deadline = time.monotonic() + _LAST_TRIES
        while self.undelivered and time.monotonic() < deadline:
            time.sleep(0.5)
            self._retry_at = 0.0
            self.deliver()
        if self.undelivered:
            self._tell(
                f"{self.undelivered} of {len(self._entries)} records wait in {self._folder}, "
                f"because {self._why}; python -m vae_pyro.deliver {self._folder.parent} hands them "
                "over when the tracking store answers again"
            )

    def has_image(self, key: str, step: int) -> bool:
        return ("image", key, step) in self._known

    def discard(self) -> None:
        if self._run is not None:
            self._run.discard()
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def deliver(self) -> None:
        """Hand over what waits, in order, unless the tracker was away just now."""
        if not self.undelivered or time.monotonic() < self._retry_at:
            return
        try:
            self._hand_over_all()
        except Exception as error:  # of any of the libraries between here and the store
            self._run = None
            if not self._wait:
                first_line, *_ = str(error).splitlines() or [type(error).__name__]
                self._why = without_passwords(first_line)
                self._tell(
                    f"the tracking store cannot take records for now ({self._why}); they are kept "
                    f"in {self._folder} and delivered when it answers"
                )
            self._wait = min(max(2 * self._wait, _FIRST_WAIT), _LONGEST_WAIT)
            self._retry_at = time.monotonic() + self._wait
            return
        if self._wait:
            self._tell("the tracking store answers again, and has every record")
            self._wait = 0.0

    def _hand_over_all(self) -> None:
        run = self._run or self._open()
        try:
            while self.undelivered:
                self._hand_over(run, self._entries[self._delivered])
                with uninterrupted():
                    self._delivered += 1
                    self._note_delivered()
        except BaseException:
            self._unsure = max(self._unsure, self._delivered + 1)
            raise

    def _open(self) -> Run:
        start = self._entries[0]
        run = self._tracker.find_run(TAG, start["tags"][TAG])
        if run is None:  # or gone: then the record makes it anew
            self._delivered = 0
            run = self._tracker.start_run(start["name"], start["tags"], start["parent"])
        self._delivered = max(self._delivered, 1)
        self._run, self.run_id = run, run.run_id
        self._note_delivered()
        return run

    def _hand_over(self, run: Run, entry: Entry) -> None:
        if entry["op"] == "params":
            run.log_params(entry["params"])
        elif entry["op"] == "metrics":
            run.log_metrics(entry["metrics"], entry["step"], entry["at"])
        elif entry["op"] == "image":
            is_unsure = self._delivered < self._unsure
            if not (is_unsure and run.has_image(entry["key"], entry["step"])):
                image = np.asarray(Image.open(self._folder / entry["file"]))
                run.log_image(entry["key"], image, entry["step"])
        elif entry["op"] == "file":
            path = (self._folder / entry["path"]).resolve()
            if path.exists():
                run.log_file(path, entry["folder"])
        elif entry["op"] == "describe":
            run.describe(entry["markdown"])
        elif entry["op"] == "end":
            run.end(entry["status"])

    def _add(self, entry: Entry) -> None:
        path = self._folder / JOURNAL
        with uninterrupted():
            size = path.stat().st_size
            try:
                with path.open("ab") as file:
                    file.write(json.dumps(entry).encode() + b"\n")
            except OSError as error:
                os.truncate(path, size)
                raise cannot_write(path, error) from error
            self._entries.append(entry)
            self._known |= _identities(entry)
        self.deliver()

    def _note_delivered(self) -> None:
        """Not flushed: where a loss of power loses it, entries are delivered again."""
        aside = self._folder / f".{_DELIVERED}"
        aside.write_text(f"{self._delivered} {self.run_id}")
        aside.replace(self._folder / _DELIVERED)


def open_run(
    tracker: Tracker,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    *,
    must_answer: bool,
    tell: Tell,
) -> Run:
    """A run with a record in ``folder``; goes on with the record that is there.

    Raises:
        TrackingError: as ``Record.start``.
        StorageError: likewise.
    """
    if isinstance(tracker, NoTracking):
        return tracker.start_run(name, tags, parent)
    record = Record(folder, tracker, tell)
    record.start(name, tags, parent, must_answer=must_answer)
    return record


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


def _read_delivered(folder: Path) -> tuple[int, str | None]:
    try:
        count, run_id = (folder / _DELIVERED).read_text().split()
        return int(count), run_id
    except (OSError, ValueError):
        return 0, None


def _identities(entry: Entry) -> set[tuple[Any, ...]]:
    """What a resumed job would say again."""
    if entry["op"] == "metrics":
        return {("metric", name, entry["step"]) for name in entry["metrics"]}
    if entry["op"] == "image":
        return {("image", entry["key"], entry["step"])}
    return {("params",)} if entry["op"] == "params" else set()
