"""Hands a record's entries to the tracker in a thread of its own, so that training never waits."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vae_pyro.errors import TrackingError
from vae_pyro.tracking.base import Status, StoredRun, Tracker
from vae_pyro.tracking.journal import JOURNAL, TAG, Entry, read_delivered, write_delivered
from vae_pyro.tracking.reasons import reason

_FIRST_WAIT, _LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the tracker is away
_A_MOMENT = 0.5  # seconds
_LAST_WAIT = 0.5  # likewise, when the run ends
# Seconds, where a run must be opened before the job starts. A store that does not respond is told
# of after 5; making a new database, and importing MLflow, may take long on a busy machine.
_RESPOND_WITHIN = 60.0
_PATIENCE = 20.0  # seconds without progress, after which a run that has ended stops waiting
_PATIENCE_WHEN_AWAY = 5.0  # likewise, where the last try failed


class Delivery:
    """The entries of one record on their way to the tracker, in order.

    Every call of the tracker is made by the thread. The thread that records only waits where it
    asks to, and a signal ends such a wait at once, however long the store takes.

    Args:
        folder: of the record.
        tracker: where the entries go.
        entries: of the journal; further ones are appended to this list, then ``wake`` is called.

    Attributes:
        delivered: how many entries the tracker has.
        run_id: the tracker's; None before the run was opened.
    """

    def __init__(self, folder: Path, tracker: Tracker, entries: Sequence[Entry]) -> None:
        self._folder = folder
        self._tracker = tracker
        self._entries = entries
        self.delivered, self.run_id = read_delivered(folder)
        self.delivered = min(self.delivered, len(entries))
        self._unsure = len(entries)  # whether these have arrived is not known for certain
        self._run: StoredRun | None = None
        self._must_open = False
        self._status: Status | None = None
        self._is_discarded = self._is_over = False
        self._failure: Exception | None = None
        self._wait = 0.0
        self._hurry = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._news: list[str] = []

    @property
    def undelivered(self) -> int:
        """How many entries wait for the tracker."""
        return len(self._entries) - self.delivered

    @property
    def why(self) -> str:
        """Why entries wait, in words."""
        found: list[Exception | None] = [self._failure]
        if self._failure is None:  # asked in a thread, because looking up a name may take long
            ask = threading.Thread(
                target=lambda: found.append(self._tracker.trouble()), daemon=True
            )
            ask.start()
            ask.join(_A_MOMENT)
        error = found[-1]
        return "the tracking store takes too long" if error is None else reason(error)

    def start_over(self) -> None:
        """All entries go to another store; before the first ``wake``."""
        self.delivered, self.run_id = 0, None

    def wake(self, *, open_run: bool = False) -> None:
        """Deliver what waits.

        Args:
            open_run: whether the run is opened although nothing waits.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="delivery", daemon=True)
            self._thread.start()
        with self._changed:
            self._must_open |= open_run
            self._changed.notify_all()

    def open(self) -> None:
        """Open the run and wait for it.

        Raises:
            TrackingError: where the tracker cannot do so, or not within a minute.
        """
        self.wake(open_run=True)
        self._wait_until(
            lambda: self._run is not None or self._failure is not None, _RESPOND_WITHIN
        )
        if self._run is not None:
            return
        self._stop()
        if isinstance(self._failure, TrackingError):
            raise self._failure
        raise TrackingError(
            f"the tracking store cannot be used: {self.why} (asked for {_RESPOND_WITHIN:.0f} s). "
            "Mend it, choose another (tracking.uri=...), or record nothing (tracking=none)"
        )

    def finish(self, longest: float | None = None) -> None:
        """Wait until the tracker has everything, then stop.

        Args:
            longest: seconds to wait at most; None for as long as entries arrive.
        """
        if self._thread is None:
            return
        self._hurry.set()
        end = math.inf if longest is None else time.monotonic() + longest
        before: tuple[int, bool] | None = None
        while self._is_behind() and (state := self._state()) != before:
            before = state
            patience = _PATIENCE if self._failure is None else _PATIENCE_WHEN_AWAY
            self._wait_until(
                lambda state=state: not self._is_behind() or self._state() != state,  # type: ignore[misc]
                min(patience, end - time.monotonic()),
            )
        self._stop()

    def _is_behind(self) -> bool:
        return self._is_busy() or self._failure is not None

    def _state(self) -> tuple[int, bool]:
        return self.delivered, self._failure is None

    def end_unrecorded(self, status: Status) -> None:
        """Close the run although the journal has no room for saying so."""
        self._status = status
        self.wake()

    def discard(self) -> None:
        """Take the run back."""
        self._is_discarded = True
        self.wake()

    def news(self) -> list[str]:
        """What the user should be told of, since this was last asked."""
        told, self._news = self._news, []
        return told

    def _stop(self) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _is_busy(self) -> bool:
        return bool(
            self.undelivered
            or (self._must_open and self._run is None)
            or self._status is not None
            or self._is_discarded
        )

    def _wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(condition, max(0.0, seconds))

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_busy() or self._is_over)
                if self._is_over:
                    return
            try:
                self._hand_over_all()
            except Exception as error:  # of any of the libraries between here and the store
                self._fail(error)
            else:
                self._succeed()

    def _fail(self, error: Exception) -> None:
        if not self._wait:
            self._news.append(
                f"the tracking store cannot take records for now ({reason(error)}); they are kept "
                f"in {self._folder} and delivered when it answers again"
            )
        self._wait = min(max(2 * self._wait, _FIRST_WAIT), _LONGEST_WAIT)
        with self._changed:
            self._run, self._failure = None, error
            self._changed.notify_all()
        if self._hurry.wait(self._wait):
            time.sleep(_LAST_WAIT)

    def _succeed(self) -> None:
        if self._wait:
            self._news.append("the tracking store answers again, and has every record")
        self._wait = 0.0
        with self._changed:
            self._failure = None
            self._changed.notify_all()

    def _hand_over_all(self) -> None:
        run = self._run or self._open()
        while self.undelivered and not self._is_over:
            try:
                self._hand_over(run, self._entries[self.delivered])
            except Exception as error:
                self._unsure = max(self._unsure, self.delivered + 1)
                if not _is_hopeless(error):
                    raise
                number = self.delivered + 1
                self._news.append(
                    f"line {number} of {self._folder / JOURNAL} is left out: {reason(error)}"
                )
            self._count(self.delivered + 1)
        if self._status is not None:
            run.end(self._status)
            self._status = None
        if self._is_discarded:
            run.discard()
            self._is_discarded = False

    def _count(self, delivered: int) -> None:
        with self._changed:
            self.delivered = delivered
            self._changed.notify_all()
        write_delivered(self._folder, delivered, self.run_id)

    def _open(self) -> StoredRun:
        """The tracker's run; made anew where the tracker has none."""
        start = self._entries[0]
        run = self._tracker.find_run(TAG, start["tags"][TAG])
        if run is not None and start["parent"] is not None:
            run.set_parent(start["parent"])
        delivered = max(self.delivered, 1)
        if run is None and self._is_over:  # it would stay open
            raise TrackingError("the run was given up before it was opened")
        if run is None:  # or gone: then the record makes it anew
            run = self._tracker.start_run(start["name"], start["tags"], start["parent"])
            delivered = 1
        self.run_id = run.run_id
        self._count(delivered)
        with self._changed:
            self._run, self._must_open = run, False
            self._changed.notify_all()
        return run

    def _hand_over(self, run: StoredRun, entry: Entry) -> None:
        if entry["op"] == "params":
            run.log_params(entry["params"])
        elif entry["op"] == "metrics":
            run.log_metrics(entry["metrics"], entry["step"], entry["at"])
        elif entry["op"] == "image":
            is_unsure = self.delivered < self._unsure
            if not (is_unsure and run.has_image(entry["key"], entry["step"])):
                image = _picture(_inside(self._folder, self._folder / entry["file"]))
                run.log_image(entry["key"], image, entry["step"])
        elif entry["op"] == "file":
            path = _inside(self._folder.parent, self._folder / entry["path"])
            if path.exists():
                run.log_file(path, entry["folder"])
        elif entry["op"] == "describe":
            run.describe(entry["markdown"])
        elif entry["op"] == "end":
            run.end(entry["status"])


def _inside(folder: Path, path: Path) -> Path:
    """The file that is meant, links resolved; a journal must not name a file elsewhere."""
    try:
        folder, found = folder.resolve(), path.resolve()
        is_other = found.exists() and not found.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise _UnusableError(f"{str(path)!r} cannot be found") from error
    if not found.is_relative_to(folder):
        raise _UnusableError(f"{str(path)!r} is not a file in {folder}")
    if is_other:
        raise _UnusableError(f"{str(path)!r} is not a regular file")
    return found


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception as error:  # whatever the decoder meets in a damaged file
        raise _UnusableError(str(error)) from error


def _is_hopeless(error: Exception) -> bool:
    """Whether an entry will never be taken: its file is unusable, or the store finds it wrong."""
    is_wrong = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
    return is_wrong or isinstance(error, _UnusableError)


class _UnusableError(Exception):
    """A file of the record that is damaged, or outside its folder."""
