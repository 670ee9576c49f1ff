"""Run ``run.py`` again and again, each time killed at a random moment, until it ends by itself.

A process that has everything imported forks for every attempt, so that most of an attempt is work.
Prints one JSON object: how often it was killed, and the last attempt's exit status.

The longest that an attempt may take grows with every kill, so that it does come to an end.

    python tests/storm.py <seed> <overrides of run.py ...>
"""

import json
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
import sklearn.datasets  # noqa: F401

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import vae_pyro.cli.app  # noqa: E402, F401
from tests.forkserver import RecorderForked  # noqa: E402

subprocess.Popen = RecorderForked  # type: ignore[misc]


def attempt(overrides: list[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    with open("output.txt", "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.argv = [str(ROOT / "run.py"), *overrides]
    status = 1
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    seed, *overrides = sys.argv[1:]
    chance = random.Random(int(seed))
    kills = 0
    while True:
        pid = attempt(overrides)
        start = time.monotonic()
        end = start + chance.uniform(0.2, 1.0 + 0.2 * kills)
        status = None
        while status is None and time.monotonic() < end:
            time.sleep(0.01)
            found, code = os.waitpid(pid, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if found else None
        if status is not None:
            break
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        kills += 1
    sys.stdout.write(json.dumps({"kills": kills, "status": status}))


if __name__ == "__main__":
    main()
