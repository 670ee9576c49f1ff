"""A trained run as a model of MLflow: what ``mlflow models serve`` loads and asks."""

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from vae_pyro.errors import TrackingError, UserError
from vae_pyro.tracking.mlflow_run import MLflowRun
from vae_pyro.tracking.mlflow_store import MLflow
from vae_pyro.tracking.reasons import reason

_RUN = "run"  # name of the artifact that holds the job's files
_PARAMS = {  # of a request: MLflow's type, and what holds where a request has none
    "method": ("string", "score"),
    "seed": ("long", 0),
    "num_images": ("long", 64),
    "resize": ("boolean", False),
}


class Answers(Protocol):
    """What is served; see ``runs.service.Service``."""

    def answer(
        self, method: str, contents: Sequence[bytes], *, seed: int, num_images: int, resize: bool
    ) -> list[dict[str, Any]]:
        """The rows of an answer."""


def serve(service: Callable[[Path], Answers]) -> None:
    """Name the model of the script that calls this; MLflow runs it when it loads the model.

    Args:
        service: makes what answers, from the folder of the job.
    """
    from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
    from mlflow.models import set_model
    from mlflow.pyfunc import PythonModel

    class Served(PythonModel):  # type: ignore[misc]  # of a library without types
        """Answers requests about images."""

        def load_context(self, context: Any) -> None:
            self._service = service(Path(context.artifacts[_RUN]))

        # MLflow would take type hints for the schema of a request.
        def predict(self, model_input, params=None):  # type: ignore[no-untyped-def]
            options = {name: default for name, (_, default) in _PARAMS.items()} | (params or {})
            try:
                return self._service.answer(
                    options.pop("method"), [bytes(one) for one in model_input["image"]], **options
                )
            except UserError as error:
                raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error

    set_model(Served())


def register(
    store: MLflow, run_id: str, folder: Path, script: Path, name: str, example: bytes
) -> str:
    """Give the model of a run what MLflow needs to serve it, and register a version of it.

    Args:
        store: where the run is recorded.
        run_id: MLflow's.
        folder: with the job's files that the service needs.
        script: calls ``serve``; MLflow keeps a copy.
        name: of the registered model.
        example: a PNG file, for MLflow's page of the model.

    Returns:
        its address, ``models:/<name>/<version>``.

    Raises:
        TrackingError: where the store refuses it.
    """
    run = MLflowRun(store.client(), run_id)
    import mlflow
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    mlflow.set_tracking_uri(store.options()["uri"])
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        params=ParamSchema(
            [ParamSpec(key, kind, default) for key, (kind, default) in _PARAMS.items()]
        ),
    )
    try:
        run.log_model("vae")  # of an earlier version's run
        model = run.model()
        if model is None:
            raise TrackingError("its MLflow is older than 3.0")
        with redirect_stderr(io.StringIO()):  # advice to the author of the script
            info = Model.log(
                artifact_path=None,
                flavor=mlflow.pyfunc,
                model_id=model.model_id,
                registered_model_name=name,
                python_model=str(script),
                artifacts={_RUN: str(folder)},
                signature=signature,
                input_example=pd.DataFrame({"image": [example]}),
                pip_requirements=[f"vae-pyro=={version('vae-pyro')}"],
            )
    except Exception as error:  # MLflow's own, of the store, or of the disk
        raise TrackingError(
            f"run {run_id} cannot be registered in {store.uri}: {reason(error)}"
        ) from error
    return f"models:/{name}/{info.registered_model_version}"
