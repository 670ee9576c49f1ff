"""Record: one job's run in the tracker, from its opening to the status it ends with."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from vae_pyro.config import flatten
from vae_pyro.data import Dataset
from vae_pyro.errors import StorageError
from vae_pyro.evaluation import log_cell_volume
from vae_pyro.files import write_atomically
from vae_pyro.interruption import uninterrupted
from vae_pyro.runs.fingerprint import FINGERPRINT_FILE, Fingerprint, git_tags, identify_x
from vae_pyro.runs.preparation import Parts
from vae_pyro.tracking import RECORD_FOLDER, Run, SilentRun, open_run
from vae_pyro.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
_PARAMS = ("latent_dim", "seed", "training.epochs")  # of every run
_NOT_A_PARAM = "tracking"
FILES = (RECORD_FOLDER, CONFIG_FILE)
"""What this module writes into a job's folder."""


@contextmanager
def recorded(
    parts: Parts,
    fingerprint: Fingerprint,
    name: str,
    parent: str | None,
    folder: Path,
    checkpoints: Checkpoints,
    *,
    is_part_of_sweep: bool,
) -> Iterator[Run]:
    """Open the job's run; where the job fails or is interrupted, close it with that status.

    The caller ends a run that finishes.

    Args:
        parts: of the job.
        fingerprint: likewise; becomes a tag.
        name: of the run.
        parent: run id of the sweep.
        folder: the job's own.
        checkpoints: the last one is written where the job is interrupted.
        is_part_of_sweep: then a store that does not respond does not stop the job from starting.

    Raises:
        TrackingError: where the store does not respond, and the job is no part of a sweep.
        StorageError: where the disk is full.
    """
    volume = log_cell_volume(parts.likelihood, parts.dataset.image_shape)
    tags = {
        "fingerprint": fingerprint.digest,
        "x": parts.x,
        "images": identify_x(parts.dataset, parts.likelihood),
        "log_cell_volume": "" if volume is None else repr(volume),
        "log_px": "density" if parts.likelihood.support.is_continuous else "probability",
        **git_tags(),
    }
    run: Run = SilentRun()
    try:
        run = open_run(
            parts.tracker,
            folder / RECORD_FOLDER,
            name,
            tags,
            parent,
            must_respond=not is_part_of_sweep,
        )
        yield run
    except Exception as error:
        _end_failed(run, error)
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        _end_killed(run, checkpoints)
        raise
    run.close()


def record_config(
    run: Run, tree: Mapping[str, Any], chosen: Mapping[str, str], folder: Path
) -> None:
    """The resolved configuration as ``config.yaml``, and what was chosen as parameters of the run.

    MLflow prints all parameters above each picture, so default values are only in the file. The
    fingerprint, which ``continue_or_begin`` has left in the folder, goes along.

    Args:
        run: where they go.
        tree: the configuration.
        chosen: the options of its groups, and what the user set.
        folder: the job's own.
    """
    flat = flatten(tree)
    shown = {key: value for key, value in chosen.items() if not key.startswith(_NOT_A_PARAM)}
    run.log_params(
        {key: flat[key] for key in _PARAMS} | {key: flat.get(key, v) for key, v in shown.items()}
    )
    path = folder / CONFIG_FILE
    write_atomically(path, OmegaConf.to_yaml(dict(tree)).encode())
    run.log_file(path)
    run.log_file(folder / FINGERPRINT_FILE)


def record_data(run: Run, dataset: Dataset, name: str, source: str) -> None:
    """The images of the job, by their checksum.

    Args:
        run: where they go.
        dataset: of the job.
        name: the option of the group ``data``.
        source: the class that loads them.
    """
    sizes = {split: len(getattr(dataset, split)) for split in ("train", "valid", "test")}
    shape = {"image_shape": list(dataset.image_shape), "num_levels": dataset.num_levels}
    run.log_dataset(name, dataset.checksum, source, sizes | shape)


def record_files(run: Run, paths: Mapping[str, Sequence[Path]]) -> None:
    """Upload files, by the folder of the run that they go into."""
    for folder, files in paths.items():
        for path in files:
            run.log_file(path, folder)


def _end_failed(run: Run, error: Exception) -> None:
    """The disk or the store may be what failed: the first error is the one that is reported."""
    with uninterrupted():
        with suppress(Exception):
            run.describe(f"Failed: {error}")
        with suppress(Exception):
            run.end("FAILED")
    run.close()


def _end_killed(run: Run, checkpoints: Checkpoints) -> None:
    with uninterrupted():
        try:
            checkpoints.flush()
        except StorageError as error:
            logger.warning("%s", error)
        with suppress(Exception):
            run.end("KILLED")
        run.close()
