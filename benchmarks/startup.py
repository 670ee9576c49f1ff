"""What a user waits for besides the work: ``--help``, first step, tracking, jobs of a sweep."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from benchmarks.contest import ROOT, write

ROUNDS = 3
ONE_STEP = ("training.epochs=1", "training.batch_size=2000", "training.compile=false")
SHORT_JOB = ("training.epochs=20", "training.compile=false")


def program(*arguments: str, until: str | None = None) -> Callable[[], float]:
    """Run ``run.py`` in a new folder; time it to its end, or until it prints ``until``."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "run.py"), *arguments]
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            assert process.stdout is not None
            seconds = 0.0
            lines = []
            for line in process.stdout:
                lines.append(line)
                if not seconds and until is not None and until in line:
                    seconds = time.perf_counter() - start
            if process.wait() != 0 or (until and not seconds):
                raise RuntimeError(f"{' '.join(command)}:\n{''.join(lines)}")
            return seconds or time.perf_counter() - start

    return run


def main() -> None:
    sweep = ("latent_dim=2,10,20", *SHORT_JOB)
    units = {
        "`--help`": program("--help"),
        "to the end of the first training step, digits": program(
            *ONE_STEP, "tracking=none", until="training 1/1"
        ),
        "20 epochs of digits, `tracking=none`": program(*SHORT_JOB, "tracking=none"),
        "the same, recorded in MLflow": program(*SHORT_JOB),
        "3 such jobs as a sweep, serial": program(*sweep, "-m"),
        "3 such jobs as a sweep, `hydra/launcher=joblib`": program(
            *sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "-m"
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in units}
    for _ in range(ROUNDS):
        for name, run in units.items():
            seconds[name].append(run())
            print(f"  {name:50} {seconds[name][-1]:8.3f} s", flush=True)
    rows = [[name, f"{statistics.median(times):.2f}"] for name, times in seconds.items()]
    write("startup", {"seconds": seconds}, [["", "seconds"], *rows])
