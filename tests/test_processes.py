"""Tasks in forked processes: their results, errors and notes, and that all processes end."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from vae_pyro.compilation.precision import threads
from vae_pyro.compilation.processes import Aside, num_processes, spread
from vae_pyro.errors import DataError, WorkerError

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux only")


def silent(number: int, share: float, state: str) -> None:
    pass


@pytest.fixture
def three_threads() -> Iterator[None]:
    with threads(3):
        yield


@pytest.mark.parametrize("processes", [1, 2, 3, 9])
@pytest.mark.parametrize("tasks", [0, 1, 2, 7])
def test_results_come_in_order(tasks: int, processes: int) -> None:
    weights = torch.arange(3.0)

    def task(number: int, _report: object) -> tuple[int, torch.Tensor]:
        time.sleep(0.01 * (tasks - number))  # the first ends last
        return number, weights * number

    results = spread(task, tasks, processes, silent)
    assert [number for number, _ in results] == list(range(tasks))
    assert all(torch.equal(tensor, weights * number) for number, tensor in results)


@pytest.mark.usefixtures("three_threads")
def test_processes_work_at_the_same_time_on_one_thread_each() -> None:
    """Two that meet at a barrier: one after the other, the first would wait in vain."""
    barrier = multiprocessing.get_context("fork").Barrier(2)

    def meet(_number: int, _report: object) -> tuple[int, int]:
        barrier.wait(20)
        return os.getpid(), torch.get_num_threads()

    (first, one), (second, another) = spread(meet, 2, 2, silent)
    assert len({first, second, os.getpid()}) == 3
    assert one == another == 1


@pytest.mark.usefixtures("three_threads")
def test_the_first_are_done_here() -> None:
    told: list[tuple[int, float, str]] = []
    found = spread(
        lambda number, _report: (number, os.getpid(), torch.get_num_threads()),
        6,
        2,
        lambda *report: told.append(report),
        ahead=2,
    )
    assert [number for number, _, _ in found] == list(range(6))
    assert [pid == os.getpid() for _, pid, _ in found] == [True] * 2 + [False] * 4
    assert {count for _, _, count in found} == {1}
    assert told[:2] == [(0, 1.0, ""), (1, 1.0, "")]


def test_reports_tell_of_their_task() -> None:
    told: list[tuple[int, float, str]] = []

    def task(number: int, report: Callable[[float, str], None]) -> None:
        for share in (0.1, 0.2, 0.3):
            time.sleep(0.12)
            report(share, f"state {number}")

    spread(task, 3, 2, lambda *report: told.append(report))
    on_the_way = [report for report in told if report[1] < 1]
    assert {number for number, _, _ in on_the_way} == {0, 1, 2}
    assert all(state == f"state {number}" for number, _, state in on_the_way)
    assert sorted(report for report in told if report[1] == 1) == [(n, 1, "") for n in range(3)]


@pytest.mark.parametrize("propagates", [True, False])
def test_notes_are_written_by_the_parent(
    propagates: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("vae_pyro.somewhere")
    monkeypatch.setattr(logger, "propagate", propagates)
    if not propagates:
        monkeypatch.setattr(logger, "handlers", [caplog.handler])

    def task(number: int, _report: object) -> int:
        logger.warning("note of %s", {"task": number})
        return number

    assert spread(task, 3, 2, silent) == [0, 1, 2]
    expected = [f"note of {{'task': {number}}}" for number in range(3)]
    assert sorted(record.getMessage() for record in caplog.records) == expected
    assert {record.process for record in caplog.records}.isdisjoint({os.getpid()})
    aside: Aside[int] = Aside()
    aside.begin(lambda: task(7, None))
    assert aside.result() == 7
    assert caplog.records[-1].getMessage() == "note of {'task': 7}"


class OwnError(Exception):
    """Cannot be sent: it needs two arguments, and keeps one."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(what)


def test_an_error_keeps_its_kind_and_its_place() -> None:
    def task(number: int, _report: object) -> int:
        if number == 3:
            raise DataError("image 3 is broken")
        return number

    with pytest.raises(DataError) as caught:
        spread(task, 5, 2, silent)
    assert str(caught.value) == "image 3 is broken"
    assert "test_processes.py" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    def task(_number: int, _report: object) -> int:
        raise OwnError("here", "all is lost")

    with pytest.raises(WorkerError, match="OwnError: all is lost"):
        spread(task, 2, 2, silent)


def test_a_result_that_cannot_be_sent_is_an_error() -> None:
    with pytest.raises(Exception, match="pickle"):
        spread(lambda _number, _report: lambda: 0, 2, 2, silent)


def test_a_process_that_is_killed_is_told() -> None:
    def task(number: int, _report: object) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(WorkerError, match="was killed; where memory is short"):
        spread(task, 4, 2, silent)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("granted", [0, 1])
def test_fewer_processes_than_asked_for_do_all_the_same(
    granted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, left = os.fork, [granted]

    def fork_few() -> int:
        if not left[0]:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        left[0] -= 1
        return fork()

    monkeypatch.setattr(os, "fork", fork_few)
    found = spread(lambda number, _report: (number, os.getpid()), 5, 3, silent, ahead=1)
    assert [number for number, _ in found] == list(range(5))
    assert len({pid for _, pid in found}) == 1 + granted
    if not granted:
        with pytest.raises(WorkerError, match="no process can be started"):
            Aside[int]().begin(lambda: 1)


SLEEPING = """
import os, sys, time
from pathlib import Path
from vae_pyro.interruption import Interrupted, interruptible
from vae_pyro.compilation.processes import Aside, spread

def task(number, report):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(120)

def both():
    aside = Aside()
    try:
        aside.begin(lambda: task(0, None))
        spread(task, 2, 2, lambda *report: None)
    finally:
        aside.stop()

try:
    with interruptible():
        both()
except Interrupted as error:
    sys.exit(error.status)
"""


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_no_process_outlives_the_job(tmp_path: Path, signum: int, status: int) -> None:
    command = [sys.executable, "-c", SLEEPING, str(tmp_path)]
    job = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signum)
    _, errors = job.communicate(timeout=30)
    assert job.returncode == status
    assert errors == ""
    pids = [int(path.name) for path in tmp_path.iterdir()]
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.usefixtures("three_threads")
def test_as_many_processes_as_threads_where_forking_is_safe() -> None:
    assert num_processes(CPU) == 3
    assert num_processes(torch.device("cuda")) == 1
    found = []
    thread = threading.Thread(target=lambda: found.append(num_processes(CPU)))
    thread.start()
    thread.join()
    assert found == [1]
    assert spread(lambda _number, _report: num_processes(CPU), 2, 2, silent) == [1, 1]


def test_what_is_done_aside_sees_the_past() -> None:
    aside: Aside[float] = Aside()
    weight = torch.ones(3)
    assert not aside.is_busy
    aside.begin(lambda: weight.sum().item())
    weight.mul_(5)
    assert aside.is_busy
    assert aside.result() == 3
    assert not aside.is_busy


def test_what_is_done_aside_is_not_waited_for_for_ever() -> None:
    aside: Aside[None] = Aside()
    aside.begin(lambda: time.sleep(60))
    assert not aside.is_done
    with pytest.raises(WorkerError, match="within 0 s"):
        aside.result(patience=0.1)
    assert not aside.is_busy
    assert not multiprocessing.active_children()
