"""One job, from its configuration to its result: prepare, train, evaluate, report, record."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vae_pyro.compilation.precision import threads
from vae_pyro.config import parse_config
from vae_pyro.evaluation.names import merge
from vae_pyro.interruption import uninterrupted
from vae_pyro.progress import show_progress
from vae_pyro.reporting.results import JobResult
from vae_pyro.runs.evaluator import CACHE_FOLDER, Evaluator
from vae_pyro.runs.fingerprint import Fingerprint, identify_x
from vae_pyro.runs.folder import continue_or_begin
from vae_pyro.runs.preparation import Parts, prepare
from vae_pyro.runs.recording import record_config, record_data, record_files, recorded
from vae_pyro.runs.report import report
from vae_pyro.runs.trainer import Trainer
from vae_pyro.runs.weights import Weights
from vae_pyro.saving import MODEL_FOLDER, save_model
from vae_pyro.tracking import RECORD_FOLDER, deliver_rest
from vae_pyro.training.checkpoints import FOLDER as CHECKPOINTS
from vae_pyro.training.checkpoints import Checkpoints

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a job is called, where it writes, and to which sweep it belongs.

    Attributes:
        name: shown in tables.
        settings: what the user set for it, by key.
        choices: the option chosen in every group, by group.
        output: the job's own folder.
        parent: run id of the sweep it belongs to.
        sweep: its token. A job of a sweep starts even where the store does not respond.
        needs_validation_log_px: whether a search chooses the next job by valid/log_px.
        run_name: shown in MLflow; by default the name.
    """

    name: str
    settings: Mapping[str, str]
    choices: Mapping[str, str]
    output: Path
    parent: str | None
    sweep: str | None = None
    needs_validation_log_px: bool = False
    run_name: str | None = None


def run_job(tree: Mapping[str, Any], job: Job, console: Console) -> JobResult:
    """Run one job, record it, and write ``result.json`` into ``job.output``.

    Where the configuration says ``resume`` and the folder holds the same job (the same
    configuration, code and data), the result of a finished one is read back, and one that stopped
    continues from its last checkpoint, in the same run of the tracker, to the same bits.

    Args:
        tree: the resolved configuration as plain nested dictionaries.
        job: its name, folder and parent.
        console: where progress and the final table are shown.

    Raises:
        UserError: with one clear message; the tracker's run, if open, is closed as FAILED.
        Interrupted: by Ctrl-C or SIGTERM; a checkpoint is left and the run is closed as KILLED.
    """
    config = parse_config(tree)
    described = {key: value for key, value in tree.items() if key != "resume"}
    with threads(torch.get_num_threads()):  # a resumed job has its own number
        parts = prepare(config, job.choices)
        weights = Weights.of(config.weights) if config.weights else None
        computed = described | {"weights": weights and weights.digest}
        fingerprint = Fingerprint.of(computed, parts.device.type, parts.dataset.checksum)
        finished = continue_or_begin(job.output, fingerprint, resume=config.resume)
        if finished is not None:
            return _read_back(finished, parts, job)
        place: dict[str, Any] = {
            "seed": config.seed,
            "folder": job.output,
            "progress": partial(
                show_progress, console=console, job=(job.run_name or job.name) if job.sweep else ""
            ),
        }
        trainer = Trainer(
            parts, config.training, config.recipe.fraction, config.evaluation.compile, **place
        )
        evaluator = Evaluator(parts, config.evaluation, **place)
        checkpoints = Checkpoints(job.output / CHECKPOINTS, config.training.checkpoint_seconds)
        with recorded(
            parts,
            fingerprint,
            job.run_name or job.name,
            job.parent,
            job.output,
            checkpoints,
            is_part_of_sweep=job.sweep is not None,
        ) as run:
            record_config(run, described, {**job.choices, **job.settings}, job.output)
            record_data(run, parts.dataset, job.choices.get("data", ""), config.data["_target_"])
            if weights is None:
                trained = trainer.train(run, checkpoints)
            else:
                trained = weights.give_to(parts.vae, run)
            model = save_model(job.output / MODEL_FOLDER, parts.vae, parts.blueprint)
            kept = checkpoints.paths() if config.training.keep_checkpoints else []
            record_files(run, {CHECKPOINTS: kept, MODEL_FOLDER: model})
            evaluation, metrics = evaluator.evaluate(run)
            if job.needs_validation_log_px:
                metrics = merge(metrics, evaluator.validation_log_px(run))
            report(evaluation, parts, evaluator.log_cell_volume, run, console)
            run.log_model("vae")
            result = JobResult(
                job.name,
                dict(job.settings),
                config.latent_dim,
                x=parts.x,
                images=identify_x(parts.dataset, parts.likelihood),
                log_cell_volume=evaluator.log_cell_volume,
                metrics=merge(metrics, trained),
                sweep=job.sweep,
            )
            with uninterrupted():
                run.end("FINISHED")
                result.write(job.output)
        shutil.rmtree(job.output / CACHE_FOLDER, ignore_errors=True)  # all of it is in the tables
        if not config.training.keep_checkpoints:
            checkpoints.remove()
        return result


def _read_back(finished: JobResult, parts: Parts, job: Job) -> JobResult:
    """The result of a job that finished before, as that of this command and its sweep."""
    logger.info("%s: finished before, and read back", job.name)
    deliver_rest(parts.tracker, job.output / RECORD_FOLDER, job.parent)
    result = replace(finished, name=job.name, settings=dict(job.settings), sweep=job.sweep)
    if result != finished:
        result.write(job.output)
    return result
