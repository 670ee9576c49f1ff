"""Entries of a journal, handed to the tracker's run. The journal may come from other people."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from vae_pyro.tracking.base import StoredRun
from vae_pyro.tracking.outbox.journal import Entry


class UnusableError(Exception):
    """A file that an entry names is damaged, or lies outside the job's folder."""


def of_one_call(entries: Sequence[Entry]) -> Sequence[Entry]:
    """The first of these entries, with the metrics that follow it if it is metrics, too."""
    metrics = list(takewhile(lambda entry: entry["op"] == "metrics", entries))
    return metrics or entries[:1]


def hand_over(entries: Sequence[Entry], folder: Path, run: StoredRun, *, is_repeated: bool) -> None:
    """Hand entries to the tracker.

    Args:
        entries: one as ``read_journal`` returns it, or several of metrics.
        folder: of the journal.
        run: where they go.
        is_repeated: whether they may have arrived before.

    Raises:
        UnusableError: where the file that the entry names cannot be used.
    """
    entry = entries[0]
    if entry["op"] == "params":
        run.log_params(entry["params"])
    elif entry["op"] == "metrics":
        run.log_steps([(each["metrics"], each["step"], each["at"]) for each in entries])
    elif entry["op"] == "image":
        if not (is_repeated and run.has_image(entry["key"], entry["step"])):
            image = _picture(_inside(folder, folder / entry["file"]))
            run.log_image(entry["key"], image, entry["step"])
    elif entry["op"] == "dataset":
        run.log_dataset(*(entry[name] for name in ("name", "digest", "source", "profile")))
    elif entry["op"] == "file":
        path = _inside(folder.parent, folder / entry["path"])
        if path.exists():
            run.log_file(path, entry["folder"])
    elif entry["op"] == "model":
        run.log_model(entry["name"])
    elif entry["op"] == "tag":
        run.tag(entry["name"], entry["value"])
    elif entry["op"] == "describe":
        run.describe(entry["markdown"])
    elif entry["op"] == "end":
        run.end(entry["status"])


def is_hopeless(error: Exception) -> bool:
    """Whether an entry can never be delivered: its file is unusable, or the store rejects it."""
    is_wrong = getattr(error, "error_code", None) == "INVALID_PARAMETER_VALUE"
    return is_wrong or isinstance(error, UnusableError)


def _inside(folder: Path, path: Path) -> Path:
    """The file that is meant, links resolved; a journal must not name a file elsewhere."""
    try:
        folder, found = folder.resolve(), path.resolve()
        is_other = found.exists() and not found.is_file()
    except (OSError, RuntimeError) as error:  # a name that is too long, links in a circle
        raise UnusableError(f"{str(path)!r} cannot be found") from error
    if not found.is_relative_to(folder):
        raise UnusableError(f"{str(path)!r} is not a file in {folder}")
    if is_other:
        raise UnusableError(f"{str(path)!r} is not a regular file")
    return found


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return np.asarray(image)
    except Exception as error:  # the decoder raises many kinds for a damaged file
        raise UnusableError(str(error)) from error
