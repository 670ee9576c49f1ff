"""``python -m vae_pyro.cli.deliver``: deliver records that the tracking store does not have yet."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vae_pyro.cli import startup
from vae_pyro.cli.console import fail, make_console, print_notes
from vae_pyro.errors import ResumeError, TrackingError, UserError
from vae_pyro.interruption import Interrupted, interruptible
from vae_pyro.runs.folder import claim
from vae_pyro.tracking import RECORD_FOLDER, MLflow, OutboxRun
from vae_pyro.tracking.outbox import JOURNAL, read_journal

logger = logging.getLogger("vae_pyro.cli.deliver")  # run as a program, __name__ is "__main__"


def main(arguments: Sequence[str] | None = None) -> int:
    """Deliver the records of every job and sweep below some folders, parents before children.

    A journal contains the store that it was made for, but it may come from other people. So it is
    delivered only to a store that the user chose, by ``--uri`` or by $MLFLOW_TRACKING_URI.

    Args:
        arguments: of the command line; those of this process unless given.

    Returns:
        0 if nothing is left to be delivered, 1 otherwise.
    """
    parser = argparse.ArgumentParser(prog="python -m vae_pyro.cli.deliver", description=__doc__)
    parser.add_argument(
        "folders",
        nargs="*",
        type=Path,
        default=[Path("outputs"), Path("multirun")],
        help="of jobs or sweeps (default: outputs/ and multirun/)",
    )
    parser.add_argument(
        "--uri",
        help="of the tracking store (default: $MLFLOW_TRACKING_URI, else "
        f"{MLflow.uri}, for records that were made for that store)",
    )
    options = parser.parse_args(arguments)
    print_notes(make_console())
    pattern = f"**/{RECORD_FOLDER}/{JOURNAL}"
    journals = {path for folder in options.folders for path in folder.glob(pattern)}
    if not journals:
        fail(f"no records are below {', '.join(map(str, options.folders))}")
        return 1
    is_complete = True
    for journal in sorted(journals, key=lambda path: (len(path.parts), path)):
        job = journal.parent.parent
        try:
            with interruptible():
                logger.info("%s: %s", job, _deliver(job, options.uri))
        except UserError as error:
            is_complete = False
            fail(f"{job}: {error}")
        except Interrupted as interruption:
            fail(f"{interruption}; the same command delivers the rest")
            return interruption.status
    return 0 if is_complete else 1


def _deliver(job: Path, uri: str | None) -> str:
    folder = job / RECORD_FOLDER
    if (folder / JOURNAL).resolve() != job.resolve() / RECORD_FOLDER / JOURNAL:
        raise TrackingError(f"{folder / JOURNAL} is a link to a record elsewhere; name that folder")
    try:
        claimed = claim(job)
    except ResumeError:
        return "still running; it delivers its records itself"
    with claimed:
        entries = read_journal(folder)
        if not entries:
            return "has nothing recorded"
        recorded = entries[0]["tracker"]
        tracker = MLflow(
            os.environ.get("MLFLOW_TRACKING_URI") or MLflow.uri if uri is None else uri,
            recorded.get("experiment", MLflow.experiment),
        )
        if uri is None and not tracker.is_store_of(recorded):
            raise TrackingError(
                f"its records were made for {recorded.get('uri', 'another kind of store')!r}, and "
                f"the configured store is {tracker.uri!r}; name the one to use with --uri"
            )
        run = OutboxRun(folder, tracker)
        run.address(run.parent)
        waiting = run.undelivered
        run.deliver()
        if run.undelivered:
            raise TrackingError(f"{run.undelivered} records still wait")
        return f"{waiting} records delivered" if waiting else "has everything delivered"


if __name__ == "__main__":
    startup.prepare()
    sys.exit(main())
