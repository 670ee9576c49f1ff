"""What modules log reaches the user as notes: each once, whole, on standard output."""

import logging
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from vae_pyro import progress
from vae_pyro.cli.console import make_console, print_notes


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger("vae_pyro")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


def test_a_message_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Not by Hydra's handler as well, and not once for each job of a sweep."""
    root = logging.StreamHandler()
    logging.getLogger().addHandler(root)
    try:
        for _ in range(3):
            print_notes(make_console())
        logger = logging.getLogger("vae_pyro.tracking")
        logger.debug("unimportant")
        logger.info("%d records", 3)
        logger.warning("away")
        logging.getLogger("another").info("of no interest")
    finally:
        logging.getLogger().removeHandler(root)
    captured = capsys.readouterr()
    assert captured.out == "note: 3 records\nnote: away\n"
    assert captured.err == ""


def test_a_message_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_notes(Console(width=20))
    message = "[bold]a[/bold] path/:smile:/100% and more than fits into a line " + "x" * 200
    logging.getLogger("vae_pyro").info(message)
    assert capsys.readouterr().out == f"note: {message}\n"


def test_messages_of_threads_are_not_mixed(capsys: pytest.CaptureFixture[str]) -> None:
    print_notes(make_console())
    logger = logging.getLogger("vae_pyro.tracking")

    def log(letter: str) -> None:
        for _ in range(100):
            logger.info(letter * 50)

    threads = [threading.Thread(target=log, args=[letter]) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(f"note: {letter * 50}" for letter in "abcd" * 100)


def test_progress_names_its_job_and_soon_says_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 steps of 4 seconds: the third is past ten seconds, then every fifth of them is shown."""
    now = [0.0]
    monkeypatch.setattr("vae_pyro.progress.time.monotonic", lambda: now[0])
    with progress.show_progress("training", 100, make_console(), job="d=2") as report:
        report(0, "")
        for done in range(1, 101):
            now[0] += 4
            report(done, "ELBO -1")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "d=2: training 3/100  ELBO -1  6.5 min left",
        "d=2: training 20/100  ELBO -1  5.3 min left",
    ]
    assert lines[-1] == "d=2: training 100/100  ELBO -1"
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("before", "first", "fifth"),
    [
        (0, ["3/3,280  3.6 h", "153/3,280  3.5 h", "303/3,280  3.3 h"], "656/3,280  2.9 h"),
        (700, ["703/3,280  2.9 h", "853/3,280  2.7 h", "1,003/3,280  2.5 h"], "1,312/3,280  2.2 h"),
    ],
)
def test_a_long_task_is_not_silent_for_long(
    before: int,
    first: list[str],
    fifth: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """3,280 steps of 4 seconds: a fifth takes 44 minutes, so a line every ten minutes.

    Resumed after 700, the time left is by the steps since then.
    """
    now = [0.0]
    monkeypatch.setattr("vae_pyro.progress.time.monotonic", lambda: now[0])
    with progress.show_progress("training", 3280, make_console()) as report:
        report(before, "")
        for done in range(before + 1, 3281):
            now[0] += 4
            report(done, "")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [f"training {line} left" for line in first]
    assert f"training {fifth} left" in lines
    assert lines[-1] == "training 3,280/3,280"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59, "59 s"), (90, "1.5 min"), (1800, "30 min"), (5400, "1.5 h")],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert progress.duration_in_words(seconds) == words
