"""Commands of Python without the wait for its imports: ``subprocess`` with a warm start.

A server imports, once, the libraries that every command needs, and nothing of this project. For a
command it forks a process, which then does what ``python run.py ...`` or ``python -m ...`` does:
its arguments, folder, environment, streams, exit status and process id are its own, it imports this
project's modules anew, and signals reach it. What Python or a library reads only when it starts (an
encoding, a locale, the compiler's name) must be as it was for the server; where it is not, and for
every other command, ``Popen`` starts a new interpreter.
"""

import atexit
import importlib
import inspect
import json
import os
import random
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

LIBRARIES = (
    "alembic.command",
    "hydra._internal.callbacks",
    "hydra._internal.hydra",
    "hydra._internal.utils",
    "joblib",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "matplotlib.pyplot",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.utils.autologging_utils",
    "omegaconf",
    "pandas",
    "PIL.PngImagePlugin",
    "PIL.WebPImagePlugin",
    "pydantic",
    "pyro.contrib",
    "pyro.distributions",
    "pyro.infer",
    "pyro.nn",
    "rich.console",
    "rich.live",
    "rich.progress",
    "rich.table",
    "safetensors.torch",
    "scipy.optimize",
    "scipy.stats",
    "sklearn.datasets",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "torch.fx.experimental.proxy_tensor",
    "torch.func",
    "torchvision.datasets",
)
# Variables that Python or a library reads when it starts, by their first letters.
READ_AT_START = (
    "PYTHON",
    "LC_",
    "LANG",
    "LD_",
    "CXX",
    "TORCH",
    "CUDA",
    "GOMP_",
    "KMP_",
    "MKL_",
    "OMP_",
    "MPL",
    "MLFLOW_DISABLE",
    "MLFLOW_CONFIGURE",
)
# But for those that a forked process can still follow.
FOLLOWED = ("PYTHONPATH", "OMP_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR")
_LENGTH = struct.Struct("!I")
_NUMBER = struct.Struct("!i")
_AT_START = dict(os.environ)
# What the programs and scikit-learn set for themselves, as the tests' own process may have done,
# or its parent.
_OWN = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "1000",
    "KMP_DUPLICATE_LIB_OK": "True",
    "KMP_INIT_AT_FORK": "FALSE",
}
_SERVERS = _AT_START | _OWN
_tables: Path | None = None
_Popen: Any = subprocess.Popen  # of whose private methods type checkers know nothing


class Popen(_Popen):  # type: ignore[misc]
    """``subprocess.Popen``; a command of this Python is forked from the server where it can be."""

    _end: int | None = None  # where the server tells the exit status of a forked process

    def _execute_child(self, *args: Any, **kwargs: Any) -> None:
        whole = inspect.signature(super()._execute_child).bind(*args, **kwargs).arguments
        command, environment = whole["args"], whole["env"]
        environment = dict(os.environ if environment is None else environment)
        if not _can_be_forked(command, environment):
            super()._execute_child(*args, **kwargs)
            return
        streams = [whole["p2cread"], whole["c2pwrite"], whole["errwrite"]]
        streams = [own if given == -1 else given for own, given in enumerate(streams)]
        request = {
            "arguments": [os.fspath(part) for part in command[1:]],
            "folder": os.fspath(whole["cwd"] or os.getcwd()),
            "environment": environment,
            "new_session": whole["start_new_session"],
        }
        self._end = _server().start(request, streams)
        told = os.read(self._end, _NUMBER.size)
        if not told:
            raise ChildProcessError("the server that forks commands has ended; see its errors")
        self.pid = _NUMBER.unpack(told)[0]
        self._child_created = True
        for ours, theirs in (
            ("p2cwrite", "p2cread"),
            ("c2pread", "c2pwrite"),
            ("errread", "errwrite"),
        ):
            if whole[ours] != -1:
                os.close(whole[theirs])
        if getattr(self, "_devnull", None) is not None:
            os.close(self._devnull)

    def _internal_poll(self, *args: Any, **kwargs: Any) -> int | None:
        if self._end is None:
            return super()._internal_poll(*args, **kwargs)
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):
            try:
                if self.returncode is None and select.select([self._end], [], [], 0)[0]:
                    self._handle_exitstatus(self._try_wait(0)[1])
            finally:
                self._waitpid_lock.release()
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._end is None:
            return super()._try_wait(wait_flags)
        if wait_flags & os.WNOHANG and not select.select([self._end], [], [], 0)[0]:
            return 0, 0
        told = os.read(self._end, _NUMBER.size)
        os.close(self._end)
        return self.pid, _NUMBER.unpack(told)[0] if told else signal.SIGKILL


class RecorderForked(_Popen):  # type: ignore[misc]
    """``subprocess.Popen`` of a forked process, which forks its process that records, too."""

    def _execute_child(self, *args: Any, **kwargs: Any) -> None:
        whole = inspect.signature(super()._execute_child).bind(*args, **kwargs).arguments
        command = whole["args"]
        if not (isinstance(command, list) and "vae_pyro.tracking.apart" in str(command[-1])):
            super()._execute_child(*args, **kwargs)
            return
        self.pid = os.fork()
        if not self.pid:
            for ours, theirs, number in (("p2cwrite", "p2cread", 0), ("c2pread", "c2pwrite", 1)):
                os.close(whole[ours])
                os.dup2(whole[theirs], number)
                os.close(whole[theirs])
            try:
                exec(command[-1], {})
            finally:
                os._exit(1)
        self._child_created = True
        for theirs in ("p2cread", "c2pwrite"):
            os.close(whole[theirs])


def run(
    command: Sequence[str | os.PathLike[str]],
    *,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """``subprocess.run``, with this ``Popen``."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Popen(command, **options) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def _can_be_forked(command: Any, environment: Mapping[str, str]) -> bool:
    if sys.platform != "linux":  # elsewhere what a library has set up may not survive a fork
        return False
    if isinstance(command, str | bytes) or os.fspath(command[0]) != sys.executable:
        return False
    if len(command) < 2 or (os.fspath(command[1]).startswith("-") and command[1] != "-m"):
        return False
    names = {*environment, *_SERVERS} - {*FOLLOWED}
    return all(
        environment.get(name) in (_AT_START.get(name), _SERVERS.get(name))
        or (name in _OWN and name not in environment)
        for name in names
        if name.startswith(READ_AT_START)
    )


@cache
def _server() -> "_Server":
    return _Server(_tables)


def use_tables(path: Path) -> None:
    """Forked processes make MLflow's databases from this SQL (see tests/database.py)."""
    global _tables  # noqa: PLW0603
    _tables = path


class _Server:
    """The server's end in the process of the tests, which it does not outlive."""

    def __init__(self, tables: Path | None) -> None:
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.forkserver", str(theirs.fileno())]
        command += [str(tables)] * (tables is not None)
        environment = _SERVERS | {
            "OMP_NUM_THREADS": "1",
            "JE_ARROW_MALLOC_CONF": "background_thread:false",  # Arrow's, in pandas
        }
        self._lock = threading.Lock()
        with theirs:
            self._process = subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        atexit.register(self.stop)

    def start(self, request: Mapping[str, Any], streams: Sequence[int]) -> int:
        """A pipe from which the process id and then the exit status can be read."""
        reader, writer = os.pipe()
        body = json.dumps(request).encode()
        with self._lock:
            head = _LENGTH.pack(len(body))
            socket.send_fds(self._socket, [head], [*streams, writer])
            self._socket.sendall(body)
        os.close(writer)
        return reader

    def stop(self) -> None:
        self._socket.close()
        self._process.wait(60)


class _StoppedError(Exception):
    """The process that sends the commands has ended."""


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a process for every command; returns in such a process only, with its command."""
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.set_wakeup_fd(woken.fileno())
    ends: dict[int, int] = {}
    try:
        while True:
            ready, _, _ = select.select([control, wake], [], [])
            if wake in ready:
                wake.recv(4096)
                _tell_who_has_ended(ends)
            if control not in ready:
                continue
            request, files = _received(control)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for number in (*ends.values(), files[3], control.fileno()):
                    os.close(number)
                wake.close()
                woken.close()
                control.detach()
                for target, file in enumerate(files[:3]):
                    os.dup2(file, target)
                    os.close(file)
                return request
            os.write(files[3], _NUMBER.pack(pid))
            ends[pid] = files[3]
            for file in files[:3]:
                os.close(file)
    except _StoppedError:
        for pid in ends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _tell_who_has_ended(ends: dict[int, int]) -> None:
    for pid in list(ends):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            with suppress(BrokenPipeError):
                os.write(ends[pid], _NUMBER.pack(status))
            os.close(ends.pop(pid))


def _received(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    head, files, _, _ = socket.recv_fds(control, _LENGTH.size, 4)
    if not head:
        raise _StoppedError
    length = _LENGTH.unpack(head)[0]
    body = b""
    while len(body) < length:
        body += control.recv(length - len(body))
    return json.loads(body), files


def become(request: Mapping[str, Any], base: Sequence[str]) -> NoReturn:
    """Be the process of a command, to its end.

    Args:
        request: the command's arguments (a file or ``-m`` and a module's name come first), folder
            and environment.
        base: the module path but for what depends on the command.
    """
    for signum, handler in (
        (signal.SIGCHLD, signal.SIG_DFL),
        (signal.SIGINT, signal.default_int_handler),
    ):
        signal.signal(signum, handler)
    if request["new_session"]:
        os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    first, *rest = request["arguments"]
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.orig_argv = [sys.executable, first, *rest]
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    subprocess.Popen = RecorderForked  # type: ignore[misc]
    _use_threads(os.environ.get("OMP_NUM_THREADS"))
    random.seed()
    sys.modules["numpy"].random.seed()
    status = 0
    try:
        if first == "-m":
            sys.path[:] = [os.getcwd(), *paths, *base]
            sys.argv = rest
            runpy._run_module_as_main(rest[0], alter_argv=True)  # type: ignore[attr-defined]
        else:
            sys.path[:] = [str(Path(first).resolve().parent), *paths, *base]
            sys.argv = [first, *rest]
            main.__dict__.update(__file__=os.path.abspath(first), __builtins__=__builtins__)
            exec(compile(Path(first).read_bytes(), first, "exec"), main.__dict__)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)  # noqa: T201
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 0xFF)


def _use_threads(wanted: str | None) -> None:
    threads = int(wanted) if wanted else len(os.sched_getaffinity(0))
    torch = sys.modules["torch"]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _warm(tables: Sequence[str]) -> list[str]:
    """Import the libraries; the module path without the current folder and PYTHONPATH."""
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    base = [path for path in sys.path[1:] if path not in given]
    sys.path[:] = base
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    for path in tables:
        from tests import database

        database.use(Path(path))
    for name in ("tests", "tests.database"):
        sys.modules.pop(name, None)
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose the other threads"
    return base


if __name__ == "__main__":
    path = _warm(sys.argv[2:])
    become(serve(socket.socket(fileno=int(sys.argv[1]))), path)
