"""Finished runs by what people name them: a folder, or an id in MLflow."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae_pyro.errors import ReportError
from vae_pyro.evaluation.names import put_back
from vae_pyro.reporting.configurations import PER_IMAGE_FILE, SEED
from vae_pyro.reporting.results import RESULT_FILE, JobResult
from vae_pyro.runs.fingerprint import FINGERPRINT_FILE, Fingerprint
from vae_pyro.tracking import RecordedRun, downloaded, fetch_pictures, recorded_runs

_CODE = "code"  # a setting of this name tells runs of different versions of the code apart
_NOT_A_SETTING = (SEED, "device")


@contextmanager
def found_runs(run: str, uri: str | None, *, pictures: bool = False) -> Iterator[list[JobResult]]:
    """The finished runs that an argument names; copies of their files stay until this is left.

    Args:
        run: folder of a job or a sweep, or the id of a run in MLflow.
        uri: of the tracking store; by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.
        pictures: whether those of a run in MLflow, and its configuration, are needed, too.

    Raises:
        ReportError: where it names none.
        TrackingError: where the tracking store does not respond, or has no such run.
    """
    folder = Path(run)
    if folder.is_dir():
        places = sorted(folder.rglob(RESULT_FILE), key=lambda path: (len(str(path)), path))
        found = [JobResult.read(place.parent) for place in places if "superseded" not in str(place)]
        finished = [result for result in found if result is not None and result.error is None]
        if not finished:
            raise ReportError(f"{folder} has no finished run ({RESULT_FILE}) in it or below it")
        yield [replace(one, name=f"{one.name} ({one.folder})") for one in finished]
    elif re.fullmatch("(runs:/)?[0-9a-f]{32}", run):
        recorded = recorded_runs(run.removeprefix("runs:/"), uri)
        ended = [one for one in recorded if one.status == "FINISHED"]
        if not ended:
            raise ReportError(f"run {run} has not finished, so it has no results")
        with ExitStack() as kept:
            yield [_of_store(one, uri, kept, pictures=pictures) for one in ended]
    else:
        raise ReportError(
            f"there is no folder {run}: name the folder of a job or a sweep, or the id of a run in "
            "MLflow (32 hexadecimal digits)"
        )


def with_settings(results: Sequence[JobResult]) -> list[JobResult]:
    """The runs with what differs between them as their settings, whatever the user typed.

    Raises:
        ReportError: where a run's configuration cannot be read.
    """
    configs = [_config(result) for result in results]
    keys = dict.fromkeys(key for config in configs for key in config)
    varying = [key for key in keys if len({json.dumps(c.get(key)) for c in configs}) > 1]
    # Another class has other options: its name stands for all of them.
    classes = [key.removesuffix("_target_") for key in varying if key.endswith("._target_")]
    own = [
        key
        for key in varying
        if key not in _NOT_A_SETTING
        and (key.endswith("._target_") or not key.startswith(tuple(classes)))
    ]
    return [
        replace(
            result,
            settings={
                SEED: str(config[SEED]),
                **{key.removesuffix("._target_"): _word(key, config.get(key)) for key in own},
            },
        )
        for result, config in zip(results, configs, strict=True)
    ]


def _config(result: JobResult) -> dict[str, Any]:
    fingerprint = Fingerprint.read((result.folder or Path()) / FINGERPRINT_FILE)
    if fingerprint is None or SEED not in fingerprint.config:
        raise ReportError(f"{FINGERPRINT_FILE} of {result.name} is missing or damaged")
    return {**fingerprint.config, _CODE: fingerprint.code_digest[:7]}


def _word(key: str, value: Any) -> str:
    return str(value).rpartition(".")[2] if key.endswith("._target_") else str(value)


def _of_store(run: RecordedRun, uri: str | None, kept: ExitStack, *, pictures: bool) -> JobResult:
    """A run in MLflow, with the files that are needed in a folder that ``kept`` removes."""
    files = [
        kept.enter_context(downloaded(run.run_id, name, uri))
        for name in (PER_IMAGE_FILE, FINGERPRINT_FILE)
    ]
    folder = files[0].parent
    os.replace(files[1], folder / FINGERPRINT_FILE)
    if pictures:
        fetch_pictures(run.run_id, folder, uri)
    try:
        volume = run.tags["log_cell_volume"]
        result = JobResult(
            f"{run.name} (run {run.run_id})",
            {},
            int(run.params["latent_dim"]),
            x=run.tags["x"],
            images=run.tags["images"],
            log_cell_volume=float(volume) if volume else None,
            metrics=put_back(run.metrics),
            folder=folder,
        )
    except (KeyError, ValueError) as error:
        raise ReportError(
            f"run {run.run_id} ({run.name}) cannot be read: {error} is missing or damaged; was "
            "it recorded by an earlier version?"
        ) from error
    if not result.is_complete:
        raise ReportError(f"run {run.run_id} ({run.name}) has no final metrics; name another run")
    return result
