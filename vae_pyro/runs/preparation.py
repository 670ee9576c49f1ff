"""Prepare: from a checked configuration to the parts of a job, before a run is opened."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from vae_pyro.config import Config, EvaluationConfig, build
from vae_pyro.data import Dataset, ImageSource
from vae_pyro.errors import ConfigError, DataError, EstimatorError
from vae_pyro.evaluation import EvaluationPlan, first_ais, require_free_names
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import Estimator
from vae_pyro.log_marginal.adaptive import LEAST_EVALUATIONS
from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.runs.cores import CoreMeter, crowding
from vae_pyro.runs.fingerprint import describe_x
from vae_pyro.saving import Blueprint
from vae_pyro.tracking import Tracker
from vae_pyro.training import Optimizer, Schedule
from vae_pyro.training.trial import try_out
from vae_pyro.vae import VAE

logger = logging.getLogger(__name__)

_MOST_TIMES = 10  # as many decoder evaluations for log p(x) as samples of the guide


@dataclass(frozen=True)
class Parts:
    """What a configuration names, built and checked together.

    Attributes:
        device: where the job computes.
        tracker: where it is recorded.
        dataset: on the device.
        blueprint: how the VAE was built.
        vae: on the device, with its initial weights.
        objective: what training maximises.
        optimizer: how its gradients move the weights.
        schedule: of the learning rate.
        plan: what is measured of the trained VAE.
        notes: a line for every measurement that was left out, because it does not apply.
        x: what log p(x) is of, for instance ``digits: binary pixels``.
    """

    device: torch.device
    tracker: Tracker
    dataset: Dataset
    blueprint: Blueprint
    vae: VAE
    objective: Objective
    optimizer: Optimizer
    schedule: Schedule
    plan: EvaluationPlan
    notes: list[str]
    x: str

    @property
    def likelihood(self) -> Likelihood:
        """That of the VAE's model."""
        return self.vae.model.likelihood


def prepare(config: Config, choices: Mapping[str, str]) -> Parts:
    """Build every part of a job, and check that they fit: nothing is written yet.

    Args:
        config: the job's configuration.
        choices: the option chosen in every group, by group.

    Raises:
        ConfigError: where a part cannot be built, or parts do not fit.
        DataError: where the data are missing or damaged, or the likelihood cannot score them.
        EstimatorError: where an estimator does not apply to the VAE and is not to be skipped.
    """
    meter, device = CoreMeter(), choose_device(config.device)
    tracker = build(config.tracking, Tracker, "tracking")
    source = build(config.data, ImageSource, "data")
    objective = build(config.objective, Objective, "objective")
    optimizer = build(config.optimizer, Optimizer, "optimizer")
    schedule = build(config.schedule, Schedule, "schedule")
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
    dataset = dataset.for_likelihood(likelihood)
    train_x = None
    if blueprint.starts_at_data:
        generator = RandomStream("output bias", config.seed).generator
        train_x = likelihood.prepare(dataset.train.images, generator)
    with RandomStream("initial weights", config.seed).active():
        vae = blueprint.build(train_x).to(device).eval()
    dataset = dataset.to(device)
    check_support(dataset, likelihood, config.seed)
    first = RandomStream("first try", config.seed, device)
    few = likelihood.prepare(dataset.valid.images[:2], first.generator)
    with first.active():
        try_out(vae, objective, few)
    plan, notes = _plan(config.evaluation, vae)
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    if (crowded := crowding(threads, meter.others())) is not None:
        logger.info(crowded)
    x = describe_x(choices.get("data", ""), source.binarisation, likelihood)
    return Parts(
        device,
        tracker,
        dataset,
        blueprint,
        vae,
        objective,
        optimizer,
        schedule,
        plan,
        notes,
        x,
    )


def check_support(dataset: Dataset, likelihood: Likelihood, seed: int) -> None:
    """Refuse data that the likelihood cannot score, in whichever split, before training.

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


def _plan(options: EvaluationConfig, vae: VAE) -> tuple[EvaluationPlan, list[str]]:
    """What is measured of this VAE, and a line for every estimator that does not apply to it.

    Raises:
        ConfigError: where an estimator or one of its options does not exist, its name is taken, or
            images are to be simulated and no estimator uses them.
        EstimatorError: where an estimator does not apply and is not to be skipped.
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
    plan = EvaluationPlan(
        options.num_samples,
        options.iwae_samples,
        estimators,
        options.num_images,
        options.simulated_images,
        options.latent,
        options.num_evaluations or num_evaluations(options.num_samples, vae.model.latent_dim),
        options.repeated_images,
    )
    return plan, notes


def num_evaluations(num_samples: int, latent_dim: int) -> int:
    """Of the decoder per image, for log p(x): a fit in many dimensions needs more of them."""
    times = min(3 + 0.35 * latent_dim, _MOST_TIMES)
    return max(LEAST_EVALUATIONS, round(times * num_samples))


def choose_device(name: str) -> torch.device:
    """``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: where the device is ``cuda`` and there is no GPU.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "device=cuda: no CUDA GPU is available here; use device=auto or device=cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")
