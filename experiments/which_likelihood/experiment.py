"""The same VAE with every likelihood: bits per dimension, and the look of means and samples."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, label
from experiments.numbers import Number, Verdict, above, all_of, below, lowest, over_seeds
from experiments.vaes import Trained, VAESpec
from vae_pyro.likelihoods import Likelihood, Support
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting.figures import tile

ALL = (
    "bernoulli",
    "categorical",
    "discretized_logistic_mixture",
    "beta",
    "continuous_bernoulli",
    "normal_heteroscedastic",
    "normal_learned_scale",
    "normal",
)
KINDS = ("mean", "draw")


@dataclass(frozen=True)
class LikelihoodOptions(Options):
    """Options of this experiment.

    Args:
        likelihoods: choices of ``likelihood=``; two or more.
        latent_dim: of every VAE.
        images: number of images of each VAE that are compared with test images.
    """

    likelihoods: tuple[str, ...] = ALL
    latent_dim: int = 10
    images: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.likelihoods) < 2:
            raise ValueError("likelihoods: needs two or more")
        self.at_least(images=20)


def run(context: Context) -> Result:
    names = context.options.likelihoods
    size = f"latent_dim={context.options.latent_dim}"
    trained = dict(
        zip(names, context.train([VAESpec((f"likelihood={n}", size)) for n in names]), strict=True)
    )
    numbers: dict[str, Number] = {}
    pictures = {}
    for name, vaes in trained.items():
        context.tell(f"pictures of {name}")
        looks = [look(t, context.options.images) for t in vaes]
        for measure in ("sharpness", "told_apart"):
            for kind in KINDS:
                values = [measures[f"{measure}.{kind}"] for measures, _ in looks]
                numbers[f"{measure}.{kind}.{name}"] = over_seeds(values, UNITS[measure])
        off = {
            kind: [abs(math.log(max(measures[f"sharpness.{kind}"], TINY))) for measures, _ in looks]
            for kind in KINDS
        }
        numbers[f"nearer.{name}"] = over_seeds(off["mean"]) - over_seeds(off["draw"])
        per_seed = [t.metrics["test/bits_per_dim"] for t in vaes]
        numbers[f"bits_per_dim.{name}"] = over_seeds(per_seed, "bits per pixel")
        warned = [t.metrics["test/pareto_k_high"] for t in vaes]
        numbers[f"k_hat_high.{name}"] = over_seeds(warned, "share of test images")
        pictures[name] = looks[0][1]
    grey = [
        name
        for name in names
        if trained[name][0].vae.model.likelihood.support is not Support.BINARY
    ]
    densities = {n for n in grey if trained[n][0].vae.model.likelihood.support.is_continuous}
    bits = {name: numbers[f"bits_per_dim.{name}"] for name in grey}
    leads = [bits[d] - bits[p] for p in set(grey) - densities for d in densities]
    if leads:
        numbers["smallest_lead"] = min(leads, key=lambda lead: lead.value)
    if {"normal", "normal_learned_scale"} <= bits.keys():
        numbers["scale_lost"] = bits["normal_learned_scale"] - bits["normal"]
    best = min(bits, key=lambda name: bits[name].value)
    answer = (
        f"One whose shape fits the pixel values: {spelt(best)} needs at most {bits[best]} bits per "
        f"pixel, the lowest of {len(grey)} upper bounds. Means of p(x | z) hide such differences, "
        f"samples of it show them."
    )
    return Result(
        numbers, predict(numbers, grey, densities), answer, draw(trained, pictures, numbers)
    )


def predict(
    numbers: Mapping[str, Number], grey: Sequence[str], densities: Collection[str]
) -> dict[str, Verdict]:
    """The verdict on each prediction.

    Args:
        numbers: of the experiment.
        grey: the likelihoods of grey images.
        densities: those of them that are densities of dequantised pixels.
    """
    bits, told_apart = (
        {name: numbers[f"{measure}.{name}"] for name in grey}
        for measure in ("bits_per_dim", "told_apart.draw")
    )
    best = min(bits, key=lambda name: bits[name].value)

    def fewer(first: str, second: str) -> Verdict:
        """Whether the first needs fewer bits.

        Those of a density are an upper bound: beside a probability it can win, and cannot lose.
        """
        verdict = above(bits[second] - bits[first])
        bounded = [name for name in (first, second) if name in densities]
        shown = {first: Verdict.HELD, second: Verdict.REFUTED}
        decided = len(bounded) != 1 or verdict is shown[bounded[0]]
        return verdict if decided else Verdict.UNDECIDED

    def every(start: str) -> list[Number]:
        return [number for name, number in numbers.items() if name.startswith(start)]

    return {
        "probabilities_beat_densities": all_of(
            fewer(p, d) for p in grey if p not in densities for d in densities
        ),
        "fixed_scale_is_worst": all_of(fewer(n, "normal") for n in grey if n != "normal")
        if "normal" in grey
        else Verdict.UNDECIDED,
        "means_are_blurred": all_of(below(number, 1) for number in every("sharpness.mean.")),
        "draws_are_nearer_in_sharpness": all_of(above(number) for number in every("nearer.")),
        "best_bits_look_most_real": all_of(
            [lowest(best, told_apart), *(fewer(best, n) for n in grey if n != best)]
        ),
    }


TINY = 1e-6  # the sharpness of images of one colour is 0
UNITS = {"sharpness": "of the test images'", "told_apart": "accuracy"}


def look(trained: Trained, num_images: int) -> tuple[dict[str, float], dict[str, Tensor]]:
    """How sharp and how real the means and the samples of p(x | z), z ~ p(z), look.

    Both are rounded to the levels of image files. Sharpness: mean squared difference of
    neighbouring pixels, divided by that of test images. Told apart: accuracy of a random forest
    between them and test images; 0.5 is chance.

    Returns:
        the measures; and images by kind, ``(N, C, H, W)``.
    """
    x = trained.x("test", num_images)
    with torch.no_grad(), RandomStream("pictures", trained.seed, x.device).active():
        p_x = trained.vae.model.decode(trained.vae.model.prior().sample((len(x),)))
        images = {"mean": p_x.mean, "draw": p_x.sample()}
    likelihood = trained.vae.model.likelihood
    images, x = (
        {kind: as_levels(i, likelihood) for kind, i in images.items()},
        as_levels(x, likelihood),
    )
    measures = {}
    for kind, generated in images.items():
        measures[f"sharpness.{kind}"] = roughness(generated) / roughness(x)
        measures[f"told_apart.{kind}"] = told_apart(x, generated, trained.seed)
    return measures, images | {"test": x}


def as_levels(x: Tensor, likelihood: Likelihood) -> Tensor:
    """x rounded to the levels of image files, in [0, 1]; binary x and its means are not changed."""
    levels = likelihood.num_levels
    if likelihood.support is Support.BINARY or levels is None:
        return x
    if likelihood.support.is_continuous:  # x = (level + u) / levels
        return (x * levels).floor().clamp(0, levels - 1) / (levels - 1)
    return (x * (levels - 1)).round() / (levels - 1)


def roughness(x: Tensor) -> float:
    """Mean squared difference of neighbouring pixels of ``(N, C, H, W)``."""
    down, across = x.diff(dim=-2).square().mean(), x.diff(dim=-1).square().mean()
    return (0.5 * (down + across)).item()


def told_apart(real: Tensor, generated: Tensor, seed: int) -> float:
    """Cross-validated accuracy of a random forest between equally many images of two kinds."""
    pixels = torch.cat([real, generated]).flatten(1).cpu().numpy()
    labels = np.repeat([0, 1], len(real))
    forest = RandomForestClassifier(100, random_state=seed)
    return float(cross_val_score(forest, pixels, labels, cv=5).mean())


def spelt(name: str) -> str:
    """``normal_learned_scale`` -> ``normal, learned scale``."""
    head, _, rest = name.partition("_")
    if head == "normal" and rest:
        return f"normal, {rest.replace('_', ' ')}"
    return name.replace("_", " ")


def draw(
    trained: dict[str, list[Trained]],
    pictures: dict[str, dict[str, Tensor]],
    numbers: dict[str, Number],
    shown: int = 9,
) -> Figure:
    """Draw a row per likelihood: means, samples, and their measures beside them."""
    figure = Figure(figsize=(12, 0.72 * len(pictures) + 1.1), layout="constrained")
    grid = figure.add_gridspec(
        len(pictures), 4, width_ratios=[2.2, 2.2, 1.5, 1.5], hspace=0.02, wspace=0.04
    )
    heads = ("mean of p(x | z), z ~ p(z)", "draw x ~ p(x | z), same z")
    for row, (name, images) in enumerate(pictures.items()):
        for column, kind in enumerate(KINDS):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(tile(images[kind][:shown], shown), interpolation="nearest", aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            if not row:
                axes.set_title(heads[column], fontsize="medium")
            if not column:
                axes.set_ylabel(
                    spelt(name)
                    .replace(", ", ",\n")
                    .replace("continuous ", "continuous\n")
                    .replace("discretized ", "discretized\n"),
                    rotation=0,
                    ha="right",
                    va="center",
                    fontsize="small",
                )
    rows = range(len(pictures))
    bits, sharpness = (figure.add_subplot(grid[:, column]) for column in (2, 3))
    for row, name in enumerate(pictures):
        number = numbers[f"bits_per_dim.{name}"]
        support = trained[name][0].vae.model.likelihood.support
        binary = support is Support.BINARY
        bits.errorbar(
            number.value,
            row,
            xerr=number.std_error or 0,
            fmt="s" if binary else "o",
            color=COLOURS[-1 if binary else 0],
            capsize=3,
        )
        bound = "≤ " if support.is_continuous else ""
        text = f"{bound}{number.brief}{' (binary images:' if binary else ''}"
        bits.annotate(text, (number.value, row), (6, 5), textcoords="offset points", fontsize=8)
        if binary:
            bits.annotate(
                "not comparable)",
                (number.value, row),
                (6, -10),
                textcoords="offset points",
                fontsize=8,
            )
    for index, kind in enumerate(KINDS):
        points = [numbers[f"sharpness.{kind}.{name}"] for name in pictures]
        sharpness.errorbar(
            [p.value for p in points],
            rows,
            xerr=[p.std_error or 0 for p in points],
            ls="",
            marker=MARKERS[index],
            color=COLOURS[index],
            capsize=3,
            label=f"{kind}s",
        )
    sharpness.axvline(1, color="black", lw=0.8)
    label(bits, "how well: lower is better", "bits per pixel", "")
    label(sharpness, "how sharp: 1 as test images", "squared difference, ratio", "")
    sharpness.legend(loc="best", fontsize="small")
    low, high = bits.get_xlim()
    bits.set_xlim(low, high + 0.35 * (high - low))
    for axes in (bits, sharpness):
        axes.set_ylim(len(pictures) - 0.5, -0.5)
        axes.set_yticks([])
    return figure


experiment = Experiment(
    "which_likelihood",
    "Which likelihood should p(x | z) be?",
    run,
    options=LikelihoodOptions,
    seeds=(0, 1, 2, 3, 4),
)
