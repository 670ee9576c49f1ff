"""Is log p(x) right? Adaptive importance sampling and the guide's own, against a reference.

Every cell is a trained VAE: all likelihoods on digits, two on MNIST, several latent dimensions.
Both estimators have the same budget, and are repeated with several evaluation seeds.
"""

import itertools
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from operator import truediv
from pathlib import Path

import torch
from torch import Tensor

import vae_pyro as vp
from benchmarks.contest import RESULTS, ROOT, device, write
from vae_pyro.compilation import accelerated
from vae_pyro.data import Dataset
from vae_pyro.log_marginal import (
    AIS,
    AdaptiveImportanceSampling,
    Estimate,
    Estimator,
    ImportanceSampling,
    Quadrature,
)
from vae_pyro.log_marginal.diagnostics import high_pareto_k
from vae_pyro.log_marginal.estimate import with_error
from vae_pyro.log_marginal.quadrature import MAX_DIM
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

BUDGET = 5000  # decoder evaluations per image, adaptation included
NUM_IMAGES = 100
NUM_SEEDS = 30  # of the evaluation
GUIDE_SEEDS = 5
LIKELIHOODS = {
    "bernoulli": "Bernoulli",
    "beta": "Beta",
    "categorical": "Categorical",
    "continuous_bernoulli": "ContinuousBernoulli",
    "discretized_logistic_mixture": "DiscretizedLogisticMixture",
    "normal": "Normal",
    "normal_heteroscedastic": "NormalHeteroscedastic",
    "normal_learned_scale": "NormalLearnedScale",
}


@dataclass(frozen=True)
class Cell:
    """One trained VAE.

    Attributes:
        data: ``digits`` or ``mnist``.
        likelihood: as in the configuration.
        latent_dim: latent dimensions.
    """

    data: str
    likelihood: str
    latent_dim: int

    def __str__(self) -> str:
        return f"{self.data}, {self.likelihood}, d = {self.latent_dim}"

    @property
    def file(self) -> Path:
        """Where weights and reference are kept; remove it to make them anew."""
        return RESULTS / f"accuracy-{self.data}-{self.likelihood}-{self.latent_dim}.pt"

    def dataset(self) -> Dataset:
        """The images."""
        if self.data == "digits":
            return vp.data.Digits().load()
        return vp.data.MNIST(root=os.environ.get("VAE_PYRO_DATA", "data")).load()

    def trained(self) -> tuple[VAE, Tensor, Estimate]:
        """The VAE, the first test images, and the reference for log p(x) of each."""
        data = self.dataset()
        likelihood = getattr(vp.likelihoods, LIKELIHOODS[self.likelihood])(data.num_levels)
        vae = vp.build_vae(self.latent_dim, data.image_shape, likelihood=likelihood).to(device())
        if self.file.exists():
            kept = torch.load(self.file, weights_only=True)
            vae.load_state_dict(kept["weights"])
        else:
            epochs, batch_size = (60, 64) if self.data == "digits" else (20, 128)
            vp.fit(vae, data, epochs=epochs, batch_size=batch_size, seed=0, progress=False)
            kept = {"weights": vae.state_dict()}
        vae.eval()
        x = data.prepared("test", vae, NUM_IMAGES)
        if "value" not in kept:
            estimate = estimated(self.reference, vae, x, seed=0)
            kept |= {"value": estimate.value, "std_error": estimate.std_error}
            torch.save(kept, self.file)
        return vae, x, Estimate(kept["value"], kept["std_error"], vp.log_marginal.Bound.NUMERIC)

    @property
    def has_grid(self) -> bool:
        """Whether quadrature is the reference."""
        return self.latent_dim <= MAX_DIM

    @property
    def reference(self) -> Estimator:
        """Quadrature, or AIS with 1,000 temperatures where there are too many dimensions."""
        return Quadrature() if self.has_grid else AIS(num_temperatures=1000)


CELLS = [
    *(Cell("digits", name, dim) for dim in (2, 10) for name in LIKELIHOODS),
    *(
        Cell("mnist", name, dim)
        for dim in (2, 10, 20)
        for name in ("bernoulli", "normal_learned_scale")
    ),
]


def estimated(estimator: Estimator, vae: VAE, x: Tensor, seed: int) -> Estimate:
    """The estimator's result for all images, with random numbers fixed by the seed."""
    with RandomStream("accuracy", seed, x.device).active():
        return estimator(vae, x)


@dataclass(frozen=True)
class Measured:
    """One estimator in one cell.

    Attributes:
        difference: mean over seeds and images of estimate - reference, nats per image.
        difference_std_error: of it; the reference's own error is contained.
        pareto_k_high: share of estimates with a k-hat above its threshold.
        untrusted: share of estimates whose error bar is not trusted.
        z: standard deviation of (estimate - reference) / standard error, over images and seeds.
        spread: empirical standard deviation of an image's estimate over the seeds / the stated
            standard error, both root mean squares over the images.
        median_spread: the same ratio for each image, and of these the median.
        disagreeing: share of the images, over pairs of seeds, whose two estimates differ by more
            than their error bars allow (``Estimate.checked_by``).
        effective: effective sample size / number of weights.
        seconds: of each seed, for all images.
    """

    difference: float
    difference_std_error: float
    pareto_k_high: float
    untrusted: float
    z: float
    spread: float
    median_spread: float
    disagreeing: float
    effective: float
    seconds: Sequence[float]


def summary(
    estimates: Sequence[Estimate], seconds: Sequence[float], reference: Estimate
) -> Measured:
    """What the estimates with several seeds show together."""
    value = torch.stack([e.value for e in estimates])
    std_error = torch.stack([e.std_error for e in estimates])
    k = torch.stack([e.diagnostics["pareto_k"] for e in estimates])
    ess = torch.stack([e.diagnostics["effective_sample_size"] for e in estimates])
    all_images = torch.arange(len(reference.value))
    pairs = [
        a.checked_by(b, all_images).disagreeing
        for a, b in zip(estimates[::2], estimates[1::2], strict=False)
    ]
    apart = value - reference.value
    number = len(reference.value)
    means = value.mean(1)
    return Measured(
        apart.mean().item(),
        math.hypot(
            (means.std() / math.sqrt(len(means))).item(),
            (reference.std_error.square().sum().sqrt() / number).item(),
        ),
        (k > high_pareto_k(estimates[0].num_weights or BUDGET)).double().mean().item(),
        torch.stack([~e.trusted for e in estimates]).double().mean().item(),
        (apart / std_error).std().item(),
        (value.var(0).mean().sqrt() / std_error.square().mean().sqrt()).item(),
        (value.std(0) / std_error.square().mean(0).sqrt()).median().item(),
        torch.stack(pairs).double().mean().item(),
        (ess / (estimates[0].num_weights or BUDGET)).mean().item(),
        seconds,
    )


def measure(cell: Cell) -> dict[str, Measured]:
    """Both estimators with all seeds, in turns."""
    vae, x, reference = cell.trained()
    estimators: dict[str, tuple[Estimator, int]] = {
        "adaptive": (AdaptiveImportanceSampling(BUDGET), NUM_SEEDS),
        "guide": (ImportanceSampling(BUDGET), GUIDE_SEEDS),
    }
    found: dict[str, list[Estimate]] = {name: [] for name in estimators}
    seconds: dict[str, list[float]] = {name: [] for name in estimators}
    # Compiled where the whole test set is: digits are too few to repay it.
    with accelerated(x.device, mode=cell.data == "mnist"):
        for seed, (name, (estimator, seeds)) in itertools.product(
            range(-1, NUM_SEEDS), estimators.items()
        ):
            if seed < seeds:
                start = time.perf_counter()
                estimate = estimated(estimator, vae, x, seed)
                if seed >= 0:  # the first of each warms up
                    seconds[name].append(time.perf_counter() - start)
                    found[name].append(estimate)
    return {name: summary(found[name], seconds[name], reference) for name in estimators}


def _alone() -> None:
    torch.set_num_threads(1)


def main() -> None:
    workers = len(os.sched_getaffinity(0))
    rows = []
    result = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _alone) as pool:
        for cell, found in zip(CELLS, pool.map(measure, CELLS), strict=True):
            result[str(cell)] = {name: asdict(measured) for name, measured in found.items()}
            rows.append(row(cell, found))
            print(" ".join(rows[-1]), flush=True)
    write("accuracy", {"cells": result}, [HEADER, *rows], ROOT / "docs" / "accuracy.md")


HEADER = [
    "VAE",
    "guide: difference",
    "guide: high k-hat",
    "adaptive: difference",
    "high k-hat",
    "z",
    "spread",
    "median",
    "disagree",
    "ESS / weights",
    "time",
]


def row(cell: Cell, found: dict[str, Measured]) -> list[str]:
    """One line of the table."""
    guide, adaptive = found["guide"], found["adaptive"]
    return [
        str(cell),
        f"{guide.difference:+.2f}",
        f"{guide.pareto_k_high:.0%}",
        with_error(adaptive.difference, adaptive.difference_std_error),
        f"{adaptive.pareto_k_high:.1%}",
        f"{adaptive.z:.2f}" if cell.has_grid else "",
        f"{adaptive.spread:.2f}",
        f"{adaptive.median_spread:.2f}",
        f"{adaptive.disagreeing:.2%}",
        f"{adaptive.effective:.2f}",
        f"{statistics.median(map(truediv, adaptive.seconds, guide.seconds)):.2f}",
    ]
