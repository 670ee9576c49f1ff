"""Independent tasks, spread over processes that are forked for them and compute on one thread each.

Threads that share one small matrix product wait for each other at its end, thousands of times a
second. Processes that take whole tasks wait for each other once, and stay fast beside other
programs.
"""

import contextlib
import ctypes
import logging
import logging.handlers
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

import torch

from vae_pyro.compilation.precision import threads
from vae_pyro.errors import WorkerError

logger = logging.getLogger(__name__)

Report = Callable[[int, float, str], None]
"""Called with (number of the task, share of it that is done, a few words on its state)."""
Result = TypeVar("Result")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_UNFORKABLE = {"ray", "jax"}
_PACE = 0.1  # seconds between reports of a process
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def num_processes(device: torch.device) -> int:
    """How many processes may share some tasks: as many as PyTorch has threads.

    One, which is this process, where forking is not safe: beside GPUs or a library whose threads do
    not survive it, on other systems than Linux, and outside of the main thread. Launchers of
    parallel jobs grant each one thread.

    Args:
        device: where the tasks compute.
    """
    can_fork = (
        sys.platform == "linux"
        and device.type == "cpu"
        and not torch.cuda.is_available()
        and not _UNFORKABLE & sys.modules.keys()
        and threading.current_thread() is threading.main_thread()
        and not multiprocessing.current_process().daemon
    )
    return torch.get_num_threads() if can_fork else 1


def spread(
    task: Callable[[int, Callable[[float, str], None]], Result],
    tasks: int,
    processes: int,
    report: Report,
    *,
    ahead: int = 0,
) -> list[Result]:
    """Results of the tasks number 0, 1, .., in order.

    A process begins as a copy of this one, so a task may use all that is there; but what it changes
    is lost, only its result comes back.

    Args:
        task: (number, report of this task) -> its result, which must be picklable.
        tasks: how many there are.
        processes: that share them, at most; with one, they are done here.
        report: called now and then, and at the end of each task.
        ahead: how many of them are done here, before the processes begin as copies of this one.

    Raises:
        WorkerError: where a process is killed, as by a system without memory.
        Exception: the first that a task raises; the other tasks are given up.

    >>> spread(lambda number, report: number**2, 4, 2, lambda number, share, state: None)
    [0, 1, 4, 9]
    """
    results: dict[int, Result] = {}

    def do_here(numbers: range) -> None:
        for number in numbers:
            results[number] = task(number, partial(report, number))
            report(number, 1.0, "")

    processes = min(processes, tasks - ahead)
    with threads(1) if processes > 1 else contextlib.nullcontext():
        do_here(range(ahead if processes > 1 else tasks))
    workers = _Worker.start(task, processes) if processes > 1 else []
    try:
        if processes > 1 and not workers:
            do_here(range(ahead, tasks))
        left = iter(range(len(results), tasks))
        doing = {worker.connection: number for worker, number in zip(workers, left, strict=False)}
        for ready, number in doing.items():
            ready.send(number)
        while doing:
            for connection in wait(list(doing)):
                assert isinstance(connection, Connection)
                kind, content = _received(connection)
                if kind == "report":
                    report(doing[connection], *content)
                elif kind == "result":
                    number = doing.pop(connection)
                    results[number] = content
                    report(number, 1.0, "")
                    for number in left:  # the next one, if there is one
                        doing[connection] = number
                        connection.send(number)
                        break
    finally:
        for worker in workers:
            worker.stop()
    return [results[number] for number in range(tasks)]


class Aside(Generic[Result]):
    """One task after another, each done by a process that is forked for it, beside this one.

    The task sees everything as it was when it began, such as the weights of a VAE in training.

    >>> aside = Aside()
    >>> numbers = [1, 2]
    >>> aside.begin(lambda: sum(numbers))
    >>> numbers.append(3)
    >>> aside.result()
    3
    """

    def __init__(self) -> None:
        self._worker: _Worker | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a task was begun and its result is not taken yet."""
        return self._worker is not None

    @property
    def is_done(self) -> bool:
        """Whether the result can be had without waiting."""
        return self._worker is not None and self._worker.connection.poll()

    def begin(self, task: Callable[[], Result]) -> None:
        """Begin a task, after the result of the one before was taken.

        Raises:
            WorkerError: where no process can be started.
        """
        assert self._worker is None
        for self._worker in _Worker.start(lambda _number, _report: task(), 1):
            self._worker.connection.send(0)
        if self._worker is None:
            raise WorkerError("no process can be started")

    def result(self, patience: float | None = None) -> Result:
        """Wait for the result, and take it.

        Args:
            patience: seconds after which the task is given up; None waits as long as it takes.

        Raises:
            WorkerError: where the process is killed, or the patience is over.
            Exception: what the task raises.
        """
        assert self._worker is not None
        try:
            kind = ""
            while kind != "result":
                if not self._worker.connection.poll(patience):
                    raise WorkerError(f"a process did not do its work within {patience:.0f} s")
                kind, result = _received(self._worker.connection)
        finally:
            self.stop()
        return cast(Result, result)

    def stop(self) -> None:
        """Give the task up, if there is one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()


@dataclass(frozen=True)
class _Worker:
    """A process that waits for numbers of tasks. It holds nothing, so it is stopped by force."""

    process: BaseProcess
    connection: Connection

    @classmethod
    def start(cls, task: Callable[..., Any], number: int) -> "list[_Worker]":
        """So many processes, or as many as the system grants."""
        context = multiprocessing.get_context("fork")
        workers: list[_Worker] = []
        try:
            # One between a process's start and its first line would raise this one's exception.
            signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                for _ in range(number):
                    mine, its = context.Pipe()
                    arguments = (task, its, os.getpid())
                    process = context.Process(target=_work, args=arguments, daemon=True)
                    with warnings.catch_warnings():
                        # Python 3.12 warns of other threads' locks; no task takes one of theirs.
                        warnings.simplefilter("ignore", DeprecationWarning)
                        process.start()
                    its.close()
                    workers.append(cls(process, mine))
            except OSError as error:
                logger.info("%d of %d processes: %s", len(workers), number, error)
            finally:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        except BaseException:  # of a signal that waited
            for worker in workers:
                worker.stop()
            raise
        return workers

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _received(connection: Connection) -> tuple[str, Any]:
    """What a process sends: a report, a note for the log, or its result; its error is raised."""
    try:
        kind, content = pickle.loads(connection.recv_bytes())  # noqa: S301 - from our own process
    except (EOFError, ConnectionResetError):
        raise WorkerError(
            "one of the processes that share the work was killed; where memory is short, "
            "OMP_NUM_THREADS=1 works with one process"
        ) from None
    if kind == "error":
        raise content
    if kind == "note":
        logging.getLogger(content.name).handle(content)
    return kind, content


def _work(task: Callable[..., Any], connection: Connection, parent: int) -> None:
    """A process's own program: task after task, until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent then ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        return
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    torch.set_num_threads(1)
    _forward_log(connection)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            number = connection.recv()
            try:
                message = "result", task(number, _paced(connection))
                content = pickle.dumps(message)  # not `send`, which puts tensors into shared memory
            except BaseException as error:
                content = _as_message(error)
            connection.send_bytes(content)


def _paced(connection: Connection) -> Callable[[float, str], None]:
    last = time.monotonic()

    def report(share: float, state: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _PACE:
            last = time.monotonic()
            connection.send_bytes(pickle.dumps(("report", (share, state))))

    return report


class _Forwarding(logging.handlers.QueueHandler):
    """The parent writes the log: what a terminal is locked with may be held in this copy of it."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)  # type: ignore[arg-type]  # only ``enqueue`` uses it

    def enqueue(self, record: logging.LogRecord) -> None:
        self.queue.send_bytes(pickle.dumps(("note", record)))  # type: ignore[attr-defined]


def _forward_log(connection: Connection) -> None:
    forwarding, warnings_only = _Forwarding(connection), _Forwarding(connection)
    warnings_only.setLevel(logging.WARNING)
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and logger.handlers:
            # PyTorch's compiler sends long debug records to a logger even when nobody reads them.
            own = warnings_only if name.startswith("torch") else forwarding
            logger.handlers = [] if logger.propagate else [own]
    logging.root.handlers = [forwarding]


def _as_message(error: BaseException) -> bytes:
    """The error, with its traceback as a note; one that cannot be pickled becomes a WorkerError."""
    error.add_note("".join(traceback.format_exception(error)))
    try:
        content = pickle.dumps(("error", error))
        pickle.loads(content)  # noqa: S301
    except Exception:
        content = pickle.dumps(("error", WorkerError(f"{type(error).__name__}: {error}")))
    return content
