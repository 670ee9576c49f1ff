"""The run that a job records to: written to disk first, delivered when the tracker responds."""

import io
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vae_pyro.errors import StorageError, TrackingError
from vae_pyro.files import make_folder, write_atomically
from vae_pyro.interruption import grace, uninterrupted
from vae_pyro.tracking.base import NoTracking, Run, Status, Tracker
from vae_pyro.tracking.outbox.delivery import Delivery
from vae_pyro.tracking.outbox.journal import (
    JOURNAL,
    TAG,
    Entry,
    append_entry,
    identities,
    read_journal,
    write_journal,
)

logger = logging.getLogger(__name__)

_LAST_WORDS = 2.5  # seconds that a process waits for the store after a signal has ended it


class OutboxRun(Run):
    """A run whose entries are written to disk first and then delivered in order.

    Everything is appended to ``journal.jsonl``; another thread delivers it. If the tracker does
    not respond, the run continues, and delivery is tried again at growing intervals. Each entry is
    recorded once, even if a resumed job records it again, or if it is delivered a second time
    because it is unknown whether it had arrived.

    Args:
        folder: of the journal and of the pictures.
        tracker: where the entries are delivered.

    Raises:
        StorageError: from every method, where the journal cannot be written.
    """

    def __init__(self, folder: Path, tracker: Tracker) -> None:
        self._folder = folder
        self._tracker = tracker
        self._entries = read_journal(folder)
        self._delivery = Delivery(folder, tracker, self._entries)
        self._known: set[tuple[Any, ...]] = set()
        for entry in self._entries:
            self._known |= identities(entry)

    @property
    def run_id(self) -> str | None:
        """The tracker's id of this run; None before the run was opened."""
        return self._delivery.run_id

    @property
    def parent(self) -> str | None:
        """Run id of the sweep that this run belongs to."""
        parent: str | None = self._entries[0]["parent"]
        return parent

    @property
    def undelivered(self) -> int:
        """How many entries wait for the tracker."""
        return self._delivery.undelivered

    def start(
        self, name: str, tags: Mapping[str, str], parent: str | None = None, *, must_respond: bool
    ) -> None:
        """Open the run, or open it again.

        Args:
            name: of the run.
            tags: of the run.
            parent: run id of the sweep it belongs to.
            must_respond: whether a tracker that does not respond is an error; otherwise it is
                logged, and the entries wait.

        Raises:
            TrackingError: where the tracker must respond and does not; nothing is left behind.
        """
        is_new = not self._entries
        if is_new:
            make_folder(self._folder)
            tags = {**tags, TAG: uuid.uuid4().hex}
            self._entries.append({"op": "start", "name": name, "tags": tags})
        # Before the run is opened: if the process is killed in between, the tag finds the run.
        self.address(parent)
        if must_respond:
            try:
                self._delivery.open()
            except TrackingError:
                if is_new:
                    (self._folder / JOURNAL).unlink()
                raise
            except KeyboardInterrupt:  # a signal ends the process meanwhile
                self.end("KILLED")
                self.close()
                raise
        if not is_new:
            self._add({"op": "end", "status": "RUNNING"})
        self._delivery.wake()

    def address(self, parent: str | None) -> None:
        """Deliver to this tracker and under this parent from now on.

        To be called before anything is delivered.

        Args:
            parent: run id of the sweep.
        """
        first = self._entries[0]
        is_same_store = self._tracker.is_store_of(first.get("tracker", self._tracker.options()))
        if not is_same_store:
            self._delivery.start_over()
        self._entries[0] = {**first, "tracker": self._tracker.options(), "parent": parent}
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
        name = f"{key.replace('/', '-')}-{step:06d}.png"
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, format="PNG")
        write_atomically(self._folder / name, buffer.getvalue())
        self._add({"op": "image", "key": key, "step": step, "file": name})

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        entry = {
            "op": "dataset",
            "name": name,
            "digest": digest,
            "source": source,
            "profile": dict(profile),
        }
        if not identities(entry) <= self._known:
            self._add(entry)

    def log_file(self, path: Path, folder: str | None = None) -> None:
        relative = Path(os.path.relpath(path, self._folder)).as_posix()
        self._add({"op": "file", "path": relative, "folder": folder})

    def log_model(self, name: str) -> None:
        entry = {"op": "model", "name": name}
        if not identities(entry) <= self._known:
            self._add(entry)

    def tag(self, name: str, value: str) -> None:
        self._add({"op": "tag", "name": name, "value": value})

    def describe(self, markdown: str) -> None:
        self._add({"op": "describe", "markdown": markdown})

    def end(self, status: Status) -> None:
        if status == "KILLED" and self._entries[-1] == {"op": "end", "status": "FINISHED"}:
            return  # the signal came when everything was done
        try:
            self._add({"op": "end", "status": status})
        except StorageError:  # the disk is full, but the tracker can still close its run
            self._delivery.end_unrecorded(status)
            raise

    def close(self) -> None:
        """Wait some seconds until the store has everything; log how many entries still wait."""
        self._delivery.finish(grace(_LAST_WORDS))
        if self.undelivered:
            logger.warning(
                "%d of %d records wait in %s, because %s; python -m vae_pyro.cli.deliver %s "
                "--uri %s delivers them when it responds again",
                self.undelivered,
                len(self._entries),
                self._folder,
                self._delivery.why,
                self._folder.parent,
                self._tracker.options().get("uri"),
            )

    def discard(self) -> None:
        """Take back a run in which nothing happened."""
        self._delivery.discard()
        self._delivery.finish(_LAST_WORDS)
        (self._folder / JOURNAL).unlink(missing_ok=True)

    def deliver(self) -> None:
        """Deliver what waits, and the run's parent; nothing is added to the journal."""
        self._delivery.wake(open_run=True)
        self.close()

    def _add(self, entry: Entry) -> None:
        with uninterrupted():
            append_entry(self._folder, entry)
            self._entries.append(entry)
            self._known |= identities(entry)
            self._delivery.wake()


def open_run(
    tracker: Tracker,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    parent: str | None = None,
    *,
    must_respond: bool,
) -> Run:
    """A run of this tracker, with an outbox in ``folder``; an outbox that is there is continued.

    Args:
        tracker: where the run is recorded.
        folder: of the outbox.
        name: of the run.
        tags: of the run.
        parent: run id of the sweep it belongs to.
        must_respond: whether a tracker that does not respond is an error.

    Raises:
        TrackingError: as ``OutboxRun.start``.
        StorageError: where the folder cannot be written.
    """
    if isinstance(tracker, NoTracking):
        return tracker.start_run(name, tags, parent)
    run = OutboxRun(folder, tracker.apart())
    run.start(name, tags, parent, must_respond=must_respond)
    return run


def deliver_rest(tracker: Tracker, folder: Path, parent: str | None) -> None:
    """Deliver what a job that has ended left in its outbox, and put its run under ``parent``."""
    if not isinstance(tracker, NoTracking) and read_journal(folder):
        run = OutboxRun(folder, tracker)
        is_elsewhere = run.parent != parent
        run.address(parent)
        if is_elsewhere or run.undelivered:
            run.deliver()
