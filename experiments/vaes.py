"""The VAEs that experiments need; each is trained once, as a job of ``run.py``, and shared."""

import logging
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor

from vae_pyro.cli.console import explain
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
        overrides: of the configuration, as on the command line; they come after the user's.
        groups: whole groups that replace those of the configuration.
    """

    overrides: Sequence[str] = ()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """A trained VAE and what it was trained on.

    Attributes:
        vae: on the experiment's device, in evaluation mode.
        metrics: the final metrics of its job, by name.
        dataset: its images, in memory.
        seed: its training seed.
    """

    vae: VAE
    metrics: Mapping[str, float]
    dataset: Dataset
    seed: int

    def x(self, split: Literal["train", "valid", "test"], num_images: int | None = None) -> Tensor:
        """The first images of a split, or all of them: see ``Dataset.prepared``."""
        return self.dataset.prepared(split, self.vae)[:num_images]


def run_jobs(
    jobs: Sequence[tuple[dict[str, Any], Job]], workers: int, show: Callable[[str], None]
) -> list[dict[str, float]]:
    """Train the VAE of every job, or read the result of one that was trained before.

    Args:
        jobs: the arguments of ``vae_pyro.runs.job.run_job``.
        workers: number of processes, each with one thread; with 1 all jobs run in this process.
        show: prints one line of progress.

    Returns:
        the metrics of each job.

    Raises:
        UserError: the error of the first job that failed; results of the others are kept.
    """
    numbers = []
    if workers == 1:
        for done, (tree, job) in enumerate(jobs):
            show(f"VAE {done + 1} of {len(jobs)}: {job.name}")
            numbers.append(_train(tree, job))
        return numbers
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["experiments.vaes"])
    with ProcessPoolExecutor(workers, processes) as pool:
        try:
            futures = [pool.submit(_train_alone, tree, job) for tree, job in jobs]
            for done, ((_, job), future) in enumerate(zip(jobs, futures, strict=True)):
                numbers.append(future.result())
                show(f"VAE {done + 1} of {len(jobs)}: {job.name}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()  # which leaves a checkpoint
            raise
    return numbers


def _train_alone(tree: dict[str, Any], job: Job) -> dict[str, float]:
    """Train in a process of its own: a signal ends it, and its errors can be pickled."""
    torch.set_num_threads(1)
    try:
        with interruptible():
            return _train(tree, job)
    except Interrupted as interruption:
        os._exit(interruption.status)
    except Exception as error:
        raise UserError(f"{job.name}: {explain(error)}") from None


def _train(tree: dict[str, Any], job: Job) -> dict[str, float]:
    with open(os.devnull, "w") as nowhere, _without_notes(), claim(job.output):
        return run_job(tree, job, Console(file=nowhere)).metrics


@contextmanager
def _without_notes() -> Iterator[None]:
    """The experiment reports for its VAEs; a job that fails still raises its error."""
    logger = logging.getLogger("vae_pyro")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
