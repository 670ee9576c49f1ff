"""One job, start to finish: data -> train -> evaluate -> record."""

import math
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console

from vae_pyro.config import Config, build, flatten, parse_config
from vae_pyro.config import Evaluation as EvaluationOptions
from vae_pyro.data import Dataset, ImageSource
from vae_pyro.errors import ConfigError, DataError, EstimatorError, StorageError
from vae_pyro.evaluation import EvaluationPlan, first_ais, log_cell_volume, require_free_names
from vae_pyro.files import write_atomically
from vae_pyro.hardware import CoreMeter, crowding
from vae_pyro.interruption import uninterrupted
from vae_pyro.likelihoods import Likelihood, Support
from vae_pyro.log_marginal import Estimator
from vae_pyro.networks import Network
from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting.estimators import advice
from vae_pyro.reporting.results import JobResult
from vae_pyro.runs.fingerprint import Fingerprint, describe_x, git_tags, identify_x
from vae_pyro.runs.folder import continue_or_begin
from vae_pyro.runs.trainer import Experiment
from vae_pyro.saving import Blueprint, save_model
from vae_pyro.tracking import Run, SilentRun, Tracker, deliver_rest, open_run
from vae_pyro.training.checkpoints import Checkpoints
from vae_pyro.training.svi import try_out
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class Job:
    """Where a job stands in the world.

    Attributes:
        name: shown in tables and in MLflow.
        settings: what the user set for it, by key.
        choices: the option chosen in every group, by group.
        output: the job's own folder.
        parent: run id of the sweep it belongs to.
        sweep: its token; in a sweep a tracker that is away does not stop a job from starting.
        is_judged: whether whoever started it asks for valid/log_px, as to choose the next job by.
    """

    name: str
    settings: Mapping[str, str]
    choices: Mapping[str, str]
    output: Path
    parent: str | None
    sweep: str | None = None
    is_judged: bool = False


def run_job(tree: Mapping[str, Any], job: Job, console: Console) -> JobResult:
    """Do what the configuration asks, record it, and write ``result.json`` into ``job.output``.

    Where the configuration says ``resume`` and the folder holds the same job (the same
    configuration, code and data), a finished one's result is read back, and one that stopped goes
    on from its last checkpoint, in the same run of the tracker, to the same bits.

    Args:
        tree: the resolved configuration as plain nested dictionaries.
        job: its name, folder and parent.
        console: where progress and the final table are shown.

    Raises:
        UserError: with one clear message; the tracker's run, if open, is closed as FAILED.
        Interrupted: by Ctrl-C or SIGTERM; a checkpoint is left and the run is closed as KILLED.
    """
    threads = torch.get_num_threads()
    try:
        return _run(tree, parse_config(tree), job, console)
    finally:
        torch.set_num_threads(threads)  # a resumed job may have had another number


@dataclass(frozen=True)
class _Parts:
    """What a configuration names, built and seen to go together."""

    device: torch.device
    tracker: Tracker
    objective: Objective
    dataset: Dataset
    blueprint: Blueprint
    likelihood: Likelihood
    vae: VAE
    questions: EvaluationPlan
    notes: list[str]
    x: str
    crowding: str | None


def _build_parts(config: Config, job: Job) -> _Parts:
    meter, device = CoreMeter(), choose_device(config.device)
    tracker = build(config.tracking, Tracker, "tracking")
    source = build(config.data, ImageSource, "data")
    objective = build(config.objective, Objective, "objective")
    dataset = source.load()
    blueprint = Blueprint(
        config.latent_dim,
        dataset.image_shape,
        dataset.num_levels,
        config.network,
        config.likelihood,
        config.guide,
    )
    likelihood = blueprint.build_likelihood()
    blueprint.require_memory(device)
    if source.binarisation == "static" and likelihood.support is Support.BINARY:
        dataset = dataset.binarised_once()
    train_x = None
    if build(config.network, Network, "network").output_bias == "data":
        generator = RandomStream("output bias", config.seed).generator
        train_x = likelihood.prepare(dataset.train.images, generator)
    with RandomStream("initial weights", config.seed).active():
        vae = blueprint.build(train_x).to(device).eval()
    dataset = dataset.to(device)
    _check_support(dataset, likelihood, config.seed)
    first = RandomStream("first try", config.seed, device)
    few = likelihood.prepare(dataset.valid.images[:2], first.generator)
    with first.active():
        try_out(vae, objective, few)
    questions, notes = _questions(config.evaluation, vae)
    x = describe_x(job.choices.get("data", ""), source.binarisation, likelihood)
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return _Parts(
        device,
        tracker,
        objective,
        dataset,
        blueprint,
        likelihood,
        vae,
        questions,
        notes,
        x,
        crowding(threads, meter.others()),
    )


def _check_support(dataset: Dataset, likelihood: Likelihood, seed: int) -> None:
    """Refuse, before anything is trained, data that the likelihood could not score after it.

    Raises:
        DataError: naming the split.
    """
    # A stream of its own: how the data are checked changes no other random number.
    stream = RandomStream("data check", seed, dataset.train.images.device)
    at_once = max(1, 2**20 // math.prod(dataset.image_shape))  # images, so that x fits a cache
    for name in ("train", "valid", "test"):
        chunks = getattr(dataset, name).images.split(at_once)
        for number, images in enumerate(chunks):
            try:
                likelihood.check(likelihood.prepare(images, stream.generator))
            except DataError as error:
                first = number * at_once
                raise DataError(
                    f"images {first:,} to {first + len(images) - 1:,} of the {name} split: {error}"
                ) from error


def _run(tree: Mapping[str, Any], config: Config, job: Job, console: Console) -> JobResult:
    def tell(note: str) -> None:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)

    parts = _build_parts(config, job)
    recorded = {k: v for k, v in tree.items() if k != "resume"}
    fingerprint = Fingerprint.of(recorded, parts.device.type, parts.dataset.checksum)
    finished = continue_or_begin(job.output, fingerprint, resume=config.resume, tell=tell)
    if finished is not None:
        tell(f"{job.name}: finished before, and read back")
        deliver_rest(parts.tracker, job.output / "record", job.parent, tell)
        return _read_back(finished, job)
    tags = {
        "fingerprint": fingerprint.digest,
        "x": parts.x,
        "log_px": "density" if parts.likelihood.support.is_continuous else "probability",
        **git_tags(),
    }
    if parts.crowding is not None:
        tell(parts.crowding)
    run: Run = SilentRun()
    checkpoints = Checkpoints(job.output / "checkpoint", config.training.checkpoint_seconds)
    try:
        run = open_run(
            parts.tracker,
            job.output / "record",
            job.name,
            tags,
            job.parent,
            must_answer=job.sweep is None,
            tell=tell,
        )
        experiment = Experiment(
            config,
            parts.dataset,
            parts.vae,
            parts.objective,
            parts.questions,
            run,
            console,
            job.output,
        )
        run.log_params({**job.choices, **flatten(recorded)})
        run.log_file(_write_config(recorded, job.output))
        trained, last_epoch = experiment.train(checkpoints)
        _log_files(run, checkpoints.paths(), "checkpoint")
        _log_files(run, save_model(job.output / "model", parts.vae, parts.blueprint), "model")
        evaluation = experiment.evaluate(last_epoch)
        judged = experiment.judge(last_epoch) if job.is_judged else {}
        run.log_metrics(trained, last_epoch)
        experiment.show(evaluation, [*parts.notes, *advice(evaluation, parts.questions)])
        result = JobResult(
            job.name,
            dict(job.settings),
            config.latent_dim,
            x=parts.x,
            images=identify_x(parts.dataset, parts.likelihood),
            log_cell_volume=log_cell_volume(parts.likelihood, parts.dataset.image_shape),
            metrics=evaluation.metrics | judged | trained,
            sweep=job.sweep,
        )
        with uninterrupted():
            run.end("FINISHED")
            result.write(job.output)
    except Exception as error:
        _end_failed(run, error)
        raise
    except BaseException:  # Ctrl-C, SIGTERM
        with uninterrupted():
            try:
                checkpoints.flush()
            except StorageError as error:
                tell(str(error))
            with suppress(Exception):
                run.end("KILLED")
            run.close()
        raise
    run.close()
    shutil.rmtree(job.output / "evaluation", ignore_errors=True)  # all of it is in the tables
    return result


def _read_back(finished: JobResult, job: Job) -> JobResult:
    """The result as that of this command, whose sweep may be another one."""
    settings = dict(job.settings)
    result = replace(finished, name=job.name, settings=settings, sweep=job.sweep)
    if result != finished:
        result.write(job.output)
    return result


def _questions(options: EvaluationOptions, vae: VAE) -> tuple[EvaluationPlan, list[str]]:
    """What is asked of this VAE, and a line for every estimator that has no answer for it.

    Raises:
        ConfigError: where an estimator's name is taken, an estimator or an option of it is not one,
            or images are to be simulated and there is no AIS.
        EstimatorError: where an estimator has no answer and is not to be skipped.
    """
    try:
        require_free_names(options.estimators)
    except ValueError as error:
        raise ConfigError(f"evaluation.{error}") from error
    estimators, notes = {}, []
    for name, estimator_options in options.estimators.items():
        estimator = build(estimator_options, Estimator, f"evaluation.estimators.{name}")
        try:
            estimator.check(vae)
            estimators[name] = estimator
        except EstimatorError as error:
            if options.inapplicable == "refuse":
                raise EstimatorError(f"evaluation.estimators.{name}: {error}") from error
            notes.append(f"{name} was left out: {error}")
    if options.simulated_images and first_ais(estimators) is None:
        why = "simulated_images: they are for AIS, which is not among evaluation/estimators"
        if options.inapplicable == "refuse":
            raise ConfigError(f"evaluation.{why}; add ais, or ask for 0")
        notes.append(f"{why}, so none were made")
    questions = EvaluationPlan(
        options.num_samples,
        options.iwae_samples,
        estimators,
        options.num_images,
        options.simulated_images,
        options.latent,
    )
    return questions, notes


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: where a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "device=cuda: no CUDA GPU is available here; use device=auto or device=cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def _end_failed(run: Run, error: Exception) -> None:
    """The disk or the store may be what failed; the first error is the one to tell."""
    with uninterrupted():
        with suppress(Exception):
            run.describe(f"Failed: {error}")
        with suppress(Exception):
            run.end("FAILED")
    run.close()


def _log_files(run: Run, paths: Sequence[Path], folder: str) -> None:
    for path in paths:
        run.log_file(path, folder)


def _write_config(tree: Mapping[str, Any], output: Path) -> Path:
    path = output / "config.yaml"
    write_atomically(path, OmegaConf.to_yaml(dict(tree)).encode())
    return path
