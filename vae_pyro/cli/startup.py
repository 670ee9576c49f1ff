"""What each program does first, before torch is imported: threads that sleep, output that lasts."""

import atexit
import codecs
import gc
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from vae_pyro.credentials import refuse_credentials
from vae_pyro.errors import ConfigError

_WAITING = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
_PLAIN = str.maketrans(
    {
        "±": "+-",
        "−": "-",
        "–": "-",
        "≥": ">=",
        "≤": "<=",
        "→": "->",
        "‖": "|",
        "…": "...",
        "━": "-",
        "─": "-",
        "•": "*",
        "×": "x",
        "β": "beta",
        "σ": "sigma",
    }
)


def prepare() -> None:
    """Set up this process, and those that it starts.

    - Threads of OpenMP that wait for others spin for microseconds and then sleep
      (``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT``, unless the user has set one of them): on a
      machine that other programs use too, a thread that spins holds the core that the one it waits
      for needs. Without any spinning, steps on an idle machine would take twice as long.
    - Characters that the output cannot show (``PYTHONIOENCODING=ascii``, ``LC_ALL=C``) are replaced
      by plain ones.
    - Where the reader of the output goes away (``| head``), the program continues without output.
    - Ray reports its use to its makers only if the user has switched that on.
    - MLflow shows no progress bar for each file that is read back.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if not _WAITING.keys() & os.environ.keys():
        os.environ.update(_WAITING)
    codecs.register_error("plain", _plain)
    sys.stdout = _lasting(sys.stdout)
    sys.stderr = _lasting(sys.stderr)


@contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage, and never look for it in what was imported.

    Modules stay; but Python's collector of reference cycles would go through all of them again and
    again, for a seventh of the time of the imports. Only a process's first job imports: what later
    ones leave behind is garbage.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # At the end Python clears its modules, and libraries complain of what is kept from that.
        atexit.register(gc.unfreeze)
        gc.enable()


def begin_tracking(tracker: object) -> None:
    """Let the tracking store's client be imported by another process, while this imports torch.

    Args:
        tracker: the name of its class, as the configuration has it.
    """
    if tracker == "vae_pyro.tracking.MLflow":
        from vae_pyro.tracking import MLflow

        MLflow().apart()


def arrange_arguments() -> None:
    """Put the command line into the order that Hydra needs, and refuse credentials in it.

    Hydra takes overrides in one piece: ``a=1 -m b=2`` would be an error.
    """
    flags = [argument for argument in sys.argv[1:] if argument in ("-m", "--multirun")]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in flags] + flags
    try:
        refuse_credentials(sys.argv[1:])
    except ConfigError as error:
        sys.exit(f"error: {error}")


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    plain = error.object[error.start : error.end].translate(_PLAIN)
    return plain.encode("ascii", "replace").decode(), error.end


class _LastingFile(io.FileIO):
    """A file that drops what is written after its reader has closed the pipe."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return len(content)


def _lasting(stream: TextIO) -> TextIO:
    """The same stream; one that is not the process's own (a notebook's, a test's) is left alone."""
    if stream not in (sys.__stdout__, sys.__stderr__) or not isinstance(stream, io.TextIOWrapper):
        return stream
    stream.flush()
    file = _LastingFile(stream.fileno(), "wb", closefd=False)
    errors = stream.errors
    if not stream.encoding.lower().startswith("utf"):
        errors = "plain"
    elif errors == "strict":  # a file's name may hold what no encoding has
        errors = "backslashreplace"
    return io.TextIOWrapper(
        io.BufferedWriter(file),
        encoding=stream.encoding,
        errors=errors,
        line_buffering=True,
        write_through=stream.write_through,
    )
