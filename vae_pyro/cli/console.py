"""What the programs print: tables and notes on standard output, errors on standard error."""

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from vae_pyro.errors import StorageError, UserError
from vae_pyro.files import write_atomically
from vae_pyro.interruption import Interrupted, interruptible

_WIDTH = 140  # characters, enough for the table of results


def make_console() -> Console:
    """Standard output; wide enough for the table of results where it is not a terminal.

    Text is printed as it is: a setting may be ``[ais]``, and a path may hold ``:x:``.
    """
    console = Console()
    width = None if console.is_terminal else max(console.width, _WIDTH)
    return Console(width=width, markup=False, emoji=False)


def print_notes(console: Console) -> None:
    """Print what the modules of this package log from now on, each message on a line of its own.

    A message at level INFO or above becomes ``note: <message>``. It goes nowhere else: Hydra's own
    handlers, which belong to the root logger, would print it a second time.

    Args:
        console: where to print; it replaces the console of an earlier call.
    """
    logger = logging.getLogger("vae_pyro")
    for handler in [h for h in logger.handlers if isinstance(h, _NoteHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_NoteHandler(console))
    logger.setLevel(logging.INFO)
    logger.propagate = False


def explain(error: Exception) -> str:
    """One clear message for any error."""
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error} (HYDRA_FULL_ERROR=1 shows where)"


def fail(message: str) -> None:
    """Print an error; with HYDRA_FULL_ERROR=1 the traceback as well."""
    if os.environ.get("HYDRA_FULL_ERROR") == "1" and sys.exc_info()[0] is not None:
        print(traceback.format_exc(), file=sys.stderr)
    print(f"error: {message}", file=sys.stderr, flush=True)


def add_uri(parser: argparse.ArgumentParser) -> None:
    """The option that names the tracking store."""
    parser.add_argument(
        "--uri",
        help="of the tracking store (default: $MLFLOW_TRACKING_URI, else sqlite:///mlflow.db)",
    )


def attempt(work: Callable[[], None]) -> int:
    """Do the work of a command; an error or a signal becomes one message.

    Returns:
        0; 1 where it failed; or the status of the signal.
    """
    print_notes(make_console())
    try:
        with interruptible():
            work()
    except UserError as error:
        fail(str(error))
        return 1
    except Interrupted as interruption:
        fail(str(interruption))
        return interruption.status
    return 0


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user asked for, and print its name.

    Raises:
        StorageError: where its folder is missing, or cannot be written.
    """
    if not path.parent.is_dir():
        raise StorageError(f"there is no folder {path.parent}: create it, or choose another file")
    write_atomically(path, content)
    sys.stdout.write(f"{path}\n")


class _NoteHandler(logging.Handler):
    """Prints through rich, so that a note appears above a progress bar and does not break it."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.print(
                f"note: {record.getMessage()}",
                highlight=False,
                markup=False,
                emoji=False,  # a path may hold :x:
                soft_wrap=True,
            )
        except Exception:  # a note that cannot be printed must not end a run
            self.handleError(record)
