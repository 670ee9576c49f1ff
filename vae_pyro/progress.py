"""Progress: a bar on a terminal, an occasional plain line elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

ShowProgress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""(what is done, number of steps) -> a context that gives report(steps done, state in words).

The first report says how many steps were done before: of a training that is resumed, not none.
"""

_LINES = 5  # so many plain lines per task
_SOON = 10.0  # seconds until one more, which says how long the task will take
_SILENCE = 600.0  # seconds without a line, at most, if the steps are shorter


def duration_in_words(seconds: float) -> str:
    """A duration with two digits, at most: more would promise too much.

    >>> duration_in_words(48_733)
    '14 h'
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.{0 if seconds >= 10 * length else 1}f} {unit}"
    return f"{seconds:.0f} s"


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
        a function to call with (steps done, a few words on the current state), first with the
        steps done before: they took none of the time from which the time left is computed.
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
    before: int | None = None
    lines = 0
    late = _SOON  # when a line is due that is no fifth of the task

    def report(done: int, state: str) -> None:
        nonlocal before, lines, late
        if before is None:
            before, lines = done, done * _LINES // total
        spent = time.monotonic() - start
        if done > before and (done * _LINES >= (lines + 1) * total or spent >= late):
            lines = done * _LINES // total
            late = spent + _SILENCE
            left = spent / (done - before) * (total - done)
            words = [
                f"{label} {done:,}/{total:,}",
                state,
                f"{duration_in_words(left)} left" if left >= 1 else "",
            ]
            console.print("  ".join(word for word in words if word), highlight=False)

    yield report
