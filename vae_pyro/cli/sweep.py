"""A sweep from outside its jobs: a parent run before the first, a table after the last.

Hydra loads this module at every start, ``--help`` included, so heavy imports wait inside.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from vae_pyro.cli import startup
from vae_pyro.cli.slurm import is_restart
from vae_pyro.credentials import refuse_credentials
from vae_pyro.interruption import hasten, leave_if_told
from vae_pyro.runs.manifest import (
    JOB_FILE,
    StartedJob,
    Sweep,
    is_same_command,
    last_started,
    relevant_overrides,
    task_overrides,
)

if TYPE_CHECKING:
    from vae_pyro.reporting.results import JobResult
    from vae_pyro.tracking import Run, Status

logger = logging.getLogger(__name__)

_GRACE = 10.0  # seconds for jobs to leave a checkpoint
# What a sweep leaves in its folder.
_FILES = ("summary.csv", "runs.csv", "comparison.csv", "elbo_vs_iwae.png", "report.html")


class SweepCallback(Callback):
    """Prepares the tracking store before any job starts, and makes table and chart after the last.

    With ``resume``, it directs Hydra to the folder of the last run of the same command.
    Jobs find their parent through a file in the sweep's folder, which every launcher shares.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._folder = Path()
        self._token = ""
        self._overrides: list[str] = []
        self._claim: IO[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Launchers send callbacks along to other processes, where the open run has no use."""
        return {**vars(self), "_run": None, "_claim": None}

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """A single job goes where the same command last went, if it is to be resumed."""
        with _failing_loudly():
            _prepare(config, StartedJob, "run")

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent run; a store that cannot be used ends the sweep here."""
        with _failing_loudly(), startup.importing():
            self._folder = _prepare(config, Sweep, "sweep")
            self._open(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Record table and chart, and end with status 1 where a job failed."""
        with _failing_loudly():
            results = self._results()
            try:
                self._report(results)
            except Exception:
                self._end("FAILED")
                raise
            self._close(results)

    def _open(self, config: DictConfig) -> None:
        from vae_pyro.cli.app import split_overrides
        from vae_pyro.config import build
        from vae_pyro.reporting.naming import sweep_name
        from vae_pyro.runs.folder import claim, set_aside
        from vae_pyro.tracking import RECORD_FOLDER, Tracker, open_run

        overrides = self._overrides = task_overrides(config.hydra.overrides.task)
        earlier = Sweep.read(self._folder) if _is_resumed(config) else None
        if earlier is not None and not is_same_command(earlier.overrides, overrides):
            earlier = None
        self._claim = claim(self._folder)
        self._token = earlier.token if earlier else uuid.uuid4().hex
        record = self._folder / RECORD_FOLDER
        if earlier is None:  # another sweep may have used this folder before
            set_aside(self._folder, (*_FILES, RECORD_FOLDER))
        # Before the run is opened: killed in between, the next start continues this one.
        Sweep(overrides, self._token, earlier.parent if earlier else None).write(self._folder)
        options = OmegaConf.to_container(config.tracking, resolve=True)
        assert isinstance(options, dict)
        tracker = build({str(k): v for k, v in options.items()}, Tracker, "tracking")
        relevant = relevant_overrides(overrides)
        name = config.name or sweep_name(split_overrides(relevant))
        self._run = open_run(tracker, record, name, {"sweep": "parent"}, must_respond=True)
        # Hydra has no hook for a sweep that it refuses or that is interrupted.
        atexit.register(self._abandon)
        signal.signal(signal.SIGTERM, _end_with_children)
        self._run.log_params({"sweep": " ".join(relevant)})
        Sweep(overrides, self._token, self._run.run_id).write(self._folder)

    def _report(self, results: list[JobResult]) -> None:
        from vae_pyro.cli.app import split_overrides
        from vae_pyro.cli.console import make_console
        from vae_pyro.files import write_atomically
        from vae_pyro.reporting.configurations import grouped
        from vae_pyro.reporting.html_report import html_report
        from vae_pyro.reporting.naming import sweep_name
        from vae_pyro.reporting.sweep_data import (
            comparison_csv,
            runs_csv,
            summary_csv,
            sweep_metrics,
        )
        from vae_pyro.reporting.sweeps import print_sweep, sweep_chart, sweep_description

        if self._run is None or all(result.error is not None for result in results):
            return
        groups = grouped(results)
        tables = (summary_csv(groups), runs_csv(groups), comparison_csv(groups))
        command = Sweep(self._overrides, self._token).command
        name = sweep_name(split_overrides(relevant_overrides(self._overrides)))
        page = html_report(groups, name, command).encode()
        contents = (*(table.encode() for table in tables), sweep_chart(groups), page)
        for name, content in zip(_FILES, contents, strict=True):
            write_atomically(self._folder / name, content)
            self._run.log_file(self._folder / name, "sweep")
        for metrics, step in sweep_metrics(groups):
            self._run.log_metrics(metrics, step)
        self._run.describe(sweep_description(groups, command))
        console = make_console()
        print_sweep(groups, console)
        console.print(f"report, tables and chart: {self._folder}", highlight=False, soft_wrap=True)

    def _close(self, results: list[JobResult]) -> None:
        from vae_pyro.cli.console import fail

        failed = [result for result in results if result.error is not None]
        self._end("FINISHED" if results and not failed else "FAILED")
        if not results:
            fail(f"no job left a result in {self._folder}")
            sys.exit(1)
        if failed:
            lines = [f"  {result.name}: {result.error}" for result in failed]
            fail(f"{len(failed)} of {len(results)} jobs failed\n" + "\n".join(lines))
            sys.exit(1)

    def _end(self, status: Status) -> None:
        run, self._run = self._run, None
        if run is not None:
            run.end(status)
            run.close()

    def _results(self) -> list[JobResult]:
        from vae_pyro.cli.app import split_overrides
        from vae_pyro.reporting.results import JobResult

        results = []
        for job, started in self._jobs().items():
            result = JobResult.read(job)
            if started.error is not None or result is None or result.sweep != self._token:
                chosen = relevant_overrides(started.overrides)
                settings = dict(split_overrides(chosen))
                # A job that was killed could not write why.
                error = started.error or "ended without a result; resume=true continues it"
                result = JobResult(", ".join(chosen), settings, error=error)
            results.append(result)
        return results

    def _jobs(self) -> dict[Path, StartedJob]:
        """The folders of this sweep's jobs, whichever process of it they were started by."""
        found = {
            path.parent: StartedJob.read(path.parent)
            for path in self._folder.glob(f"**/{JOB_FILE}")
        }
        mine = {job: s for job, s in found.items() if s is not None and s.sweep == self._token}
        return dict(sorted(mine.items(), key=lambda item: (len(item[0].name), item[0].name)))

    def _abandon(self) -> None:
        if self._run is not None:
            hasten()
            if self._jobs():
                self._end("KILLED")
            else:
                self._run.discard()
        leave_if_told()


def _prepare(config: DictConfig, kind: type[Sweep] | type[StartedJob], mode: str) -> Path:
    """The folder that Hydra will use, created if missing; with ``resume`` that of the last time.

    Raises:
        StorageError: where it cannot be written.
    """
    from vae_pyro.cli.console import make_console, print_notes
    from vae_pyro.files import make_folder

    print_notes(make_console())
    startup.begin_tracking(OmegaConf.select(config, "tracking._target_"))
    uri = OmegaConf.select(config, "tracking.uri", default="")
    swept = OmegaConf.select(config, "hydra.sweeper.params", default=None) or {}
    refuse_credentials(
        [
            *config.hydra.overrides.task,
            f"tracking.uri={uri}",
            *(f"{k}={v}" for k, v in swept.items()),
        ]
    )
    key = f"hydra.{mode}.dir"
    chosen = Path(OmegaConf.select(config, key))
    folder = chosen
    if not any(str(o).startswith(f"{key}=") for o in config.hydra.overrides.hydra):
        earlier = None
        if _is_resumed(config):
            earlier = last_started(kind, task_overrides(config.hydra.overrides.task), chosen)
            if earlier:
                logger.info("resumed in %s", earlier)
            else:
                logger.warning(
                    "nothing to resume: no such command has left anything beside %s", chosen
                )
        number = 1
        while earlier is None and folder.exists():  # of a command of the same second
            number += 1
            folder = chosen.with_name(f"{chosen.name}-{number}")
        folder = earlier or folder
    if folder != chosen:
        with read_write(config.hydra):
            OmegaConf.update(config, key, str(folder))
            config.hydra.overrides.hydra.append(f"{key}={folder}")  # read anew for every job
    make_folder(folder)
    return folder


def _is_resumed(config: DictConfig) -> bool:
    return config.resume is True or is_restart()


def _end_with_children(signum: int, _frame: Any) -> None:
    """SIGTERM ends a sweep as Ctrl-C does, including its jobs in other processes."""
    hasten(signum)
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    deadline = time.monotonic() + _GRACE
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
    sys.exit(128 + signum)


@contextmanager
def _failing_loudly() -> Iterator[None]:
    """End the program with one message; Hydra would turn an exception here into a warning."""
    try:
        yield
    except Exception as error:
        from vae_pyro.cli.console import explain, fail

        fail(explain(error))
        sys.exit(1)
