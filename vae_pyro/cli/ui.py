"""``vae-pyro ui``: browse the recorded runs in MLflow, beginning with ELBO against IWAE."""

import argparse
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from vae_pyro.cli import startup
from vae_pyro.cli.console import add_uri, fail, make_console, print_notes
from vae_pyro.errors import TrackingError, UserError
from vae_pyro.interruption import Interrupted, interruptible
from vae_pyro.tracking import MLflow, existing_store
from vae_pyro.tracking.reach import require_response

_HOST = "127.0.0.1"  # only browsers on this machine
_START = 120.0  # seconds until MLflow's server responds, on a busy machine
_END = 10.0  # seconds until it has ended
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Seven processes for evaluations of language models, of 240 MB each.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Start MLflow's server for the store, print the page to open, and wait for Ctrl-C.

    Where the store is a server itself, only the page is printed.

    Args:
        arguments: of the command line; those of this process unless given.

    Returns:
        0; or 1 where the store or the port cannot be used.
    """
    parser = argparse.ArgumentParser(prog="vae-pyro ui", description=__doc__)
    parser.add_argument("--port", type=int, default=5000, help="of this machine (default: 5000)")
    add_uri(parser)
    parser.add_argument(
        "--experiment",
        default=MLflow.experiment,
        help=f"whose runs are shown (default: {MLflow.experiment})",
    )
    options = parser.parse_args(arguments)
    print_notes(make_console())
    try:
        store = existing_store(options.uri, options.experiment)
        if store.uri.startswith(("http://", "https://")):
            _print(store.page())
            return 0
        with interruptible():
            _serve(store, options.port)
    except UserError as error:
        fail(str(error))
        return 1
    except Interrupted:
        pass  # the usual end
    return 0


def _serve(store: MLflow, port: int) -> None:
    """Run MLflow's server until it ends or a signal comes.

    Raises:
        TrackingError: where the port is taken, or the server does not start.
    """
    address = f"http://{_HOST}:{port}"
    _require_free(port)
    page = store.page(address)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", _HOST, "--port", str(port)]
    command += ["--backend-store-uri", store.options()["uri"]]
    command += ["--uvicorn-opts", "--log-level warning"]
    server = subprocess.Popen(command, env=os.environ | _ENVIRONMENT)
    try:
        deadline = time.monotonic() + _START
        while not _responds(address):
            if server.poll() is not None or time.monotonic() > deadline:
                raise TrackingError("MLflow's server did not start; what it printed says why")
        _print(page)
        server.wait()
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_END)
        server.kill()


def _require_free(port: int) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
    except (OSError, OverflowError) as error:
        raise TrackingError(
            f"port {port} cannot be used ({error}): choose another, for instance --port 5001 "
            "(make ui PORT=5001)"
        ) from error


def _responds(address: str) -> bool:
    try:
        require_response(address, 0.5)
    except OSError:
        time.sleep(0.2)
        return False
    return True


def _print(page: str) -> None:
    sys.stdout.write(f"open {page}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    startup.prepare()
    sys.exit(main())
