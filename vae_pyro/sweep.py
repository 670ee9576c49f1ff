"""A sweep from outside its jobs: a parent run before the first, a table after the last.

Hydra loads this module at every start, ``--help`` included, so heavy imports wait inside.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from vae_pyro.results import JobResult
    from vae_pyro.tracking import Run
    from vae_pyro.visualization import Panel


class SweepCallback(Callback):
    """Prepares the tracking store before any job starts, and sums up when all have ended.

    Jobs find their parent through a file in the sweep's folder, which every launcher shares.
    """

    def __init__(self) -> None:
        self._run: Run | None = None
        self._folder = Path()
        self._start = time.time()

    def __getstate__(self) -> dict[str, Any]:
        """Launchers send callbacks along to other processes, where the open run has no use."""
        return {**vars(self), "_run": None}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Open the parent run; a store that cannot be used ends the sweep here."""
        with _failing_loudly():
            self._open(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Record table and chart, and end with status 1 where a job failed."""
        with _failing_loudly():
            results = self._results()
            try:
                self._report(results)
            except Exception:
                if self._run is not None:
                    self._run.end("FAILED")
                    self._run = None
                raise
            self._close(results)

    def _open(self, config: DictConfig) -> None:
        from vae_pyro.app import PARENT_FILE
        from vae_pyro.config import build, without_passwords
        from vae_pyro.tracking import Tracker

        self._folder = Path(config.hydra.sweep.dir)
        overrides = " ".join(map(without_passwords, config.hydra.overrides.task))
        options = OmegaConf.to_container(config.tracking, resolve=True)
        assert isinstance(options, dict)
        tracker = build({str(k): v for k, v in options.items()}, Tracker, "tracking")
        self._run = tracker.start_run(f"sweep {overrides}", {"sweep": "parent"})
        # Hydra has no hook for a sweep that it refuses or that is interrupted.
        atexit.register(self._abandon)
        self._run.log_params({"sweep": overrides})
        if self._run.run_id is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / PARENT_FILE).write_text(self._run.run_id)

    def _report(self, results: list[JobResult]) -> None:
        from vae_pyro.app import make_console
        from vae_pyro.files import write_atomically
        from vae_pyro.results import print_summary, summary_csv, summary_markdown

        finished = [result for result in results if result.error is None]
        if not finished or self._run is None:
            return
        summary = self._folder / "summary.csv"
        write_atomically(summary, summary_csv(results).encode())
        self._run.log_file(summary, "sweep")
        self._run.log_file(self._draw(finished), "sweep")
        self._run.describe(summary_markdown(results))
        console = make_console()
        print_summary(results, console)
        console.print(f"table and chart: {self._folder}", highlight=False, soft_wrap=True)

    def _close(self, results: list[JobResult]) -> None:
        from vae_pyro.app import fail

        failed = [result for result in results if result.error is not None]
        if self._run is not None:
            self._run.end("FINISHED" if results and not failed else "FAILED")
            self._run = None
        if not results:
            fail(f"no job left a result in {self._folder}")
            sys.exit(1)
        if failed:
            lines = [f"  {result.name}: {result.error}" for result in failed]
            fail(f"{len(failed)} of {len(results)} jobs failed\n" + "\n".join(lines))
            sys.exit(1)

    def _results(self) -> list[JobResult]:
        from vae_pyro.app import split_overrides
        from vae_pyro.config import without_passwords
        from vae_pyro.results import RESULT_FILE, JobResult

        results = []
        for job in self._job_folders():
            if self._is_of_this_sweep(job / RESULT_FILE):
                results.append(JobResult.read(job))
            else:  # killed: it could not even say that it failed
                typed = OmegaConf.load(job / ".hydra" / "overrides.yaml")
                overrides = [without_passwords(str(override)) for override in typed]
                error = "ended without a result"
                settings = dict(split_overrides(overrides))
                results.append(JobResult(", ".join(overrides), settings, error=error))
        return results

    def _job_folders(self) -> list[Path]:
        from vae_pyro.results import RESULT_FILE

        started = filter(self._is_of_this_sweep, self._folder.glob("**/.hydra/overrides.yaml"))
        ended = filter(self._is_of_this_sweep, self._folder.glob(f"**/{RESULT_FILE}"))
        folders = {path.parent.parent for path in started} | {path.parent for path in ended}
        return sorted(folders, key=lambda job: (len(job.name), job.name))

    def _is_of_this_sweep(self, path: Path) -> bool:
        """Whether a file is newer than this sweep, whose folder may hold an older one's jobs."""
        return path.is_file() and path.stat().st_mtime >= self._start - 1

    def _draw(self, results: list[JobResult]) -> Path:
        from vae_pyro.results import groups, summary_notes
        from vae_pyro.visualization import sweep_figure

        panels = [_panel(group, results) for group in groups(results)]
        figure = sweep_figure(panels, summary_notes(results)[1:])  # the axes say the first
        path = self._folder / "elbo_vs_iwae.png"
        figure.savefig(path)
        return path

    def _abandon(self) -> None:
        if self._run is None:
            return
        if self._job_folders():
            self._run.end("KILLED")
        else:
            self._run.discard()


def _panel(group: list[JobResult], results: list[JobResult]) -> Panel:
    """The bounds of the jobs that share one kind of x."""
    from vae_pyro.results import (
        bound_label,
        bound_names,
        setting,
        shared_settings,
        varying_settings,
    )
    from vae_pyro.visualization import Panel

    keys = varying_settings(group)
    ordered = keys == ["latent_dim"]
    group = sorted(
        group,
        key=lambda result: (result.latent_dim or 0) if ordered else -result.nats("test/log_px"),
    )
    return Panel(
        title=", ".join(filter(None, [group[0].x, shared_settings(group, results)])),
        labels=[
            ", ".join(setting(result, key) for key in keys) + " (≥)" * result.is_bound
            for result in group
        ],
        axis=", ".join(keys),
        ordered=ordered,
        series={
            bound_label(name): [
                (result.nats(name), result.metrics[f"{name}_std_error"])
                if name in result.metrics
                else (math.nan, math.nan)
                for result in group
            ]
            for name in bound_names(group)
        },
    )


@contextmanager
def _failing_loudly() -> Iterator[None]:
    """End the program with one message; Hydra would turn an exception here into a warning."""
    try:
        yield
    except Exception as error:
        from vae_pyro.app import explain, fail

        fail(explain(error))
        sys.exit(1)
