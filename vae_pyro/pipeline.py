"""One job, start to finish: data -> train -> evaluate -> record."""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console

from vae_pyro.checkpoint import Blueprint, save_model
from vae_pyro.config import Evaluation as EvaluationOptions
from vae_pyro.config import build, flatten, parse_config, without_passwords
from vae_pyro.data import ImageSource
from vae_pyro.errors import ConfigError, EstimatorError
from vae_pyro.evaluation import Questions, log_cell_volume
from vae_pyro.experiment import Experiment
from vae_pyro.files import write_atomically
from vae_pyro.likelihoods import Support
from vae_pyro.log_marginal import AIS, Estimator
from vae_pyro.networks import Network
from vae_pyro.objectives import Objective
from vae_pyro.provenance import describe_x, fingerprint, git_tags, identify_x
from vae_pyro.randomness import RandomStream
from vae_pyro.report import advice
from vae_pyro.results import JobResult
from vae_pyro.tracking import Tracker
from vae_pyro.training import try_out
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
    """

    name: str
    settings: Mapping[str, str]
    choices: Mapping[str, str]
    output: Path
    parent: str | None


def run_job(tree: Mapping[str, Any], job: Job, console: Console) -> JobResult:
    """Do what the configuration asks, record it, and write ``result.json`` into ``job.output``.

    Args:
        tree: the resolved configuration as plain nested dictionaries.
        job: its name, folder and parent.
        console: where progress and the final table are shown.

    Raises:
        UserError: with one clear message; the tracker's run, if open, is closed as FAILED.
    """
    config = parse_config(tree)
    device = choose_device(config.device)
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
    if source.binarisation == "static" and likelihood.support is Support.BINARY:
        dataset = dataset.binarised_once()
    train_x = None
    if build(config.network, Network, "network").output_bias == "data":
        generator = RandomStream("output bias", config.seed).generator
        train_x = likelihood.prepare(dataset.train.images, generator)
    with RandomStream("initial weights", config.seed).active():
        vae = blueprint.build(train_x).to(device).eval()
    dataset = dataset.to(device)
    first = RandomStream("first try", config.seed, device)
    few = likelihood.prepare(dataset.valid.images[:2], first.generator)
    with first.active():
        try_out(vae, objective, few)
    questions, notes = _questions(config.evaluation, vae)
    x = describe_x(job.choices.get("data", ""), source.binarisation, likelihood)
    tags = {
        "fingerprint": fingerprint(tree, dataset.checksum),
        "x": x,
        "log_px": "density" if likelihood.support.is_continuous else "probability",
        **git_tags(),
    }
    run = tracker.start_run(job.name, tags, job.parent)
    try:
        run.log_params(_params(tree, job.choices))
        run.log_file(_write_config(tree, job.output))
        experiment = Experiment(
            config, dataset, vae, objective, questions, run, console, job.output
        )
        trained, last_epoch = experiment.train()
        save_model(job.output / "model", vae, blueprint)  # before anything else can fail
        run.log_file(job.output / "model", "model")
        evaluation = experiment.evaluate(last_epoch)
        run.log_metrics(trained, last_epoch)
        notes += advice(evaluation, questions)
        experiment.show(evaluation, notes)
        result = JobResult(
            job.name,
            dict(job.settings),
            config.latent_dim,
            x=x,
            images=identify_x(dataset, likelihood),
            log_cell_volume=log_cell_volume(likelihood, dataset.image_shape),
            metrics=evaluation.metrics | trained,
        )
        result.write(job.output)
        shutil.rmtree(job.output / "evaluation", ignore_errors=True)  # all of it is in the tables
    except Exception as error:
        with suppress(
            Exception
        ):  # the tracker may be what failed; the first error is the one to tell
            run.end("FAILED")
            run.describe(f"Failed: {error}")
        raise
    except BaseException:  # Ctrl-C
        run.end("KILLED")
        raise
    run.end("FINISHED")
    return result


def _questions(options: EvaluationOptions, vae: VAE) -> tuple[Questions, list[str]]:
    """What is asked of this VAE, and a line for every estimator that has no answer for it.

    Raises:
        ConfigError: where an estimator or an option of it is not one, or images are to be simulated
            for nobody.
        EstimatorError: where an estimator has no answer and is not to be skipped.
    """
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
    if options.simulated_images and not any(isinstance(e, AIS) for e in estimators.values()):
        why = "simulated_images: they are for AIS, which is not among evaluation/estimators"
        if options.inapplicable == "refuse":
            raise ConfigError(f"evaluation.{why}; add ais, or ask for 0")
        notes.append(f"{why}, so none were made")
    questions = Questions(
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


def _params(tree: Mapping[str, Any], choices: Mapping[str, str]) -> dict[str, Any]:
    return {**choices, **flatten(_without_passwords(tree))}


def _write_config(tree: Mapping[str, Any], output: Path) -> Path:
    path = output / "config.yaml"
    write_atomically(path, OmegaConf.to_yaml(_without_passwords(tree)).encode())
    return path


def _without_passwords(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_passwords(value)
        if isinstance(value, Mapping)
        else without_passwords(value)
        if isinstance(value, str)
        else value
        for key, value in tree.items()
    }
