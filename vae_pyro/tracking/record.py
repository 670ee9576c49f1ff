"""A run's own record on disk: written first, delivered to the tracker when it responds."""

import io
import os
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_pyro.errors import StorageError, TrackingError
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import grace, uninterrupted
from vae_pyro.tracking.base import NoTracking, Run, Status, Tracker
from vae_pyro.tracking.delivery import Delivery
from vae_pyro.tracking.journal import (
    JOURNAL,
    TAG,
    Entry,
    append_entry,
    identities,
    read_journal,
    write_journal,
)

_LAST_WORDS = 2.5  # seconds that a process which was told to end waits for the store

Tell = Callable[[str], None]


class Record(Run):
    """Everything is appended to ``journal.jsonl`` first, and then delivered in that order.

    Delivering happens in another thread. Where the tracker does not respond, the run goes on and
    the tracker is tried again, ever less often. Nothing is recorded twice: not what a resumed job
    records again, and not what is delivered again because it is unknown whether it had arrived.

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
        self._entries = read_journal(folder)
        self._delivery = Delivery(folder, tracker, self._entries)
        self._known: set[tuple[Any, ...]] = set()
        for entry in self._entries:
            self._known |= identities(entry)

    @property
    def run_id(self) -> str | None:
        """The tracker's; None before the run was opened."""
        return self._delivery.run_id

    @property
    def parent(self) -> str | None:
        """Run id of the sweep that it is recorded under."""
        parent: str | None = self._entries[0]["parent"]
        return parent

    @property
    def undelivered(self) -> int:
        """How many entries wait for the tracker."""
        return self._delivery.undelivered

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
            self._entries.append({"op": "start", "name": name, "tags": tags})
        # Before the run is opened: a process that is killed in between finds the run by its tag.
        self.address(parent)
        if must_answer:
            try:
                self._delivery.open()
            except TrackingError:
                if is_new:
                    (self._folder / JOURNAL).unlink()
                raise
            except KeyboardInterrupt:  # told to end meanwhile
                self.end("KILLED")
                self.close()
                raise
        if not is_new:
            self._add({"op": "end", "status": "RUNNING"})
        self._delivery.wake()

    def address(self, parent: str | None) -> None:
        """Deliver to this tracker and under this parent from now on; before anything is delivered.

        Args:
            parent: run id of the sweep.
        """
        first, tracker = self._entries[0], self._tracker.options()
        if first.get("tracker", tracker) != tracker:  # all of it goes to another store
            self._delivery.start_over()
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
        if status == "KILLED" and self._entries[-1] == {"op": "end", "status": "FINISHED"}:
            return  # told to end when all was done
        try:
            self._add({"op": "end", "status": status})
        except StorageError:  # then at least the tracker shall know
            self._delivery.end_unrecorded(status)
            raise

    def close(self) -> None:
        self._delivery.finish(grace(_LAST_WORDS))
        self._pass_on_news()
        if self.undelivered:
            uri = self._tracker.options().get("uri")
            self._tell(
                f"{self.undelivered} of {len(self._entries)} records wait in {self._folder}, "
                f"because {self._delivery.why}; python -m vae_pyro.cli.deliver "
                f"{self._folder.parent} --uri {uri} delivers them when it answers again"
            )

    def discard(self) -> None:
        """Take back a run under which nothing happened."""
        self._delivery.discard()
        self._delivery.finish(_LAST_WORDS)
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def deliver(self) -> None:
        """Deliver what waits, and where the run stands; nothing is added."""
        self._delivery.wake(open_run=True)
        self.close()

    def _add(self, entry: Entry) -> None:
        with uninterrupted():
            append_entry(self._folder, entry)
            self._entries.append(entry)
            self._known |= identities(entry)
            self._delivery.wake()
        self._pass_on_news()

    def _pass_on_news(self) -> None:
        for line in self._delivery.news():
            self._tell(line)


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
        if is_elsewhere or record.undelivered:
            record.deliver()
