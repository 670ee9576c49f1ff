"""A run's outbox: nothing twice, nothing lost, in order, whatever the store does meanwhile."""

import json
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient

from tests.test_tracking import free_port
from vae_pyro.errors import TrackingError, UserError
from vae_pyro.tracking import MLflow, NoTracking, OutboxRun, SilentRun, deliver_rest, open_run
from vae_pyro.tracking.outbox import JOURNAL, read_journal

PICTURE = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture(autouse=True)
def _a_slow_machine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that gives up on a store that only stalls leaves a thread that still delivers."""
    monkeypatch.setattr("vae_pyro.tracking.outbox.delivery._PATIENCE", 300.0)


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What is logged for the user, whichever thread does it."""
    messages: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("vae_pyro"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


def begin(folder: Path, uri: str, **how: Any) -> OutboxRun:
    record = OutboxRun(folder, MLflow(uri).apart())
    record.start("a job", {"fingerprint": "abc"}, **({"must_respond": True} | how))
    return record


def say(record: OutboxRun, steps: range) -> None:
    """What a job says; a resumed one says some of it again, at another time."""
    record.log_params({"seed": 0})
    for step in steps:
        record.log_metrics({"train/elbo": -1.0 * step, "valid/kl": 2.0}, step)
        record.log_image("samples", PICTURE, step)


def held(uri: str, record: OutboxRun) -> tuple[list[tuple[int, float]], int, dict[str, str], str]:
    client = MlflowClient(uri)
    run = client.get_run(record.run_id)
    points = client.get_metric_history(record.run_id, "train/elbo")
    images = [file.path for file in client.list_artifacts(record.run_id, "images")]
    return [(p.step, p.value) for p in points], len(images), run.data.params, run.info.status


def complete(steps: int) -> tuple[list[tuple[int, float]], int, dict[str, str], str]:
    history = [(step, -1.0 * step) for step in range(1, steps + 1)]
    return history, 2 * steps, {"seed": "0"}, "FINISHED"


def test_what_is_said_again_is_recorded_once(tmp_path: Path, uri: str) -> None:
    first = begin(tmp_path / "record", uri)
    say(first, range(1, 4))
    first.close()
    resumed = begin(tmp_path / "record", uri)
    assert resumed.run_id == first.run_id
    assert MlflowClient(uri).get_run(first.run_id).info.status == "RUNNING"
    say(resumed, range(2, 6))
    resumed.end("FINISHED")
    resumed.close()
    assert held(uri, resumed) == complete(5)


@pytest.mark.parametrize("delivered", [None, "1 x", "3 x", "garbage"])
def test_what_is_delivered_again_is_there_once(
    delivered: str | None, tmp_path: Path, uri: str
) -> None:
    """As after a loss of power: the count of what was delivered is gone, or is an older one."""
    first = begin(tmp_path / "record", uri)
    say(first, range(1, 4))
    first.close()
    if delivered is None:
        (tmp_path / "record/delivered").unlink()
    else:
        (tmp_path / "record/delivered").write_text(delivered)
    again = begin(tmp_path / "record", uri)
    say(again, range(3, 5))
    again.end("FINISHED")
    again.close()
    assert again.run_id == first.run_id
    assert held(uri, again) == complete(4)


def test_a_store_that_was_lost_is_filled_again(tmp_path: Path, uri: str) -> None:
    first = begin(tmp_path / "record", uri)
    say(first, range(1, 4))
    first.close()
    new = f"sqlite:///{tmp_path}/new.db"  # as if the first were gone
    again = begin(tmp_path / "record", new)
    say(again, range(3, 5))
    again.end("FINISHED")
    again.close()
    assert held(new, again) == complete(4)


def test_a_locked_database_is_waited_for(tmp_path: Path, uri: str, told: list[str]) -> None:
    record = begin(tmp_path / "record", uri)
    blocker = sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)
    blocker.execute("BEGIN EXCLUSIVE")
    start = time.monotonic()
    say(record, range(1, 3))
    assert time.monotonic() - start < 2  # whoever records does not wait
    while not told:
        assert time.monotonic() - start < 60
        record.describe("still locked")
        time.sleep(0.5)
    assert "cannot take records for now (the database is locked by another process)" in told[0]
    assert record.undelivered > 0
    blocker.execute("ROLLBACK")
    record.end("FINISHED")
    record.close()
    assert told[1] == "the tracking store responds again, and has every record"
    assert len(told) == 2
    assert held(uri, record) == complete(2)


def test_metrics_that_wait_go_in_one_call_and_only_the_refused_are_left_out(
    tmp_path: Path, uri: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = begin(tmp_path / "record", f"http://127.0.0.1:{free_port()}", must_respond=False)
    for step in range(1, 301):
        record.log_metrics({"train/elbo": -1.0 * step, "valid/kl": 2.0}, step)
        if step in (150, 160):
            record.log_metrics({"no {name}": 1.0}, step)
    record.close()
    told.clear()  # the store was away
    sizes = []
    log_batch = MlflowClient.log_batch

    def counted(client: MlflowClient, run_id: str, metrics: Any = (), **more: Any) -> None:
        sizes.append(len(metrics))
        log_batch(client, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    later = OutboxRun(tmp_path / "record", MLflow(uri))
    later.deliver()
    history = MlflowClient(uri).get_metric_history(later.run_id, "train/elbo")
    assert [(p.step, p.value) for p in history] == [(step, -step) for step in range(1, 301)]
    assert later.undelivered == 0
    assert sizes[0] == 200  # of 100 steps
    assert ["is left out" in line for line in told] == [True, True]


def test_one_bad_picture_does_not_hold_up_the_rest(
    tmp_path: Path, uri: str, told: list[str]
) -> None:
    record = begin(tmp_path / "record", f"http://127.0.0.1:{free_port()}", must_respond=False)
    say(record, range(1, 4))
    record.close()
    (tmp_path / "record/samples-000002.png").write_bytes(b"torn")
    told.clear()  # the store was away
    later = OutboxRun(tmp_path / "record", MLflow(uri))
    later.deliver()
    later = OutboxRun(tmp_path / "record", MLflow(uri))
    later.end("FINISHED")
    later.close()
    history, _, params, _ = complete(3)
    assert held(uri, later) == (history, 4, params, "FINISHED")
    assert "is left out: cannot identify image file" in told[0]


def test_a_resumed_job_moves_to_its_new_parent(tmp_path: Path, uri: str) -> None:
    first = begin(tmp_path / "record", uri, parent="a")
    first.close()
    again = begin(tmp_path / "record", uri, parent="b")
    again.close()
    assert again.run_id == first.run_id
    deliver_rest(MLflow(uri), tmp_path / "record", "c")
    tags = MlflowClient(uri).get_run(first.run_id).data.tags
    assert tags["mlflow.parentRunId"] == "c"


def test_in_a_sweep_a_job_starts_without_the_store(
    tmp_path: Path, uri: str, told: list[str]
) -> None:
    away = f"http://127.0.0.1:{free_port()}"
    record = begin(tmp_path / "record", away, must_respond=False)
    say(record, range(1, 3))
    record.end("FINISHED")
    record.close()
    assert record.undelivered == len(read_journal(tmp_path / "record"))
    assert "python -m vae_pyro.cli.deliver" in told[-1]
    later = OutboxRun(tmp_path / "record", MLflow(uri))
    later.deliver()
    assert later.undelivered == 0
    assert held(uri, later) == complete(2)


def test_alone_it_does_not_and_leaves_nothing(tmp_path: Path, told: list[str]) -> None:
    with pytest.raises(TrackingError, match="no server responds"):
        begin(tmp_path / "record", f"http://127.0.0.1:{free_port()}")
    assert read_journal(tmp_path / "record") == []
    assert told == []  # an error, and no note that the records are kept


@pytest.mark.parametrize("path", ["vae_pyro.tracking.store.MLflow", "vae_pyro.tracking.MLflow"])
def test_an_outbox_of_another_version_is_continued(path: str, tmp_path: Path, uri: str) -> None:
    """Its journal names the class by the module of that time; the store is the same."""
    first = begin(tmp_path / "record", uri)
    say(first, range(1, 4))
    first.close()
    journal = tmp_path / "record" / JOURNAL
    now = "vae_pyro.tracking.mlflow_store.MLflow"
    assert journal.read_text().count(now) == 1
    journal.write_text(journal.read_text().replace(now, path))
    again = OutboxRun(tmp_path / "record", MLflow(uri))
    again.address(None)
    assert again.undelivered == 0
    assert again.run_id == first.run_id
    elsewhere = OutboxRun(tmp_path / "record", MLflow(f"sqlite:///{tmp_path}/other.db"))
    elsewhere.address(None)
    assert elsewhere.undelivered == len(read_journal(tmp_path / "record"))


def test_a_torn_last_line_is_cut_off(tmp_path: Path, uri: str) -> None:
    record = begin(tmp_path / "record", uri)
    say(record, range(1, 3))
    record.close()
    path = tmp_path / "record" / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op": "metrics", "met')
    again = begin(tmp_path / "record", uri)
    assert path.read_bytes().startswith(whole + b'{"op": "end"')
    again.end("FINISHED")
    again.close()
    assert held(uri, again) == complete(2)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_journal_is_an_error_in_words(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "record"
    folder.mkdir(exist_ok=True)
    lines = [
        {"op": "start", "name": "n", "tags": {"record": "1"}, "parent": None, "tracker": {}},
        {"op": "metrics", "metrics": {"a": 1.0}, "step": 1, "at": 0.0},
        {"op": "end", "status": "FINISHED"},
    ]
    content = bytearray("".join(json.dumps(line) + "\n" for line in lines).encode())
    if data.draw(st.booleans()):
        content = bytearray(data.draw(st.binary(max_size=100)))
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (folder / JOURNAL).write_bytes(content)
    try:
        entries = read_journal(folder)
    except UserError as error:
        assert "is damaged in line" in str(error)
    else:
        assert len(entries) <= 3


def test_nothing_is_written_where_nothing_is_tracked(tmp_path: Path) -> None:
    run = open_run(NoTracking(), tmp_path / "record", "job", {}, must_respond=True)
    assert isinstance(run, SilentRun)
    assert not (tmp_path / "record").exists()


def test_a_run_that_has_finished_is_not_killed(tmp_path: Path, uri: str) -> None:
    """A signal that comes between the last record and the end of the process."""
    record = begin(tmp_path / "record", uri)
    say(record, range(1, 3))
    record.end("FINISHED")
    record.end("KILLED")
    record.close()
    assert held(uri, record) == complete(2)
