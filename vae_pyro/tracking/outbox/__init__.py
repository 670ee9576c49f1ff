"""The outbox of a run: entries are written to disk first, then delivered to the tracker in order.

``journal`` is the file format, ``entries`` hands one entry to the tracker, ``delivery`` does so for
all of them in a thread of its own, and ``run`` is what a job writes to.
"""

from vae_pyro.tracking.outbox.journal import JOURNAL, RECORD_FOLDER, read_journal
from vae_pyro.tracking.outbox.run import OutboxRun, deliver_rest, open_run

__all__ = ["JOURNAL", "RECORD_FOLDER", "OutboxRun", "deliver_rest", "open_run", "read_journal"]
