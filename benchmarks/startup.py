"""What a user waits for besides the work: ``--help``, first step, tracking, jobs of a sweep."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from benchmarks.contest import ROOT, write

ROUNDS = 3
ONE_STEP = ("training.epochs=1", "training.batch_size=2000", "training.compile=false")
SHORT_JOB = ("training.epochs=20", "training.compile=false")


def program(
    *arguments: str, script: str = "run.py", until: str | None = None, **environment: str
) -> Callable[[], float]:
    """Run a script in a new folder; time it to its end, or until it prints ``until``."""

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / script), *arguments]
            start = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
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


def first_step(graphs: str) -> float:
    """Seconds of the first compiled training step of a process over those of an uncompiled one."""
    code = """
import time, torch, vae_pyro as vp
from vae_pyro.training.svi import graph_of
vae = vp.build_vae(10, (1, 8, 8), likelihood=vp.likelihoods.Bernoulli(17))
x, loss = vae.sample(64, seed=0), vp.objectives.ELBO().estimator()
times = []
for step in (lambda: loss.loss_and_grads(vae.model, vae.guide, x),
             lambda: graph_of(vae, loss, x)(x)):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
print(times[1] - times[0])
"""
    environment = {**os.environ, "VAE_PYRO_GRAPHS": graphs}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    )
    return float(done.stdout)


def measured(units: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in units}
    for _ in range(rounds):
        for name, run in units.items():
            seconds[name].append(run())
            print(f"  {name:66} {seconds[name][-1]:8.3f} s", flush=True)
    return seconds


def main() -> None:
    sweep = ("latent_dim=2,10,20", "-m")
    short = {
        "`--help`": program("--help"),
        "to the end of the first training step, digits": program(
            *ONE_STEP, "tracking=none", until="training 1/1"
        ),
        "20 epochs of digits, `tracking=none`": program(*SHORT_JOB, "tracking=none"),
        "the same, recorded in MLflow": program(*SHORT_JOB),
        "3 such jobs as a sweep, serial": program(*SHORT_JOB, *sweep),
        "3 such jobs as a sweep, `hydra/launcher=joblib`": program(
            *SHORT_JOB, *sweep, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
        ),
    }
    seconds = measured(short, ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of an earlier run: no graph, and no header that a compiler has prepared.
        kept = {"VAE_PYRO_GRAPHS": f"{folder}/graphs", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/code"}
        whole = {
            "`latent_dim=2,10,20 -m`, no graph on disk": program(*sweep, **kept),
            "the same again": program(*sweep, **kept),
            "the same, `hydra/launcher=joblib`": program(*sweep, "hydra/launcher=joblib", **kept),
            "one default job, its graphs on disk": program(**kept),
        }
        if find_spec("numpyro") is not None:
            paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            whole["the same three models, by a script in NumPyro"] = program(
                "pictures", script="benchmarks/peers/numpyro_sweep.py", PYTHONPATH=paths
            )
        seconds |= measured(whole, 1)
        first_step(kept["VAE_PYRO_GRAPHS"])  # makes the graph
        name = "the first compiled step of a process over an uncompiled one, its graph on disk"
        seconds |= measured({name: lambda: first_step(kept["VAE_PYRO_GRAPHS"])}, ROUNDS)
    rows = [[name, f"{statistics.median(times):.2f}"] for name, times in seconds.items()]
    write("startup", {"seconds": seconds}, [["", "seconds"], *rows])
