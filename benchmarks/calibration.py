"""Do the intervals and ranks of ``vp.compare`` hold? Simulated models whose log p(x) is known.

x ~ N(0, I) in ten dimensions. A configuration is a linear-Gaussian model that is wrong in one
direction; training seeds move its mean. What is expected of log p(x), over seeds and images, has a
closed form, so that intervals that hold it can be counted.
"""

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from benchmarks.contest import ROOT, write
from vae_pyro.evaluation import Comparison, Difference, Scores
from vae_pyro.evaluation.difference import LEVEL

DIMS = 10
NUM_IMAGES = 300
REPEATS = 1000
MONTE_CARLO = 0.05  # nats, the standard error of every image's estimate
TAUS = (0.05, 0.1, 0.2, 0.3)
SEEDS = (3, 5)
MODELS = (3, 8)
RESAMPLES = 500


def wrong_in(direction: int | None) -> Tensor:
    """The variances of x under a model that is wrong in one direction, or in none."""
    variance = torch.ones(DIMS, dtype=torch.float64)
    if direction is not None:
        variance[direction] = 0.7
    return variance


def expected_log_px(variance: Tensor, tau: float) -> float:
    """E log N(x | m, variance) over x ~ N(0, I) and m ~ N(0, tau^2 I), nats."""
    terms = (2 * math.pi * variance).log() / 2 + (1 + tau**2) / (2 * variance)
    return -terms.sum().item()


def simulate(
    variances: Sequence[Tensor],
    tau: float,
    seeds: int,
    generator: torch.Generator,
    images: int = NUM_IMAGES,
) -> Comparison:
    """One experiment: every configuration trained with so many seeds, on common test images.

    Args:
        variances: of x under each configuration.
        tau: standard deviation of what a seed does to the model's mean.
        seeds: of each configuration.
        generator: of all random numbers.
        images: in the test set.
    """
    x = torch.randn(images, DIMS, generator=generator, dtype=torch.float64)
    scores = {}
    for number, variance in enumerate(variances):
        means = tau * torch.randn(seeds, 1, DIMS, generator=generator, dtype=torch.float64)
        log_px = torch.distributions.Normal(means, variance.sqrt()).log_prob(x).sum(-1)
        noise = torch.randn(log_px.shape, generator=generator, dtype=torch.float64)
        std_error = torch.full_like(log_px, MONTE_CARLO)
        scores[str(number)] = Scores(log_px + MONTE_CARLO * noise, std_error)
    return Comparison(scores)


Interval = Callable[[Comparison, torch.Generator], tuple[float, float]]


def _difference(comparison: Comparison) -> Difference:
    return comparison.difference("0", "1")


def satterthwaite(comparison: Comparison, _: torch.Generator) -> tuple[float, float]:
    """What ``vp.compare`` returns."""
    return _difference(comparison).interval()


def bootstrap(comparison: Comparison, generator: torch.Generator) -> tuple[float, float]:
    """Percentiles of the difference for resampled seeds (each by itself) and resampled images."""
    images = comparison.scores["0"].num_images
    ones = torch.ones(images, dtype=torch.float64)
    drawn = ones.multinomial(RESAMPLES * images, replacement=True, generator=generator)
    counts = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    counts.scatter_add_(1, drawn.reshape(RESAMPLES, images), torch.ones_like(counts))
    means = []
    for scores in comparison.scores.values():
        of_seeds = counts @ scores.value.T / images  # (resamples, seeds)
        number = scores.num_seeds
        chosen = torch.randint(number, (RESAMPLES, number), generator=generator)
        means.append(of_seeds.gather(1, chosen).mean(1))
    tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = (means[0] - means[1]).quantile(tails).tolist()
    return low, high


def images_alone(comparison: Comparison, _: torch.Generator) -> tuple[float, float]:
    """Paired over images, as if other seeds gave the same weights."""
    a, b = (scores.value.mean(0) for scores in comparison.scores.values())
    return _normal((a - b).mean().item(), ((a - b).std() / len(a) ** 0.5).item())


def monte_carlo(comparison: Comparison, _: torch.Generator) -> tuple[float, float]:
    """By the Monte Carlo errors, as tables of log p(x) ± often are read."""
    difference = _difference(comparison)
    return _normal(difference.value, difference.monte_carlo_std_error)


def _normal(mean: float, std_error: float) -> tuple[float, float]:
    return mean - 1.96 * std_error, mean + 1.96 * std_error


METHODS: dict[str, Interval] = {
    "satterthwaite": satterthwaite,
    "bootstrap": bootstrap,
    "images": images_alone,
    "monte_carlo": monte_carlo,
}


@dataclass(frozen=True)
class Calibration:
    """Of one size of the seeds' effect and one number of seeds.

    Attributes:
        tau: see ``simulate``.
        seeds: likewise.
        seed_std: what another seed moves log p(x) by, nats.
        residual_std: what seed and image do together.
        equal, different: by method, the share of 95% intervals that hold the true difference.
        false_ranks: by the number of equal configurations, how often any of them is ranked.
    """

    tau: float
    seeds: int
    seed_std: float
    residual_std: float
    equal: dict[str, float]
    different: dict[str, float]
    false_ranks: dict[int, float]


def coverage(models: Sequence[Tensor], tau: float, seeds: int, repeats: int) -> dict[str, float]:
    """By method, the share of intervals that hold the true difference of two configurations."""
    generator = torch.Generator().manual_seed(seeds)
    truth = expected_log_px(models[0], tau) - expected_log_px(models[1], tau)
    hits = dict.fromkeys(METHODS, 0)
    for _ in range(repeats):
        comparison = simulate(models, tau, seeds, generator)
        for name, interval in METHODS.items():
            low, high = interval(comparison, generator)
            hits[name] += low <= truth <= high
    return {name: count / repeats for name, count in hits.items()}


def false_ranks(models: int, tau: float, seeds: int, repeats: int) -> float:
    """How often so many equal configurations are not all ranked ``1-<models>``."""
    generator = torch.Generator().manual_seed(seeds)
    equal = [wrong_in(direction) for direction in range(models)]
    wrong = 0
    for _ in range(repeats):
        ranks = simulate(equal, tau, seeds, generator).ranks.values()
        wrong += any(rank != (1, models) for rank in ranks)
    return wrong / repeats


def calibrate(tau: float, seeds: int, repeats: int = REPEATS) -> Calibration:
    """All shares of one row of the table."""
    return Calibration(
        tau,
        seeds,
        tau**2 * math.sqrt(DIMS / 2),
        tau * math.sqrt(DIMS),
        coverage((wrong_in(0), wrong_in(1)), tau, seeds, repeats),
        coverage((wrong_in(None), wrong_in(1)), tau, seeds, repeats),
        {models: false_ranks(models, tau, seeds, repeats) for models in MODELS},
    )


HEADER = [
    "seeds' s.d., nats",
    "seeds",
    "vp.compare, equal",
    "different",
    "bootstrap, equal",
    "different",
    "images alone",
    "Monte Carlo ±",
    *(f"{models} equals ranked" for models in MODELS),
]


def row(found: Calibration) -> list[str]:
    """One line of the table."""
    return [
        f"{found.seed_std:.2g}",
        str(found.seeds),
        f"{found.equal['satterthwaite']:.1%}",
        f"{found.different['satterthwaite']:.1%}",
        f"{found.equal['bootstrap']:.1%}",
        f"{found.different['bootstrap']:.1%}",
        f"{found.equal['images']:.1%}",
        f"{found.equal['monte_carlo']:.1%}",
        *(f"{share:.1%}" for share in found.false_ranks.values()),
    ]


def main() -> None:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # statsmodels collects garbage at every call: of what is new alone
    rows, result = [], []
    for tau in TAUS:
        for seeds in SEEDS:
            found = calibrate(tau, seeds)
            result.append(asdict(found))
            rows.append(row(found))
            print(" ".join(rows[-1]), flush=True)
    gc.unfreeze()
    page = ROOT / "docs" / "comparing_models.md"
    write("calibration", {"repeats": REPEATS, "rows": result}, [HEADER, *rows], page)
