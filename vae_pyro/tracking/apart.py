"""A tracker whose calls another process makes.

The client of a tracking store is Python code, and while a thread runs it, the training, which is
Python too, waits for its turn. Importing that client takes seconds as well, which pass meanwhile.
"""

import atexit
import contextlib
import gc
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vae_pyro.errors import TrackingError, UserError
from vae_pyro.tracking.base import Status, StoredRun, Tracker
from vae_pyro.tracking.reasons import reason

_CALLERS = 32  # runs with a call at the same time; each may hang in it
_PROGRAM = "import sys; sys.path[:] = {path!r}; from vae_pyro.tracking.apart import serve; serve()"
_MANY_OBJECTS = 100_000  # made before Python looks for reference cycles; imports make more


class RefusedCallError(Exception):
    """What a store's library raised in the other process, in one line.

    Attributes:
        error_code: MLflow's, where it has one.
    """

    error_code: str | None = None


class Apart(Tracker):
    """This tracker, in another process.

    Args:
        tracker: of a class that the other process can import.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> StoredRun:
        started: StoredRun = _call(_opened, self._tracker, "start_run", name, dict(tags), parent)
        return started

    def find_run(self, tag: str, value: str) -> StoredRun | None:
        found: StoredRun | None = _call(_opened, self._tracker, "find_run", tag, value)
        return found

    def trouble(self) -> Exception | None:
        return self._tracker.trouble()

    def options(self) -> dict[str, str]:
        return self._tracker.options()


@dataclass(frozen=True)
class _ApartRun(StoredRun):
    """A run that the other process holds, as ``_runs[key]``."""

    key: str
    id_in_store: str | None

    @property
    def run_id(self) -> str | None:
        return self.id_in_store

    def log_params(self, params: Mapping[str, Any]) -> None:
        _call(_with_run, self.key, "log_params", dict(params))

    def log_metrics(self, metrics: Mapping[str, float], step: int, at: float | None = None) -> None:
        _call(_with_run, self.key, "log_metrics", dict(metrics), step, at)

    def log_steps(self, records: Sequence[tuple[Mapping[str, float], int, float]]) -> None:
        _call(_with_run, self.key, "log_steps", list(records))

    def log_image(self, key: str, image: np.ndarray, step: int) -> None:
        _call(_with_run, self.key, "log_image", key, image, step)

    def log_dataset(self, name: str, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        _call(_with_run, self.key, "log_dataset", name, digest, source, dict(profile))

    def log_file(self, path: Path, folder: str | None = None) -> None:
        _call(_with_run, self.key, "log_file", path, folder)

    def log_model(self, name: str) -> None:
        _call(_with_run, self.key, "log_model", name)

    def tag(self, name: str, value: str) -> None:
        _call(_with_run, self.key, "tag", name, value)

    def describe(self, markdown: str) -> None:
        _call(_with_run, self.key, "describe", markdown)

    def end(self, status: Status) -> None:
        _call(_with_run, self.key, "end", status)

    def has_image(self, key: str, step: int) -> bool:
        return bool(_call(_with_run, self.key, "has_image", key, step))

    def set_parent(self, parent: str) -> None:
        _call(_with_run, self.key, "set_parent", parent)

    def discard(self) -> None:
        _call(_with_run, self.key, "discard")


def begin(preparation: Callable[[], None]) -> bool:
    """Start the other process, and call a function there, without waiting for it.

    Args:
        preparation: what takes long, such as importing a library.

    Returns:
        whether there is such a process.
    """
    try:
        _process().ask(preparation)
    except (OSError, TrackingError):
        return False
    return True


def process_number() -> int | None:
    """The number by which the system knows the other process; None where there is none."""
    return _current[0].number if _current else None


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return _process().ask(partial(function, *arguments)).result()


class _Process:
    """The job's handle on the other process, which ends with the job."""

    def __init__(self) -> None:
        command = [sys.executable, "-c", _PROGRAM.format(path=sys.path)]
        self.parent = os.getpid()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number = self._process.pid
        self._calls = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._has_ended = False
        threading.Thread(target=self._receive, name="replies", daemon=True).start()
        atexit.register(self._end)

    @property
    def is_over(self) -> bool:
        """Whether the process has ended."""
        return self._has_ended or self._process.poll() is not None

    def ask(self, call: Callable[[], Any]) -> "Future[Any]":
        """Send a call to the process; the future gets its result.

        Raises:
            TrackingError: where the process has ended; the future raises it, too.
        """
        future: Future[Any] = Future()
        requests = self._process.stdin
        assert requests is not None
        number, folder = next(self._calls), ""
        with contextlib.suppress(OSError):  # it was removed
            folder = os.getcwd()
        request = pickle.dumps((number, folder, call))
        with self._lock:
            self._asked[number] = future
            try:
                requests.write(request)
                requests.flush()
            except OSError as error:
                raise _ended() from error
        return future

    def _receive(self) -> None:
        replies = self._process.stdout
        assert replies is not None
        with contextlib.suppress(EOFError, OSError, ValueError, pickle.UnpicklingError):
            while True:
                number, result, error = pickle.load(replies)  # noqa: S301 - from our own process
                future = self._asked.pop(number)
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)
        with self._lock:
            self._has_ended = True
            for future in self._asked.values():
                future.set_exception(_ended())

    def _end(self) -> None:
        if self.parent == os.getpid():
            self._process.kill()  # the run was closed before: no record is lost
            self._process.wait()


_lock = threading.Lock()
_current: list[_Process] = []


def _process() -> _Process:
    """The other process; a new one where that was killed, or belongs to the parent of this one."""
    with _lock:
        if not _current or _current[0].is_over or _current[0].parent != os.getpid():
            _current[:] = [_Process()]
        return _current[0]


def _ended() -> TrackingError:
    return TrackingError("the process that talks to the tracking store was killed")


# What the other process does.

_runs: dict[str, StoredRun] = {}
_run_numbers = itertools.count()


def serve() -> None:
    """Run the calls of the job's process, and end when that process ends."""
    gc.set_threshold(_MANY_OBJECTS)
    for number in (signal.SIGINT, signal.SIGTERM):  # the job still records that it was killed
        signal.signal(number, signal.SIG_IGN)
    requests, replies = (os.fdopen(os.dup(n), mode) for n, mode in ((0, "rb"), (1, "wb")))
    os.dup2(2, 1)  # libraries print to stderr, since stdout carries the replies
    lock = threading.Lock()

    def answer(number: int, call: Callable[[], Any]) -> None:
        result, error = None, None
        try:
            result = call()
        except BaseException as found:
            error = _as_message(found)
        reply = pickle.dumps((number, result, error))
        with lock:
            replies.write(reply)
            replies.flush()

    threads = ThreadPoolExecutor(_CALLERS)
    with contextlib.suppress(EOFError):
        while True:
            number, folder, call = pickle.load(requests)  # noqa: S301 - from our own process
            with contextlib.suppress(OSError):
                os.chdir(folder)
            threads.submit(answer, number, call)
    os._exit(0)  # at once, even if a call hangs


def _opened(tracker: Tracker, method: str, *arguments: Any) -> _ApartRun | None:
    run = getattr(tracker, method)(*arguments)
    if run is None:
        return None
    key = f"{os.getpid()} {next(_run_numbers)}"
    _runs[key] = run
    return _ApartRun(key, run.run_id)


def _with_run(key: str, method: str, *arguments: Any) -> Any:
    if key not in _runs:
        raise _ended()
    return getattr(_runs[key], method)(*arguments)


def _as_message(error: BaseException) -> Exception:
    """The error, with its traceback as a note; one of a library becomes one of ours."""
    message = error if isinstance(error, UserError) else RefusedCallError(reason(error))
    message.__dict__["error_code"] = getattr(error, "error_code", None)
    message.add_note("".join(traceback.format_exception(error)))
    return message
