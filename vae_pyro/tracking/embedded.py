"""Where the files of an embedded database lie: beside it, also after both were moved or copied."""

import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

ARTIFACTS = "mlartifacts"
_ADDRESSES = (
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
_PATIENCE = 1.0  # seconds for another process's lock


def follow(database: Path) -> None:
    """Let the records of a database that was moved or copied name the files beside it.

    MLflow stores absolute addresses. Without this, a copy of a project would write into the
    project it was copied from, and one that was moved would lose its pictures. The address of a
    run changes only if the run's files are here, or are no longer where they were.

    A database that has no tables yet, is locked, or must not be written stays as it is.

    Args:
        database: of MLflow, whose experiments were created by ``vae_pyro``.

    Raises:
        sqlite3.DatabaseError: where it is no database, or damaged.
    """
    here = (database.absolute().parent / ARTIFACTS).as_uri()
    with (
        suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(database, timeout=_PATIENCE, isolation_level=None)) as connection,
    ):
        if not _elsewhere(connection, here):
            return
        connection.execute("BEGIN IMMEDIATE")
        for there in _elsewhere(connection, here):
            move = (here, there)
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", move
            )
            for table, column in _ADDRESSES:
                _follow_rows(connection, table, column, here, there)
        connection.execute("COMMIT")


def _elsewhere(connection: sqlite3.Connection, here: str) -> list[str]:
    """Where experiments have their files, unless it is here."""
    found = connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
    return [
        location
        for (location,) in found
        if (location or "").startswith("file:")
        and location.endswith(f"/{ARTIFACTS}")
        and location != here
    ]


def _follow_rows(
    connection: sqlite3.Connection, table: str, column: str, here: str, there: str
) -> None:
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
    if connection.execute(known, (table,)).fetchone() is None:  # of an older MLflow
        return
    of_there = f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, ?) = ?"
    prefix = f"{there}/"
    for row, old in connection.execute(of_there, (len(prefix), prefix)).fetchall():
        new = f"{here}/{old.removeprefix(prefix)}"
        if _path(new).exists() or not _path(old).exists():
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE rowid = ?",
                (new, row),
            )


def _path(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))
