"""One job, start to finish: data -> train -> evaluate -> record."""

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from rich.console import Console

from vae_pyro import evaluation, visualization
from vae_pyro.checkpoint import Blueprint, save_model, write_atomically
from vae_pyro.config import Config, build, flatten, parse_config, without_passwords
from vae_pyro.data import Dataset, ImageSource, batches
from vae_pyro.errors import ConfigError
from vae_pyro.latent import posterior_means
from vae_pyro.likelihoods import Support
from vae_pyro.networks import Network
from vae_pyro.objectives import Objective
from vae_pyro.progress import show_progress
from vae_pyro.provenance import describe_x, fingerprint, git_tags, identify_x
from vae_pyro.randomness import RandomStream
from vae_pyro.results import JobResult
from vae_pyro.tracking import Run, Tracker
from vae_pyro.training import EpochRecord, train, try_out
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
        experiment = _Experiment(config, dataset, vae, objective, run, console, job)
        trained, last_epoch = experiment.train()
        save_model(job.output / "model", vae, blueprint)  # before anything else can fail
        run.log_file(job.output / "model", "model")
        metrics = experiment.evaluate(trained, last_epoch)
        result = JobResult(
            job.name,
            dict(job.settings),
            config.latent_dim,
            x=x,
            images=identify_x(dataset, likelihood),
            log_cell_volume=evaluation.log_cell_volume(likelihood, dataset.image_shape),
            metrics=metrics,
        )
        result.write(job.output)
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
    share = metrics["test/pareto_k_high"]
    if share > 0.1:
        console.print(
            f"note: for {share:.0%} of the test images Pareto k-hat is above 0.7, so log p(x) may "
            "lie higher than shown: raise evaluation.num_samples",
            highlight=False,
        )
    return result


@dataclass(frozen=True)
class _Experiment:
    config: Config
    dataset: Dataset
    vae: VAE
    objective: Objective
    run: Run
    console: Console
    job: Job

    def evaluate(self, trained: Mapping[str, float], epoch: int) -> dict[str, float]:
        """Test and draw; returns the final metrics, those of the training among them."""
        metrics = {**self._test(), **trained}
        self.run.log_metrics(metrics, step=epoch)
        self._draw_bounds(metrics)
        return metrics

    def _stream(self, name: str) -> RandomStream:
        return RandomStream(name, self.config.seed, self.dataset.train.images.device)

    def _held_out(self, split: Literal["valid", "test"], draws: int = 1) -> torch.Tensor:
        images = getattr(self.dataset, split).images
        generator = self.dataset.held_out_stream(split).generator
        x = [self.vae.model.likelihood.prepare(images.cpu(), generator) for _ in range(draws)]
        return torch.cat(x).to(images.device)

    def train(self) -> tuple[dict[str, float], int]:
        """Train, recording every epoch; leaves the VAE with the weights to be kept.

        Returns:
            the seconds spent on steps and the epoch whose weights are kept; and the last epoch.
        """
        training, likelihood = self.config.training, self.vae.model.likelihood
        order = self._stream("batches").generator
        valid_x, test_x = self._held_out("valid"), self._held_out("test")
        on_the_way = snapshot_epochs(training.epochs, training.snapshots) - {training.epochs}
        records = train(
            self.vae,
            self.objective,
            lambda: batches(
                self.dataset.train.images,
                lambda images: likelihood.prepare(images, order),
                training.batch_size,
                order,
            ),
            epochs=training.epochs,
            learning_rate=training.learning_rate,
            noise=self._stream("training"),
        )
        self._draw(test_x, 0)
        seconds, kept, best = 0.0, 0, -math.inf
        weights: dict[str, torch.Tensor] = {}
        with show_progress("training", training.epochs, self.console) as report:
            for record in records:
                seconds += record.seconds
                # The same draws every epoch: what moves between epochs is the model.
                with self._stream("validation").active():
                    valid = evaluation.validate(self.vae, valid_x, training.valid_samples)
                self.run.log_metrics({**_train_metrics(record), **valid}, record.epoch)
                # While the objective warms up, a high ELBO is of another one than was asked for.
                settled = self.objective.at_epoch(record.epoch) == self.objective
                if training.keep == "last" or not settled or not valid["valid/elbo"] <= best:
                    kept, best = record.epoch, valid["valid/elbo"] if settled else -math.inf
                    weights = {k: v.clone() for k, v in self.vae.state_dict().items()}
                report(record.epoch, f"valid ELBO {valid['valid/elbo']:.2f} nats")
                if training.keep == "best" and record.epoch - kept >= training.patience:
                    break
                if record.epoch in on_the_way:
                    self._draw(test_x, record.epoch)
        if record.epoch < training.epochs:
            self.console.print(
                f"training ended with epoch {record.epoch}: no better valid ELBO since {kept}",
                highlight=False,
            )
        self.vae.load_state_dict(weights)
        self._draw(test_x, record.epoch)
        return {"time/train_seconds": seconds, "train/kept_epoch": float(kept)}, record.epoch

    def _test(self) -> dict[str, float]:
        log_cell_width = self.vae.model.likelihood.log_cell_width
        draws = self.config.evaluation.dequantisations if log_cell_width else 1
        x = self._held_out("test", draws)
        num_samples = self.config.evaluation.num_samples
        start = time.perf_counter()
        with (
            show_progress("evaluating", num_samples * len(x), self.console) as report,
            self._stream("evaluation").active(),
        ):
            metrics = evaluation.evaluate(
                self.vae,
                x,
                num_samples,
                self.config.evaluation.iwae_samples,
                lambda done, elbo: report(done, f"ELBO {elbo:.2f} nats"),
                draws,
            )
        if self.dataset.log_prob is not None:
            metrics["test/log_px_true"] = self.dataset.log_prob(x).mean().item()
        metrics["time/evaluate_seconds"] = time.perf_counter() - start
        return metrics

    def _draw(self, test_x: torch.Tensor, epoch: int) -> None:
        means = posterior_means(self.vae, test_x)
        labels = self.dataset.test.labels
        with self._stream("pictures").active():
            figures = {
                "samples": visualization.sample_grid(self.vae),
                "reconstructions": visualization.reconstruction_grid(self.vae, test_x[:64]),
                "latent_space": visualization.latent_figure(self.vae, means, labels),
            }
        for key, figure in figures.items():
            pixels = visualization.render(figure)
            self.run.log_image(key, pixels, epoch)
            write_atomically(self.job.output / f"{key}.png", visualization.png(pixels))

    def _draw_bounds(self, metrics: Mapping[str, float]) -> None:
        def with_error(name: str) -> tuple[float, float]:
            return metrics[f"test/{name}"], metrics[f"test/{name}_std_error"]

        bounds = {k: with_error(f"iwae_{k}") for k in self.config.evaluation.iwae_samples}
        figure = visualization.bounds_figure(
            {**bounds, 1: with_error("elbo")},
            with_error("log_px"),
            self.config.evaluation.num_samples,
        )
        path = self.job.output / "elbo_vs_iwae.png"
        figure.savefig(path)
        self.run.log_file(path)


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


def snapshot_epochs(epochs: int, snapshots: int) -> set[int]:
    """0 (before training), and up to ``snapshots`` epochs from 1 to the last.

    They lie ever further apart, because most changes are early.
    """
    steps = snapshots - 1
    return {0, epochs} | {round(epochs ** (i / steps)) for i in range(steps)}


def _train_metrics(record: EpochRecord) -> dict[str, float]:
    metrics = {"train/elbo": record.elbo, "train/elbo_std_error": record.elbo_std_error}
    if record.objective is not None and record.objective_std_error is not None:
        metrics["train/objective"] = record.objective
        metrics["train/objective_std_error"] = record.objective_std_error
    return metrics


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
