"""MLflow as the tracking store: a database or a server."""

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from vae_pyro.credentials import refuse_credentials
from vae_pyro.errors import TrackingError
from vae_pyro.files import lock
from vae_pyro.tracking.apart import Apart, begin
from vae_pyro.tracking.base import StoredRun, Tracker
from vae_pyro.tracking.embedded import ARTIFACTS, follow
from vae_pyro.tracking.mlflow_run import PARENT, MLflowRun
from vae_pyro.tracking.reach import require_response
from vae_pyro.tracking.reasons import reason
from vae_pyro.tracking.view import link, missing_view

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as Entity

_A_MOMENT = 0.2  # seconds
_IN_FILE = re.compile(r"sqlite:///(?!:memory:|file:)[^?]+")


@dataclass(frozen=True)
class MLflow(Tracker):
    """A tracking store of MLflow.

    Args:
        uri: a database (``sqlite:///mlflow.db``, ``postgresql://...``) or a server (``http://...``).
        experiment: name of the experiment; created where it is missing.
        system_metrics: whether MLflow records how busy the machine is while a job runs, under
            ``system/``.

    Raises:
        ConfigError: where the address holds credentials.
        TrackingError: where the address is that of a database in memory, which would be lost with
            the job; where system metrics are wanted and psutil is not installed.
    """

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "vae-pyro"
    system_metrics: bool = False

    def __post_init__(self) -> None:
        refuse_credentials([f"tracking.uri={self.uri}"])
        if self.uri.lower().startswith("sqlite") and _IN_FILE.fullmatch(self.uri) is None:
            raise self._unusable(
                "a database in memory is lost when the job ends, and options after ? are not "
                "understood; name a file (sqlite:///mlflow.db)"
            )
        if self.system_metrics and find_spec("psutil") is None:
            raise TrackingError("tracking.system_metrics=true needs: pip install psutil")

    def start_run(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> StoredRun:
        client, experiment_id = self._open()
        tags = dict(tags)
        if parent is not None:
            tags[PARENT] = parent
        try:
            run = client.create_run(experiment_id, run_name=name, tags=tags)
        except Exception as error:
            raise self._refused(error) from error
        return self._opened(client, run)

    def find_run(self, tag: str, value: str) -> StoredRun | None:
        if re.fullmatch(r"[\w-]+", value) is None:  # it becomes part of a query
            raise self._unusable(f"{value!r} is not an id of a record")
        client, experiment_id = self._open()
        try:
            found = client.search_runs([experiment_id], f"tags.`{tag}` = '{value}'", max_results=1)
        except Exception as error:
            raise self._refused(error) from error
        return self._opened(client, found[0]) if found else None

    def _opened(self, client: "MlflowClient", run: "Entity") -> MLflowRun:
        is_job = run.data.tags.get("sweep") != "parent"
        return MLflowRun(
            client,
            run.info.run_id,
            monitored=self._whole_uri() if self.system_metrics and is_job else None,
            is_running=run.info.status == "RUNNING",
        )

    def trouble(self) -> Exception | None:
        try:
            require_response(self.uri, _A_MOMENT)
        except OSError as error:
            return error
        return None

    def apart(self) -> Tracker:
        return Apart(self) if begin(_load) else self

    def options(self) -> dict[str, str]:
        options = {**super().options(), "uri": self._whole_uri()}
        del options["system_metrics"]  # it is the same store with or without them
        return options

    def page(self, address: str | None = None) -> str:
        """Where a browser finds the runs of this experiment.

        Args:
            address: of the server that shows them; by default the store itself.

        Raises:
            TrackingError: where the store cannot be used.
        """
        return link(address or self.uri.rstrip("/"), self._open()[1])

    def client(self) -> "MlflowClient":
        """MLflow's own client of this store.

        Raises:
            TrackingError: where the store does not respond.
        """
        try:
            require_response(self.uri)
        except OSError as error:
            raise self._unusable(str(error)) from error
        _load()
        from mlflow import MlflowClient

        try:
            with self._whole_database():
                # MLflow keeps one connection for an address, also where the process has gone to
                # another folder since.
                return MlflowClient(self._whole_uri())
        except Exception as error:
            raise self._refused(error) from error

    def _open(self) -> "tuple[MlflowClient, str]":
        client = self.client()
        try:
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                return client, self._create_experiment(client)
            if experiment.lifecycle_stage == "active":
                for key, value in missing_view(experiment.tags).items():
                    with suppress(Exception):  # some servers refuse it to some users
                        client.set_experiment_tag(experiment.experiment_id, key, value)
                return client, experiment.experiment_id
        except Exception as error:  # the stores raise SQLAlchemy's, requests' and MLflow's own
            raise self._refused(error) from error
        raise self._unusable(
            f"its experiment {self.experiment!r} was deleted; restore it, or choose another with "
            "tracking.experiment"
        )

    def _create_experiment(self, client: "MlflowClient") -> str:
        # The kind decides which of MLflow's two faces the experiment opens with.
        tags = {"mlflow.experimentKind": "custom_model_development", **missing_view({})}
        try:
            created: str = client.create_experiment(self.experiment, self._artifacts(), tags=tags)
        except Exception:
            # Of two processes that start at once on a fresh server, one comes second.
            experiment = client.get_experiment_by_name(self.experiment)
            if experiment is None:
                raise
            created = experiment.experiment_id
        return created

    @contextmanager
    def _whole_database(self) -> Iterator[None]:
        """One process makes a new embedded database, which appears whole or not at all.

        MLflow makes the tables with its first client: of two processes that do so at once one
        crashes, and a database whose process was killed meanwhile is refused ever after.
        """
        if not self.uri.startswith("sqlite:///"):
            yield
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        path = Path(self.uri.removeprefix("sqlite:///")).absolute()
        with lock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                aside = path.with_name(f".{path.name}.new")
                for leftover in path.parent.glob(f"{aside.name}*"):
                    leftover.unlink()
                # As a URI, because MLflow writes this path into SQL without escaping its quotes.
                artifacts = (Path.cwd() / "mlruns").as_uri()
                SqlAlchemyStore(f"sqlite:///{aside}", artifacts)
                aside.replace(path)
            else:
                follow(path)
            yield

    def _whole_uri(self) -> str:
        """The address as seen from any folder."""
        if self.uri.startswith("sqlite:///"):
            return f"sqlite:///{self._sqlite_folder() / Path(self.uri).name}"
        return self.uri

    def _sqlite_folder(self) -> Path:
        return Path(self.uri.removeprefix("sqlite:///")).absolute().parent

    def _artifacts(self) -> str | None:
        """Where artifacts lie: beside an embedded database; a server decides for itself."""
        if self.uri.startswith("sqlite:///"):
            return (self._sqlite_folder() / ARTIFACTS).as_uri()
        return None

    def _refused(self, error: Exception) -> TrackingError:
        return self._unusable(reason(error))

    def _unusable(self, why: str) -> TrackingError:
        return TrackingError(
            f"tracking.uri={self.uri} cannot be used: {why}. Start the server, "
            "correct the address, use the embedded database (tracking.uri=sqlite:///mlflow.db), or "
            "record nothing (tracking=none)."
        )


def _load() -> None:
    """Import MLflow, as this program needs it."""
    # People run this program on their own data, so MLflow must not report on its use.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # A server that does not respond is tried again with every record. With MLflow's own retries a
    # call would take several minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow  # noqa: F401

    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Tracebacks of errors that are raised again, and reported where they are caught.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.ERROR)  # of a server that is away
