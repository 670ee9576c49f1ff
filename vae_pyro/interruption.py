"""Ctrl-C and SIGTERM: an exception in the job, but not in the middle of what belongs together."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The process was told to end.

    Attributes:
        status: with which to exit, as shells count: 128 + the signal's number.
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
    """Raise ``Interrupted`` within where a signal asks the process to end.

    Where this is not the main thread, which alone may say what signals do, they do what they did.
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
    """Put off what a signal asks for until the end of a few lines that belong together."""
    _Pending.held += 1
    try:
        yield
    finally:
        _Pending.held -= 1
        if not _Pending.held and _Pending.signum is not None:
            signum, _Pending.signum = _Pending.signum, None
            raise Interrupted(signum)


def hasten(signum: int | None = None) -> None:
    """The process ends now: from here on its grace runs.

    Args:
        signum: of the signal that told it to, if one did.
    """
    _Pending.since = _Pending.since or time.monotonic()
    if signum is not None:
        _Pending.status = 128 + signum


def leave_if_told() -> None:
    """End a process that a signal told to end, when all that it had to write is written.

    Python's own farewell takes seconds, and waits for threads that hang in a call of the store.
    """
    if _Pending.status is not None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_Pending.status)


def grace(seconds: float) -> float | None:
    """What is left of so many seconds since the process was told to end; None where it was not.

    All that a process still does shares one grace, however many runs it has to close.
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
