"""MLflow's tables, migrated once for a run of the tests: every migration anew takes seconds.

What stands in for the migration is its outcome, statement by statement, through the same
connection: a file that is locked or a disk that is full raise what they would. Everything before
and after it (who may make a database, where, its experiments) is done for real. Tests that are
about the migration start interpreters of their own, which this does not reach.
"""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from filelock import FileLock


def tables(folder: Path) -> Path:
    """The SQL that makes them, written by whichever process needs it first."""
    path = folder / "mlflow.sql"
    with FileLock(folder / "mlflow.sql.lock"):
        if not path.exists():
            _migrate(folder / "mlflow.db")
            with closing(sqlite3.connect(folder / "mlflow.db")) as database:
                path.write_text("\0".join(database.iterdump()))
    return path


def use(path: Path) -> None:
    """In this process, new SQLite databases get their tables from the SQL."""
    from mlflow.store.db import utils

    migrate = utils._initialize_tables

    def restore(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            migrate(engine)
            return
        with engine.begin() as connection:
            for statement in path.read_text().split("\0"):
                if statement not in ("BEGIN TRANSACTION;", "COMMIT;"):
                    connection.exec_driver_sql(statement)

    utils._initialize_tables = restore


def _migrate(path: Path) -> None:
    from mlflow.store.db import utils
    from sqlalchemy import create_engine

    engine = create_engine(f"sqlite:///{path}")
    utils._initialize_tables(engine)
    engine.dispose()
