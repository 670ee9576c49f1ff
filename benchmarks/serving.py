"""A registered run behind an address, with clients that ask all the time: waits and memory."""

import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contest import ROOT, write
from vae_pyro.data import Digits
from vae_pyro.reporting.figures import png

PAGE = ROOT / "docs" / "own_images.md"
CLIENTS, SECONDS = 8, 60.0
METHODS = ("score", "encode", "reconstruct", "sample")
_STARTS_WITHIN, _ANSWERS_WITHIN = 120.0, 120.0  # seconds
_DATABASE = "sqlite:///mlflow.db"


def trained_and_registered(folder: Path, *settings: str) -> None:
    """A job of this program in ``folder``/job, registered as ``models:/vae-pyro/1``."""
    for arguments in (("hydra.run.dir=job", *settings), ("register", "job", "--uri", _DATABASE)):
        command = [sys.executable, str(ROOT / "run.py"), *arguments]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)


@contextmanager
def served(folder: Path) -> Iterator[tuple[str, int]]:
    """``mlflow models serve`` on loopback; its address, and the number of its process."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("-m", "models:/vae-pyro/1", "--env-manager", "local", "--host", "127.0.0.1")
    with (folder / "served.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", *options, "--port", str(port)],
            cwd=folder,
            env={**os.environ, "MLFLOW_TRACKING_URI": _DATABASE, "PATH": found_here()},
            stdout=log,
            stderr=log,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _STARTS_WITHIN
        while time.monotonic() < deadline and server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=1).close()
                break
            except OSError:
                time.sleep(0.25)
        else:
            raise RuntimeError((folder / "served.log").read_text())
        yield address, server.pid
    finally:
        server.terminate()
        server.wait(30)


def found_here() -> str:
    """$PATH with the programs of this Python first; MLflow starts one of them by its name."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def ask(address: str, images: Sequence[bytes], **params: Any) -> tuple[int, Any]:
    """The status of an answer, and its rows; or its message, where the status is an error's."""
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = {"dataframe_split": {"columns": ["image"], "data": rows}, "params": params}
    return post(address, json.dumps(body).encode())


def post(address: str, body: bytes) -> tuple[int, Any]:
    """Send a request as it is; see ``ask``."""
    request = urllib.request.Request(
        f"{address}/invocations", body, {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN) as answer:
            return answer.status, json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["message"]


def digits(number: int) -> list[bytes]:
    """The first test digits, as PNG files."""
    data = Digits().load()
    assert data.num_levels is not None
    levels = data.test.images[:number, 0].double() * (255 / (data.num_levels - 1))
    return [png(np.repeat(one.round().byte().numpy()[..., None], 3, axis=2)) for one in levels]


def under_load(address: str, pid: int, clients: int, seconds: float) -> Mapping[str, Any]:
    """Clients that ask all the time, in turn for each method.

    Returns:
        seconds that each answer took, statuses, and the server's memory at the start, after the
        first quarter and at the end, bytes.
    """
    images, begin = digits(clients), time.monotonic()
    memory = [_memory(pid)]

    def client(number: int) -> list[tuple[float, int]]:
        answers = []
        for turn in count(number):
            start = time.monotonic()
            if start - begin > seconds:
                break
            method = METHODS[turn % len(METHODS)]
            status, _ = ask(address, images[number : number + 1], method=method)
            answers.append((time.monotonic() - start, status))
        return answers

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client, number) for number in range(clients)]
        time.sleep(seconds / 4)
        memory.append(_memory(pid))
        answers = [answer for one in running for answer in one.result()]
    memory.append(_memory(pid))
    return {
        "seconds": [took for took, _ in answers],
        "statuses": [status for _, status in answers],
        "memory": memory,
    }


def _memory(pid: int) -> int:
    """Resident bytes of a process and of those that it started."""
    own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    started = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return own + sum(_memory(int(child)) for child in started)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        trained_and_registered(folder, "latent_dim=10")
        with served(folder) as (address, pid):
            for method in METHODS:
                ask(address, digits(1), method=method)
            found = under_load(address, pid, CLIENTS, SECONDS)
    took = sorted(found["seconds"])
    median, slowest = statistics.median(took), took[int(0.99 * len(took))]
    errors = sum(status != 200 for status in found["statuses"])
    gigabytes = [f"{number / 1e9:.2f}" for number in found["memory"]]
    table = [
        ["clients", "answers / s", "errors", "median, s", "99 %, s", "memory, GB"],
        [
            str(CLIENTS),
            f"{len(took) / SECONDS:.1f}",
            str(errors),
            f"{median:.2f}",
            f"{slowest:.2f}",
            " → ".join(gigabytes),
        ],
    ]
    summary = {"answers": len(took), "errors": errors, "median": median, "99 %": slowest}
    write("serving", {**summary, "memory": found["memory"]}, table, PAGE)
