"""Whether a tracking store responds, within seconds: MLflow's own retries take minutes."""

import http.client
import os
import socket
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

from vae_pyro.tracking.reasons import reason

_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def require_response(uri: str, within: float = 5.0) -> None:
    """Return if the store responds, or if only MLflow can test it (``s3://...`` and others).

    Args:
        uri: of the tracking store, without credentials.
        within: seconds to wait.

    Raises:
        OSError: with the reason in words, if the store does not respond.
    """
    if not uri:
        raise OSError("it is empty")
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise OSError(f"it is not an address ({error})") from error
    database = parts.scheme.partition("+")[0]
    if database == "sqlite":
        _require_file(Path(uri.removeprefix("sqlite:///")), within)
    elif parts.scheme in ("http", "https"):
        try:
            health = f"{uri.rstrip('/')}/health"
            urllib.request.urlopen(health, timeout=within).close()  # noqa: S310
        except urllib.error.HTTPError:
            pass  # a server responds; MLflow's own calls will report what is wrong
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise OSError(f"no server responds there ({error})") from error
    elif database in _DATABASE_PORTS:
        try:
            address = parts.hostname, parts.port or _DATABASE_PORTS[database]
            socket.create_connection(address, timeout=within).close()
        except (OSError, ValueError) as error:
            why = error if isinstance(error, OSError) else "its port is no number"
            raise OSError(f"no server responds there ({why})") from error
        _log_in(uri, within)


def _require_file(path: Path, within: float) -> None:
    folder = path.absolute().parent
    if not os.access(folder, os.W_OK):
        raise OSError(f"{folder} is not a folder that can be written")
    if not path.is_file():
        return
    try:  # MLflow waits 20 seconds for a lock, with every call
        with closing(sqlite3.connect(path, timeout=within)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
    except sqlite3.OperationalError as error:
        if "locked" in str(error):  # MLflow reports anything else at once
            raise OSError(reason(error)) from error


def _log_in(uri: str, within: float) -> None:
    """Log in once: MLflow would try ten times, and wait for a silent server without limit."""
    import sqlalchemy

    options = {"connect_timeout": max(1, int(within))}
    engine = sqlalchemy.create_engine(uri, connect_args=options)
    try:
        engine.connect().close()
    except Exception as error:  # of any of the drivers
        raise OSError(reason(error)) from error
    finally:
        engine.dispose()
