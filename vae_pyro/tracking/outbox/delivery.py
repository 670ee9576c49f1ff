"""The thread that delivers a run's entries, so that training never waits for the tracking store."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vae_pyro.errors import TrackingError
from vae_pyro.tracking.base import Status, StoredRun, Tracker
from vae_pyro.tracking.outbox.entries import hand_over, is_hopeless, of_one_call
from vae_pyro.tracking.outbox.journal import JOURNAL, TAG, Entry, read_delivered, write_delivered
from vae_pyro.tracking.reasons import reason

logger = logging.getLogger(__name__)

_PACE = 1.0  # seconds between deliveries: metrics of several epochs then go in one call
_MOST = 100  # entries in one call
_FIRST_WAIT, _LONGEST_WAIT = 2.0, 60.0  # seconds between tries while the store is away
_A_MOMENT = 0.5  # seconds
_LAST_WAIT = 0.5  # seconds between tries when the run ends
# Seconds until a run is open. A store that does not respond is reported after 5; making a new
# database, and importing MLflow, may take long on a busy machine.
_RESPOND_WITHIN = 60.0
_PATIENCE = 20.0  # seconds without progress, after which a run that has ended stops waiting
_PATIENCE_WHEN_AWAY = 5.0  # likewise, where the last try failed


class Delivery:
    """The entries of one run on their way to the tracker, in order.

    Every call of the tracker is made by the thread. The thread that records waits only in ``open``
    and ``finish``, and a signal ends such a wait at once, however long the store takes. The thread
    logs it when the store goes away, when it is back, and when an entry must be left out.

    Args:
        folder: of the journal.
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
        self._unsure = len(entries)  # of the first so many, any undelivered one may have arrived
        self._run: StoredRun | None = None
        self._must_open = False
        self._status: Status | None = None
        self._is_discarded = self._is_over = False
        self._is_raised = False  # whether a failure becomes an exception, and needs no note
        self._failure: Exception | None = None
        self._wait = 0.0
        self._hurry = threading.Event()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def undelivered(self) -> int:
        """How many entries wait for the tracker."""
        return len(self._entries) - self.delivered

    @property
    def why(self) -> str:
        """Why entries wait, in words."""
        found: list[Exception | None] = [self._failure]
        if self._failure is None:  # in a thread, because looking up a host's name may take long
            ask = threading.Thread(
                target=lambda: found.append(self._tracker.trouble()), daemon=True
            )
            ask.start()
            ask.join(_A_MOMENT)
        error = found[-1]
        return "the tracking store takes too long" if error is None else reason(error)

    def start_over(self) -> None:
        """Deliver all entries, because they go to another store; to be called before ``wake``."""
        self.delivered, self.run_id = 0, None

    def wake(self, *, open_run: bool = False) -> None:
        """Deliver what waits, without waiting for it.

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
        self._is_raised = True
        self.wake(open_run=True)
        try:
            self._wait_until(
                lambda: self._run is not None or self._failure is not None, _RESPOND_WITHIN
            )
        finally:
            self._is_raised = False
        if self._run is not None:
            return
        self._stop()
        if isinstance(self._failure, TrackingError):
            raise self._failure
        raise TrackingError(
            f"the tracking store cannot be used: {self.why} (waited {_RESPOND_WITHIN:.0f} s). "
            "Start it, choose another (tracking.uri=...), or record nothing (tracking=none)"
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
            self._wait_until(
                lambda state=state: not self._is_behind() or self._state() != state,  # type: ignore[misc]
                min(self._patience(), end - time.monotonic()),
            )
        self._stop()

    def end_unrecorded(self, status: Status) -> None:
        """Close the tracker's run although the disk has no room for the journal's last entry."""
        self._status = status
        self.wake()

    def discard(self) -> None:
        """Take the run back."""
        self._is_discarded = True
        self.wake()

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

    def _patience(self) -> float:
        """Seconds to wait for the next sign of progress."""
        if self._failure is not None:
            return _PATIENCE_WHEN_AWAY
        return _RESPOND_WITHIN if self._run is None else _PATIENCE

    def _is_behind(self) -> bool:
        return self._is_busy() or self._failure is not None

    def _state(self) -> tuple[int, bool]:
        return self.delivered, self._failure is None

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
                self._deliver_all()
            except Exception as error:  # of any of the libraries between here and the store
                self._fail(error)
            else:
                self._succeed()
                self._hurry.wait(_PACE)

    def _fail(self, error: Exception) -> None:
        # Before others see the failure: when ``finish`` returns, the note is printed.
        if not (self._wait or self._is_raised or self._is_over):
            logger.warning(
                "the tracking store cannot take records for now (%s); they are kept in %s and "
                "delivered when it responds again",
                reason(error),
                self._folder,
            )
        self._wait = min(max(2 * self._wait, _FIRST_WAIT), _LONGEST_WAIT)
        with self._changed:
            self._run, self._failure = None, error
            self._changed.notify_all()
        if self._hurry.wait(self._wait):
            time.sleep(_LAST_WAIT)

    def _succeed(self) -> None:
        if self._wait and not (self._is_over and self.undelivered):
            logger.info("the tracking store responds again, and has every record")
        self._wait = 0.0
        with self._changed:
            self._failure = None
            self._changed.notify_all()

    def _deliver_all(self) -> None:
        run = self._run or self._open()
        most = _MOST
        while self.undelivered and not self._is_over:
            before = self.delivered
            entries = of_one_call(self._entries[before : before + most])
            after = before + len(entries)
            try:
                hand_over(entries, self._folder, run, is_repeated=before < self._unsure)
            except Exception as error:
                self._unsure = max(self._unsure, after)
                if not is_hopeless(error):
                    raise
                if len(entries) > 1:  # one by one, to leave out only what is refused
                    most = 1
                    continue
                journal = self._folder / JOURNAL
                logger.warning("line %d of %s is left out: %s", after, journal, reason(error))
            self._count(after)
        if self._status is not None:
            run.end(self._status)
            self._status = None
        if self._is_discarded:
            run.discard()
            self._is_discarded = False

    def _count(self, delivered: int) -> None:
        # First, because a thread that waits for the count may end the process.
        write_delivered(self._folder, delivered, self.run_id)
        with self._changed:
            self.delivered = delivered
            self._changed.notify_all()

    def _open(self) -> StoredRun:
        """The tracker's run; made anew where the tracker has none."""
        start = self._entries[0]
        run = self._tracker.find_run(TAG, start["tags"][TAG])
        if run is not None and start["parent"] is not None:
            run.set_parent(start["parent"])
        delivered = max(self.delivered, 1)
        if run is None and self._is_over:  # it would stay open
            raise TrackingError("the run was given up before it was opened")
        if run is None:  # new, or deleted: then all entries are delivered again
            run = self._tracker.start_run(start["name"], start["tags"], start["parent"])
            delivered = 1
        self.run_id = run.run_id
        self._count(delivered)
        with self._changed:
            self._run, self._must_open = run, False
            self._changed.notify_all()
        return run
