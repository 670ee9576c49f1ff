"""Runs contestants that do equal work in turns, and writes down their times."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from vae_pyro.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

Unit = Callable[[], float]
"""Does one unit of work, and returns a number that identifies its result."""


@dataclass(frozen=True)
class Times:
    """The times of one contestant.

    Attributes:
        seconds: of each round.
        values: the number that each round returned, warm-up rounds included.
    """

    seconds: Sequence[float]
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Contestant:
    """A program that does the work; it is built in a process of its own.

    Attributes:
        build: a module's function that returns the unit of work.
        options: its keyword arguments.
    """

    build: Callable[..., Unit]
    options: Mapping[str, Any] = field(default_factory=dict)


def contest(
    contestants: Mapping[str, Contestant], rounds: int, warm_up: int = 1
) -> tuple[dict[str, Times], dict[str, str]]:
    """Time every contestant once per round, in turns, so that a slow minute affects all of them.

    Each has its own process and waits while others work, so that they share no thread pool,
    allocator or precision setting.

    Args:
        contestants: by name.
        rounds: number of rounds that are timed.
        warm_up: number of rounds before them (compiling, caches); only their values are kept.

    Returns:
        the times by contestant; and for each contestant that lacks a package, which one.

    Raises:
        UserError: if the work cannot be done at all, for example because its data are missing.
    """
    context = multiprocessing.get_context("spawn")
    seconds: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    skipped: dict[str, str] = {}
    lines: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, contestant in contestants.items():
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(contestant, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(mine.close)  # ends it
            problem = mine.recv()
            if isinstance(problem, UserError):
                raise problem
            if problem is not None:
                skipped[name] = f"{problem}; pip install -e '.[bench]'"
                print(f"  skipped: {name} ({skipped[name]})", flush=True)
            else:
                lines[name], seconds[name], values[name] = mine, [], []
        for number in range(-warm_up, rounds):
            for name, line in lines.items():
                line.send("go")
                elapsed, value = line.recv()
                values[name].append(value)
                if number >= 0:
                    seconds[name].append(elapsed)
                    print(f"  {name:28} {elapsed:8.3f} s  {value:.3f}", flush=True)
    return {name: Times(seconds[name], values[name]) for name in lines}, skipped


def _work(contestant: Contestant, line: Any) -> None:
    try:
        unit = contestant.build(**contestant.options)
    except (ImportError, UserError) as error:
        line.send(error)
        return
    line.send(None)
    with suppress(EOFError):
        while line.recv():
            start = time.perf_counter()
            value = unit()
            line.send((time.perf_counter() - start, value))


def ratio(times: Mapping[str, Times], slow: str, fast: str) -> float:
    """Time of ``slow`` / time of ``fast``: the median over rounds of the ratio within a round."""
    pairs = zip(times[slow].seconds, times[fast].seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)


def plain(times: Mapping[str, Times], ours: str) -> dict[str, Any]:
    """The times as plain numbers, for JSON."""
    return {
        name: {
            "seconds": list(t.seconds),
            "values": list(t.values),
            "ratio to ours": ratio(times, name, ours),
        }
        for name, t in times.items()
    }


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine() -> dict[str, Any]:
    """The hardware and versions that the times depend on."""
    names = ("torch", "pyro-ppl", "mlflow", "jax", "numpyro")
    versions = {}
    for name in names:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "torch threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    flags = next((line for line in lines if line.startswith("flags")), "")
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{model or platform.processor()} ({', '.join(wide)})"


def write(
    name: str,
    result: Mapping[str, Any],
    table: Sequence[Sequence[str]],
    page: Path | None = None,
) -> None:
    """Write the result as JSON, and its table into a page of the documentation.

    Args:
        name: the name of the benchmark.
        result: plain numbers, lists and strings.
        table: rows of cells; the first row is the head.
        page: with marks where the table belongs; by default the page on performance.
    """
    page = page or PAGE
    RESULTS.mkdir(exist_ok=True)
    whole = {"machine": machine(), **result}
    (RESULTS / f"{name}.json").write_text(json.dumps(whole, indent=2) + "\n")
    head, *rows = table
    aligned = ["---", *["---:"] * (len(head) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, aligned, *rows)]
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = page.read_text()
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    page.write_text("\n".join([before + begin, *lines, end + after]))
    print("\n".join(lines), flush=True)
