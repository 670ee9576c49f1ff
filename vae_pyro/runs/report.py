"""Report: one job's notes, and its estimators side by side."""

import logging

from rich.console import Console

from vae_pyro.evaluation import Evaluation
from vae_pyro.reporting.estimators import advice, comparison
from vae_pyro.reporting.tables import print_table, table_markdown
from vae_pyro.runs.preparation import Parts
from vae_pyro.tracking import Run

logger = logging.getLogger(__name__)


def report(
    evaluation: Evaluation, parts: Parts, log_cell_volume: float | None, run: Run, console: Console
) -> None:
    """Print the estimators side by side, where there are further ones, and the notes.

    Both become the run's description.

    Args:
        evaluation: of the job.
        parts: likewise.
        log_cell_volume: see ``vae_pyro.evaluation.log_cell_volume``.
        run: whose description is set.
        console: where the table is printed; the notes are logged.
    """
    notes = [*parts.notes, *advice(evaluation, parts.plan)]
    words = list(notes)
    if parts.plan.estimators:
        table = comparison(evaluation, log_cell_volume or 0.0)
        print_table(table, console)
        words.insert(0, table_markdown(table))
    run.describe("\n\n".join(words))
    for note in notes:
        logger.info(note)
