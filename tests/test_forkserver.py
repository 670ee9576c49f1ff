"""A forked command is the command: what it sees, does and leaves is as with a new interpreter."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import QUICK, ROOT

pytestmark = pytest.mark.slow  # programs are run

PROBE = """
import atexit, json, os, signal, sys, threading
atexit.register(print, "farewell")
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "name": __name__, "file": __file__, "cwd": os.getcwd(),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "environment": dict(os.environ), "package": [__package__, __spec__ is None],
    "encoding": [sys.stdin.encoding, sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors],
    "handlers": [str(signal.getsignal(n)) for n in (2, 13, 15, 17)],
    "project": [name for name in sys.modules if name.split(".")[0] in ("vae_pyro", "tests")],
    "threads": threading.active_count(),
    "leader": os.getsid(0) == os.getpid(),
    "files": sorted(map(int, os.listdir("/proc/self/fd")))[:-1],
    "input": sys.stdin.read(),
}))
print("told", file=sys.stderr)
"""


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], list[str]]:
    def write(text: str) -> list[str]:
        (tmp_path / "program.py").write_text(text)
        return [sys.executable, "program.py"]

    return write


@pytest.fixture
def ctrl_c_interrupts() -> Iterator[None]:
    """A shell's background jobs ignore it, and new interpreters would, too; forked ones do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c_interrupts")
@pytest.mark.parametrize("as_module", [False, True], ids=["file", "module"])
@pytest.mark.parametrize("session", [False, True])
def test_it_sees_what_a_new_interpreter_sees(
    as_module: bool, session: bool, program: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = program(PROBE)
    if as_module:
        command[1:] = ["-m", "program"]
    answers = []
    for run in (subprocess.run, forkserver.run):
        done = run(
            [*command, "a=1", "-m"],
            cwd=tmp_path,
            env=os.environ | {"ONE": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}/nowhere"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            start_new_session=session,
        )
        assert (done.returncode, done.stderr) == (0, "told\n")
        line, farewell = done.stdout.splitlines()
        assert farewell == "farewell"
        answers.append(json.loads(line))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "raise SystemExit",
        "raise SystemExit(3)",
        "raise SystemExit('a reason')",
        "import os; os._exit(4)",
        "import os; os.kill(os.getpid(), 9)",
        "import os; os.kill(os.getpid(), 15)",
        "import threading; threading.Timer(0.2, lambda: print('last')).start()",
    ],
)
def test_it_ends_as_a_new_interpreter_does(
    ending: str, program: Callable[[str], list[str]], tmp_path: Path
) -> None:
    new, forked = (
        run(program(ending), cwd=tmp_path, capture_output=True, text=True)
        for run in (subprocess.run, forkserver.run)
    )
    assert (new.returncode, new.stdout, new.stderr) == (
        forked.returncode,
        forked.stdout,
        forked.stderr,
    )


def test_an_error_has_its_traceback(program: Callable[[str], list[str]], tmp_path: Path) -> None:
    done = forkserver.run(program("1 / 0"), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_signals_reach_it(program: Callable[[str], list[str]], tmp_path: Path) -> None:
    command = program("import time\nprint('up', flush=True)\nwhile True: time.sleep(0.01)")
    with forkserver.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
        os.kill(process.pid, signal.SIGSTOP)
        state = Path(f"/proc/{process.pid}/stat")
        deadline = time.monotonic() + 20
        while state.read_text().split()[2] != "T":
            assert time.monotonic() < deadline
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(20) == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_randomness_is_its_own(program: Callable[[str], list[str]], tmp_path: Path) -> None:
    command = program("import random, numpy, uuid\nprint(random.random(), numpy.random.rand())")
    said = {forkserver.run(command, cwd=tmp_path, capture_output=True).stdout for _ in range(3)}
    assert len(said) == 3


def test_what_is_read_at_the_start_starts_an_interpreter(
    program: Callable[[str], list[str]], tmp_path: Path
) -> None:
    command = program("import sys; print(sys.stdout.encoding, 'torch' in sys.modules)")
    # As when the tests began: scikit-learn sets variables of this kind where a test imports it.
    at_start = {name: v for name, v in os.environ.items() if not name.startswith("KMP_")}
    as_scikit_learn_sets_it = {"KMP_DUPLICATE_LIB_OK": "True", "KMP_INIT_AT_FORK": "FALSE"}
    for environment, expected in (
        ({}, "utf-8 True"),
        (as_scikit_learn_sets_it, "utf-8 True"),
        ({"KMP_INIT_AT_FORK": "TRUE"}, "utf-8 False"),
        ({"PYTHONIOENCODING": "ascii"}, "ascii False"),
        ({"CXX": "/nowhere/c++"}, "utf-8 False"),
        (
            {"GOMP_SPINCOUNT": "1000", "OMP_NUM_THREADS": "2"},
            "utf-8 True",
        ),  # as the programs set it
        ({"GOMP_SPINCOUNT": "5"}, "utf-8 False"),
    ):
        done = forkserver.run(
            command,
            cwd=tmp_path,
            env=at_start | environment,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected


def test_a_job_gives_the_same_output_and_files(tmp_path: Path) -> None:
    """And it makes MLflow's database as a new interpreter does, which migrates it for real."""
    outputs = []
    for name, run in (("new", subprocess.run), ("forked", forkserver.run)):
        (tmp_path / name).mkdir()
        done = run(
            [sys.executable, str(ROOT / "run.py"), "latent_dim=2", *QUICK, "hydra.run.dir=job"],
            cwd=tmp_path / name,
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # with two, progress depends on timing
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        timed = (
            "free cores",
            "          2 ",
        )  # the machine's load, and a row that ends with seconds
        lines = [line for line in done.stdout.splitlines() if not any(t in line for t in timed)]
        untimed = re.sub(r"  [\d.]+ (s|min|h) left", "", "\n".join(lines))
        outputs.append(untimed.replace(str(tmp_path / name), ""))
    assert outputs[0] == outputs[1]
    for kept in ("per_image.csv", "model/weights.safetensors", "config.yaml"):
        new, forked = (tmp_path / name / "job" / kept for name in ("new", "forked"))
        assert new.read_bytes() == forked.read_bytes(), kept
    names = [
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name / "job").rglob("*")}
        for name in ("new", "forked")
    ]
    assert len(names[0]) == len(names[1])
    tables, others = (columns(tmp_path / name / "mlflow.db") for name in ("new", "forked"))
    assert tables == others


def columns(database: Path) -> dict[str, list[tuple[object, ...]]]:
    """Each table's and index's columns."""
    with closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
        return {
            name: sorted(connection.execute(f"PRAGMA {kind}_info('{name}')").fetchall())
            for kind, name in found
        }


@pytest.mark.xdist_group("grouped")
def test_groups_reach_the_processes_of_tests(request: pytest.FixtureRequest) -> None:
    """Otherwise each process would set up for itself what one is to set up for all."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@grouped")
