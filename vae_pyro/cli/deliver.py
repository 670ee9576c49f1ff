"""``python -m vae_pyro.cli.deliver``: deliver what was recorded while the store was away."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.cli import startup
from vae_pyro.cli.app import fail, tell
from vae_pyro.errors import ResumeError, TrackingError, UserError
from vae_pyro.interruption import Interrupted, interruptible
from vae_pyro.runs.folder import claim
from vae_pyro.tracking import MLflow, Record
from vae_pyro.tracking.journal import JOURNAL, read_journal


def main(arguments: Sequence[str] | None = None) -> int:
    """Deliver every record below some folders; parents before their children.

    A record names the store that it was made for, but it may be somebody else's: it is delivered
    only to a store that the user names, by ``--uri`` or as the configured one.

    Returns:
        0 where nothing is left to be delivered, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m vae_pyro.cli.deliver", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("outputs"), Path("multirun")],
        help="of jobs or sweeps; outputs/ and multirun/ unless named",
    )
    parser.add_argument(
        "--uri",
        help="of the tracking store; by default $MLFLOW_TRACKING_URI, else "
        f"{MLflow.uri}, if the records were made for that one",
    )
    options = parser.parse_args(arguments)
    journals = {path for folder in options.folders for path in folder.glob(f"**/record/{JOURNAL}")}
    if not journals:
        fail(f"no records are below {', '.join(map(str, options.folders))}")
        return 1
    is_complete = True
    for journal in sorted(journals, key=lambda path: (len(path.parts), path)):
        job = journal.parent.parent
        try:
            with interruptible():
                tell(f"{job}: {_deliver(job, options.uri)}")
        except UserError as error:
            is_complete = False
            fail(f"{job}: {error}")
        except Interrupted as interruption:
            fail(f"{interruption}; the same command goes on with what waits")
            return interruption.status
    return 0 if is_complete else 1


def _deliver(job: Path, uri: str | None) -> str:
    folder = job / "record"
    if (folder / JOURNAL).resolve() != job.resolve() / "record" / JOURNAL:
        raise TrackingError(f"{folder / JOURNAL} is a link to a record elsewhere; name that folder")
    try:
        claimed = claim(job)
    except ResumeError:
        return "still at work, and delivering by itself"
    with claimed:
        entries = read_journal(folder)
        if not entries:
            return "has nothing recorded"
        recorded = entries[0]["tracker"]
        tracker = MLflow(
            os.environ.get("MLFLOW_TRACKING_URI") or MLflow.uri if uri is None else uri,
            recorded.get("experiment", MLflow.experiment),
        )
        if uri is None and recorded != tracker.options():
            raise TrackingError(
                f"its records were made for {recorded.get('uri', 'another kind of store')!r}, and "
                f"the configured store is {tracker.uri!r}; name the one to use with --uri"
            )
        record = Record(folder, tracker, tell)
        record.address(record.parent)
        waiting = record.undelivered
        record.deliver()
        if record.undelivered:
            raise TrackingError(f"{record.undelivered} records still wait")
        return f"{waiting} records delivered" if waiting else "has everything delivered"


if __name__ == "__main__":
    startup.prepare()
    sys.exit(main())
