"""Time and memory by batch size, latent dimension, width, samples per image and images.

Every point runs in its own process, so that its peak of memory is its own.
"""

import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from benchmarks.contest import ROOT, device, write

TRAINING: dict[str, list[dict[str, int]]] = {
    "batch size": [{"batch_size": n} for n in (64, 256, 1024, 4096)],
    "latent size": [{"latent_dim": n} for n in (2, 10, 50, 200)],
    "width": [{"width": n} for n in (200, 400, 1000)],
}
EVALUATING: dict[str, list[dict[str, int]]] = {
    "K, for 1,000 images": [{"num_samples": k} for k in (50, 500, 5000)],
    "images, at K = 50": [{"num_images": n, "num_samples": 50} for n in (100, 1000, 10_000)],
}


def train_point(
    batch_size: int = workload.BATCH_SIZE,
    latent_dim: int = workload.LATENT_DIM,
    width: int = workload.WIDTH,
) -> dict[str, float]:
    from benchmarks.training import records

    data = workload.load(device())
    vae = workload.build(data.images.device, latent_dim, width)
    before = start_peak()
    epochs = list(islice(records(data, vae, compiled=True, batch_size=batch_size), 4))
    seconds = sorted(epoch.seconds for epoch in epochs[1:])[1]
    return {"seconds": seconds, "extra MB": peak_mb() - before}


def evaluate_point(num_samples: int, num_images: int = 1000) -> dict[str, float]:
    from vae_pyro.compilation import accelerated
    from vae_pyro.log_marginal import ImportanceSampling

    data = workload.load(device())
    vae = workload.build(data.images.device).eval()
    x = data.test_x[:num_images]
    with accelerated(x.device, mode=True):
        before = start_peak()
        ImportanceSampling(num_samples)(vae, x)  # compiles
        start = time.perf_counter()
        ImportanceSampling(num_samples)(vae, x)
        return {"seconds": time.perf_counter() - start, "extra MB": peak_mb() - before}


def start_peak() -> float:
    """Reset the peak of memory; returns the memory in use now."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """The peak of memory since then, in MB; of the GPU where there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure(kind: str, point: dict[str, int]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.scaling", kind, json.dumps(point)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    numbers: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"  {kind} {point}: {numbers}", flush=True)
    return numbers


def main() -> None:
    results: list[dict[str, Any]] = []
    table = [["", "", "seconds", "extra memory, MB"]]
    for kind, series in (("train", TRAINING), ("evaluate", EVALUATING)):
        for label, points in series.items():
            for point in points:
                numbers = measure(kind, point)
                results.append({"kind": kind, "point": point, **numbers})
                work = "an epoch" if kind == "train" else "importance sampling"
                value = next(iter(point.values()))
                table.append(
                    [
                        f"{work}: {label}",
                        f"{value:,}",
                        f"{numbers['seconds']:.2f}",
                        f"{numbers['extra MB']:.0f}",
                    ]
                )
    write("scaling", {"points": results}, table)


if __name__ == "__main__":
    run = train_point if sys.argv[1] == "train" else evaluate_point
    print(json.dumps(run(**json.loads(sys.argv[2]))))
