"""Trained VAEs: each is a job as of ``run.py``, kept for every experiment that needs it."""

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from vae_pyro.cli.app import explain
from vae_pyro.data import Dataset
from vae_pyro.errors import UserError
from vae_pyro.interruption import Interrupted, interruptible
from vae_pyro.runs.folder import claim
from vae_pyro.runs.job import Job, run_job
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class VAESpec:
    """One VAE that an experiment needs.

    Attributes:
        overrides: of the configuration, as on the command line; these win over the user's.
        groups: whole groups that take the place of the configuration's own.
    """

    overrides: Sequence[str] = ()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A trained VAE and what it was trained on.

    Attributes:
        vae: on the experiment's device, in evaluation mode.
        metrics: of its job, by their contract names.
        dataset: its images, in memory.
        seed: of its job.
    """

    vae: VAE
    metrics: Mapping[str, float]
    dataset: Dataset
    seed: int

    def x(self, split: Literal["train", "valid", "test"], num_images: int | None = None) -> Tensor:
        """The first images of a split as the likelihood scores them, ``(N, C, H, W)``.

        The draw is the same in every job; of the test split it is that of ``test/log_px``.
        """
        images = getattr(self.dataset, split).images
        prepare = self.vae.model.likelihood.prepare
        x: Tensor = prepare(images, self.dataset.held_out_stream(split).generator)  # type: ignore[arg-type]
        return x[:num_images].to(self.vae.model.origin.device)


def run_jobs(
    jobs: Sequence[tuple[dict[str, Any], Job]], workers: int, tell: Callable[[str], None]
) -> list[dict[str, float]]:
    """Train every job's VAE, or read back what was trained before; some at once.

    Args:
        jobs: configurations and jobs of ``vae_pyro.runs.job.run_job``.
        workers: processes, each of one thread; with 1 this process does it all.
        tell: shows one line.

    Returns:
        the jobs' metrics.

    Raises:
        UserError: of the first job that failed; what the others had done is kept.
    """
    numbers = []
    if workers == 1:
        for done, (tree, job) in enumerate(jobs):
            tell(f"VAE {done + 1} of {len(jobs)}: {job.name}")
            numbers.append(_train(tree, job))
        return numbers
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.vaes"])
    with ProcessPoolExecutor(workers, context) as pool:
        try:
            futures = [pool.submit(_train_alone, tree, job) for tree, job in jobs]
            for done, ((_, job), future) in enumerate(zip(jobs, futures, strict=True)):
                numbers.append(future.result())
                tell(f"VAE {done + 1} of {len(jobs)}: {job.name}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # which leaves a checkpoint
            raise
    return numbers


def _train_alone(tree: dict[str, Any], job: Job) -> dict[str, float]:
    """In a process of its own, which a signal ends, and whose errors can be sent on."""
    torch.set_num_threads(1)
    try:
        with interruptible():
            return _train(tree, job)
    except Interrupted as interruption:
        os._exit(interruption.status)
    except Exception as error:
        raise UserError(f"{job.name}: {explain(error)}") from None


def _train(tree: dict[str, Any], job: Job) -> dict[str, float]:
    with open(os.devnull, "w") as nowhere, claim(job.output):
        return run_job(tree, job, Console(file=nowhere)).metrics
