"""Ctrl-C and SIGTERM raise an exception, but never between lines that belong together."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end.

    Attributes:
        status: the exit status, by the shells' convention: 128 + the signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(signum).name}")
        self.status = 128 + signum


class _Pending:
    """A process has one set of signal handlers, so there is one of these."""

    held = 0
    signum: int | None = None
    since: float | None = None
    status: int | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` inside this block when a signal asks the process to end.

    In another thread than the main one, Python allows no change: signals keep their effect.
    """
    before = {}
    _Pending.since = _Pending.status = None
    with suppress(ValueError):
        before = {signum: signal.signal(signum, _raise) for signum in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delay ``Interrupted`` to the end of this block, whose lines belong together."""
    _Pending.held += 1
    try:
        yield
    finally:
        _Pending.held -= 1
        if not _Pending.held and _Pending.signum is not None:
            signum, _Pending.signum = _Pending.signum, None
            raise Interrupted(signum)


def hasten(signum: int | None = None) -> None:
    """Start the grace period: the process is about to end.

    Args:
        signum: number of the signal that ends it, if one does.
    """
    _Pending.since = _Pending.since or time.monotonic()
    if signum is not None:
        _Pending.status = 128 + signum


def leave_if_told() -> None:
    """Exit at once if a signal ended this process; to be called when everything is written.

    Python's own exit takes seconds, and waits for threads that hang in a call of the store.
    """
    if _Pending.status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_Pending.status)


def grace(seconds: float) -> float | None:
    """Seconds left of the grace period; None where the process is not about to end.

    A process has one grace period, however many runs it has to close.

    Args:
        seconds: length of the period.
    """
    if _Pending.since is None:
        return None
    return max(0.1, _Pending.since + seconds - time.monotonic())


def _raise(signum: int, _frame: FrameType | None) -> None:
    hasten(signum)
    if _Pending.held:
        _Pending.signum = signum
    else:
        raise Interrupted(signum)
