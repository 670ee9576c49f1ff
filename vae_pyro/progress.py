"""Progress: a bar on a terminal, an occasional plain line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ShowProgress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""(what is done, number of steps) -> a context that gives report(steps done, state in words)."""

_LINES = 5  # so many plain lines per task
_SOON = 10.0  # seconds until one more, which says how long the task will take


def no_progress(_label: str, _total: int) -> AbstractContextManager[Callable[[int, str], None]]:
    """A ``ShowProgress`` that shows nothing."""
    return nullcontext(lambda _done, _state: None)


@contextmanager
def show_progress(
    label: str, total: int, console: Console, job: str = ""
) -> Iterator[Callable[[int, str], None]]:
    """Show one task's progress.

    Args:
        label: what is being done.
        total: how many steps it has.
        console: where to show it.
        job: whose task it is, where several print at once.

    Yields:
        a function to call with (steps done, a few words on the current state).
    """
    label = f"{job}: {label}" if job else label
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(label, total=total, state="")
            yield lambda done, state: bars.update(task, completed=done, state=state)
        return

    start = time.monotonic()
    lines = 0
    was_shown = False

    def report(done: int, state: str) -> None:
        nonlocal lines, was_shown
        spent = time.monotonic() - start
        is_due = done * _LINES >= (lines + 1) * total
        if is_due or (not was_shown and done and spent >= _SOON):
            was_shown = True
            lines = done * _LINES // total
            left = spent / done * (total - done)
            words = [
                f"{label} {done:,}/{total:,}",
                state,
                f"{left:.0f} s left" if left >= 1 else "",
            ]
            console.print("  ".join(word for word in words if word), highlight=False)

    yield report
