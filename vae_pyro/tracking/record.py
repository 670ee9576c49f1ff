"""A run's own record on disk: written first, delivered to the tracker when it answers."""

import io
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_pyro.errors import StorageError, TrackingError
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import uninterrupted
from vae_pyro.passwords import without_passwords
from vae_pyro.tracking.base import NoTracking, Run, Status, Tracker
from vae_pyro.tracking.journal import (
    JOURNAL,
    Entry,
    append_entry,
    identities,
    read_delivered,
    read_journal,
    write_delivered,
    write_journal,
)

TAG = "record"  # of the run in the tracker, so that it is found again and never opened twice
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the tracker is away
_ONE_TRY = 3.0
_LAST_TRIES = 5.0  # seconds spent on delivering when the run ends

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
        self._delivered, self.run_id = read_delivered(folder)
        self._known: set[tuple[Any, ...]] = set()
        for entry in self._entries:
            self._known |= identities(entry)
        self._unsure = len(self._entries)  # what of these has arrived is not known for certain
        self._wait = self._retry_at = 0.0
        self._why = ""

    @property
    def parent(self) -> str | None:
        """Run id of the sweep that it is recorded under."""
        parent: str | None = self._entries[0]["parent"]
        return parent

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
        is_new = not self._entries
        if is_new:
            make_folder(self._folder)
            tags = {**tags, TAG: uuid.uuid4().hex}
            self._entries = [{"op": "start", "name": name, "tags": tags}]
        # Before the run is opened: a process that is killed in between finds the run by its tag.
        self.address(parent)
        if must_answer:
            try:
                self.open()
            except TrackingError:
                if is_new:
                    (self._folder / JOURNAL).unlink()
                raise
        if not is_new:
            self._add({"op": "end", "status": "RUNNING"})
        self.deliver()

    def address(self, parent: str | None) -> None:
        """Deliver to this tracker and under this parent from now on, whatever was so before."""
        first, tracker = self._entries[0], self._tracker.options()
        if first.get("tracker", tracker) != tracker:  # all of it goes to another store
            self._delivered, self.run_id = 0, None
        self._entries[0] = {**first, "tracker": tracker, "parent": parent}
        if self._entries[0] != first:
            write_journal(self._folder, self._entries)

    def log_params(self, params: Mapping[str, Any]) -> None:
        entry = {"op": "params", "params": {key: str(value) for key, value in params.items()}}
        if not identities(entry) <= self._known:
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
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        write_atomically(self._folder / name, buffer.getvalue())
        self._add({"op": "image", "key": key, "step": step, "file": name})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        self._add({"op": "file", "path": os.path.relpath(path, self._folder), "folder": folder})

    def describe(self, markdown: str) -> None:
        self._add({"op": "describe", "markdown": markdown})

    def end(self, status: Status) -> None:
        try:
            self._add({"op": "end", "status": status})
        except StorageError:  # then at least the tracker shall know
            with suppress(Exception):
                (self._run or self.open()).end(status)
            raise
        # A store that does not answer must not keep a process that was told to end.
        last = threading.Thread(target=self._deliver_patiently, daemon=True)
        last.start()
        last.join(_LAST_TRIES + _ONE_TRY if status == "KILLED" else None)
        if self.undelivered:
            self._tell(
                f"{self.undelivered} of {len(self._entries)} records wait in {self._folder}, "
                f"because {self._why or 'the tracking store takes too long'}; python -m "
                f"vae_pyro.deliver {self._folder.parent} hands them over when it answers again"
            )

    def _deliver_patiently(self) -> None:
        deadline = time.monotonic() + _LAST_TRIES
        while self.undelivered and time.monotonic() < deadline:
            time.sleep(0.5)
            self._retry_at = 0.0
            self.deliver()

    def has_image(self, key: str, step: int) -> bool:
        return ("image", key, step) in self._known

    def set_parent(self, parent: str) -> None:
        self.address(parent)
        if self._run is not None:
            self._run.set_parent(parent)

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
                self._why = _first_line(error)
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
        run = self._run or self.open()
        while self.undelivered:
            # A call that is cut short would leave its transaction, and the store locked.
            with uninterrupted():
                try:
                    self._hand_over(run, self._entries[self._delivered])
                except Exception as error:
                    self._unsure = max(self._unsure, self._delivered + 1)
                    if not _is_hopeless(error):
                        raise
                    number, why = self._delivered + 1, _first_line(error)
                    self._tell(f"line {number} of {self._folder / JOURNAL} is left out: {why}")
                self._delivered += 1
                write_delivered(self._folder, self._delivered, self.run_id)

    def open(self) -> Run:
        """The tracker's run; made anew where the tracker has none.

        Raises:
            TrackingError: where the tracker does not answer.
        """
        with uninterrupted():
            start = self._entries[0]
            run = self._tracker.find_run(TAG, start["tags"][TAG])
            if run is not None and start["parent"] is not None:
                run.set_parent(start["parent"])
            if run is None:  # or gone: then the record makes it anew
                self._delivered = 0
                run = self._tracker.start_run(start["name"], start["tags"], start["parent"])
            self._delivered = max(self._delivered, 1)
            self._run, self.run_id = run, run.run_id
            write_delivered(self._folder, self._delivered, self.run_id)
            return run

    def _hand_over(self, run: Run, entry: Entry) -> None:
        if entry["op"] == "params":
            run.log_params(entry["params"])
        elif entry["op"] == "metrics":
            run.log_metrics(entry["metrics"], entry["step"], entry["at"])
        elif entry["op"] == "image":
            is_unsure = self._delivered < self._unsure
            if not (is_unsure and run.has_image(entry["key"], entry["step"])):
                try:
                    image = np.asarray(Image.open(self._folder / entry["file"]))
                except OSError as error:
                    raise _UnreadableError(error) from error
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
        with uninterrupted():
            append_entry(self._folder, entry)
            self._entries.append(entry)
            self._known |= identities(entry)
        self.deliver()


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


def deliver_rest(tracker: Tracker, folder: Path, parent: str | None, tell: Tell) -> None:
    """What a job that has ended still has to deliver, and under which parent it now stands."""
    if not isinstance(tracker, NoTracking) and read_journal(folder):
        record = Record(folder, tracker, tell)
        is_elsewhere = record.parent != parent
        record.address(parent)
        if is_elsewhere and not record.undelivered:
            with suppress(TrackingError):
                record.open()
        record.deliver()


def _is_hopeless(error: Exception) -> bool:
    """Whether an entry will never be taken: its picture is damaged, or the store finds it wrong."""
    is_wrong = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
    return is_wrong or isinstance(error, _UnreadableError)


class _UnreadableError(Exception):
    """A picture of the record that is gone or damaged."""


def _first_line(error: Exception) -> str:
    first_line, *_ = str(error).splitlines() or [type(error).__name__]
    return without_passwords(first_line)
