"""Hand over what was recorded while the tracking store was away: ``python -m vae_pyro.deliver``."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.app import fail, tell
from vae_pyro.config import build
from vae_pyro.errors import ResumeError, TrackingError, UserError
from vae_pyro.resume import claim
from vae_pyro.tracking import Record, Tracker
from vae_pyro.tracking.journal import JOURNAL, read_journal


def main(arguments: Sequence[str] | None = None) -> int:
    """Deliver every record below some folders; parents before their children.

    Returns:
        0 where nothing is left to be delivered, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m vae_pyro.deliver", description=__doc__)
    parser.add_argument(
        "folders", nargs="*", type=Path, default=[Path("outputs"), Path("multirun")],
        help="of jobs or sweeps; outputs/ and multirun/ unless named",
    )  # fmt: skip
    parser.add_argument(
        "--uri", default=os.environ.get("MLFLOW_TRACKING_URI"),
        help="of the tracking store, where it is not the recorded one or has a password; by "
        "default $MLFLOW_TRACKING_URI",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    journals = {path for folder in options.folders for path in folder.glob(f"**/record/{JOURNAL}")}
    if not journals:
        fail(f"no records are below {', '.join(map(str, options.folders))}")
        return 1
    is_complete = True
    for journal in sorted(journals, key=lambda path: (len(path.parts), path)):
        try:
            tell(f"{journal.parent.parent}: {_deliver(journal.parent, options.uri)}")
        except UserError as error:
            is_complete = False
            fail(f"{journal.parent.parent}: {error}")
    return 0 if is_complete else 1


def _deliver(folder: Path, uri: str | None) -> str:
    try:
        lock = claim(folder.parent)
    except ResumeError:
        return "still at work, and delivering by itself"
    with lock:
        recorded = read_journal(folder)[0]["tracker"]
        chosen = {**recorded, "uri": uri} if uri and "uri" in recorded else recorded
        if "***" in str(chosen.get("uri", "")):
            raise TrackingError(
                f"{chosen['uri']} needs its password: name the store with --uri, or in the "
                "environment as MLFLOW_TRACKING_URI"
            )
        record = Record(folder, build(chosen, Tracker, "tracking"), tell)
        record.address(record.parent)
        waiting = record.undelivered
        record.deliver()
        if record.undelivered:
            raise TrackingError(f"{record.undelivered} records still wait")
        return f"{waiting} records delivered" if waiting else "has everything delivered"


if __name__ == "__main__":
    sys.exit(main())
