"""How much of an image 2 latent dimensions represent, and how much 1, 5, .. 50."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, error_line, label, new_figure, show_images
from experiments.images import Classifier
from experiments.numbers import (
    Number,
    Verdict,
    above,
    all_of,
    below,
    over_images,
    over_seeds,
    within,
)
from experiments.vaes import Trained, VAESpec
from vae_pyro.config import Positive
from vae_pyro.evaluation.latent import posterior_means
from vae_pyro.log_marginal import elbo_parts
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting.figures import CLASS_COLOURS

REACH = 3.0  # of the map to every side, in standard deviations of the prior
UNITS = {
    "log_px": "nats per image",
    "rate": "nats per image",
    "distortion": "nats per image",
    "active": "latent dimensions",
    "neighbours": "share",
    "linear": "share",
    "to_other": "share",
    "not_one": "share",
    "mean_to_other": "share",
    "mean_not_one": "share",
    "disagree": "share",
    "changed": "grey range per pixel",
}


@dataclass(frozen=True)
class DimensionOptions(Options):
    """Options of this experiment.

    Args:
        latent_dims: latent dimensions to compare; must include 2.
        train_images: number of images that train classifiers, at most.
        test_images: number of images that test them, at most.
        neighbours: number of nearest neighbours that vote on a label.
        rate_samples: z's per test image, for rate and distortion.
        one: the class whose z's are decoded.
        other: the class with which their images may be confused.
        latents: samples of z for each test image of class ``one``.
        draws: images sampled for each of these z's.

    Raises:
        ValueError: if 2 is not among ``latent_dims``.
    """

    latent_dims: tuple[Positive, ...] = (1, 2, 5, 10, 20, 50)
    train_images: Positive = 2000
    test_images: Positive = 1000
    neighbours: Positive = 5
    rate_samples: Annotated[int, Field(ge=2)] = 100
    one: int = 3
    other: int = 8
    latents: Positive = 5
    draws: Annotated[int, Field(ge=2)] = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 not in self.latent_dims:
            raise ValueError(f"latent_dims: must contain 2, got {list(self.latent_dims)}")


def train_classifier(trained: Trained, options: DimensionOptions) -> Classifier:
    """A classifier of images x, as the likelihood of this VAE prepares them."""
    split = trained.dataset.train
    images, labels = split.images[: options.train_images], split.labels[: options.train_images]
    prepare = trained.vae.model.likelihood.prepare
    generator = RandomStream("judge", 0).generator
    # Each image is binarised twice, so that the classifier learns that noise too.
    x = torch.cat([prepare(images, generator) for _ in range(2)])
    return Classifier(x, labels.repeat(2))


def run(context: Context) -> Result:
    options: DimensionOptions = context.options
    dims = sorted(set(options.latent_dims))
    families = dict(
        zip(dims, context.train([VAESpec((f"latent_dim={d}",)) for d in dims]), strict=True)
    )
    context.tell("a classifier of images")
    classifier = train_classifier(families[2][0], options)
    found: dict[int, list[dict[str, float]]] = {}
    for d, family in families.items():
        context.tell(f"{d} latent dimensions")
        found[d] = [measure(trained, classifier, options) for trained in family]
    numbers = {
        f"{name}_{d}": over_seeds([one[name] for one in found[d]], unit)
        for d in dims
        for name, unit in UNITS.items()
    }
    numbers |= of_real_images(families[2][0], classifier, options)
    best = max(dims, key=lambda d: numbers[f"log_px_{d}"].value)
    numbers["best"] = Number(best, unit="latent dimensions")
    for name in UNITS:  # the same by role, for a page that quotes the best
        numbers[f"{name}_best"] = numbers[f"{name}_{best}"]
        numbers[f"{name}_difference"] = numbers[f"{name}_{best}"] - numbers[f"{name}_2"]
    numbers["lost_by_many"] = numbers["log_px_best"] - numbers[f"log_px_{dims[-1]}"]
    lost = numbers["log_px_difference"]

    held = Verdict.HELD
    if below(lost, 0.1) is held:
        enough = "Yes"
    elif within(lost, 0.1, 1) is held:
        enough = "Nearly"
    else:
        enough = "No" if above(lost, 1) is held else "Undecided"
    answer = (
        f"{enough}, for log p(x) of these small binary images: {best} latent dimensions, "
        f"with the highest mean of those tried, gain {lost} nats per image over 2."
    )
    figure = draw(dims, numbers, families[2][0], classifier, options)
    return Result(numbers, predict(numbers, dims), answer, figure)


def predict(numbers: Mapping[str, Number], dims: Sequence[int]) -> dict[str, Verdict]:
    """The verdict on each prediction."""
    last = dims[-1]
    confused = numbers["to_other_2"] - numbers["real_to_other"]
    return {
        "more_is_better_at_first": above(numbers["log_px_difference"], 0.1),
        "too_many_do_no_harm": all_of(
            below(numbers[f"log_px_{d}"] - numbers[f"log_px_{last}"], 0.5) for d in dims
        ),
        "most_units_sleep": below(numbers[f"active_{last}"], last / 2),
        "rate_buys_distortion": all_of(
            [above(numbers["rate_difference"]), below(numbers["distortion_difference"])]
        ),
        "labels_read_better": above(numbers["neighbours_difference"], 0.05),
        "confusion_is_of_the_map": all_of([below(numbers["to_other_difference"]), above(confused)]),
    }


def measure(
    trained: Trained, classifier: Classifier, options: DimensionOptions
) -> dict[str, float]:
    """All numbers of one VAE, by the names of ``UNITS``."""
    x = trained.x("test", options.test_images)
    with RandomStream("rate", trained.seed, x.device).active():
        parts = elbo_parts(trained.vae, x, options.rate_samples)
    classes, of_means, images = yields(trained, classifier, options)
    return {
        "log_px": trained.metrics["test/log_px"],
        "rate": parts["kl"].mean(),
        "distortion": -parts["reconstruction"].mean(),
        "active": trained.metrics["test/active_units"],
        **{
            name: right.mean().item()
            for name, right in readable(*codes(trained, options), options).items()
        },
        "to_other": (classes == options.other).double().mean().item(),
        "not_one": (classes != options.one).double().mean().item(),
        "mean_to_other": (of_means == options.other).double().mean().item(),
        "mean_not_one": (of_means != options.one).double().mean().item(),
        "disagree": disagreement(classes).mean().item(),
        "changed": (images[0] - images[1]).abs().double().mean().item(),
    }


def codes(
    trained: Trained, options: DimensionOptions
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Posterior means ``(N, D)`` and labels of training images, and the same of test images."""

    def of(split: Literal["train", "test"], limit: int) -> tuple[Tensor, Tensor]:
        means = posterior_means(trained.vae, trained.x(split, limit)).cpu()
        return means, getattr(trained.dataset, split).labels[:limit]

    return of("train", options.train_images), of("test", options.test_images)


def readable(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], options: DimensionOptions
) -> dict[str, Tensor]:
    """Whether nearest neighbours and a linear classifier get each test label right, ``(N,)``."""
    count = min(options.neighbours, len(train[1]))
    readers = {
        "neighbours": KNeighborsClassifier(count),
        "linear": LogisticRegression(max_iter=2000),
    }
    points, labels = (part.numpy() for part in train)
    return {
        name: torch.from_numpy(
            reader.fit(points, labels).predict(test[0].numpy()) == test[1].numpy()
        ).double()
        for name, reader in readers.items()
    }


def yields(
    trained: Trained, classifier: Classifier, options: DimensionOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """z ~ q(z | x) of test images of class ``one``, x' ~ p(x | z) of each.

    Returns:
        the classes of x', ``(draws, latents, N)``; those of the means of p(x | z), ``(latents,
        N)``; and x', ``(draws, latents, N, C, H, W)``.
    """
    x = of_class_one(trained, options)
    with torch.no_grad(), RandomStream("yields", trained.seed, x.device).active():
        z = trained.vae.guide.posterior(x).sample((options.latents,))
        p_x = trained.vae.model.decode(z)
        images = p_x.sample((options.draws,))
    return classifier(images), classifier(p_x.mean), images


def of_class_one(trained: Trained, options: DimensionOptions) -> Tensor:
    """Test images of class ``one``, as the likelihood scores them."""
    chosen = trained.dataset.test.labels == options.one
    return trained.x("test")[chosen.to(trained.vae.device)][: options.test_images]


def disagreement(classes: Tensor) -> Tensor:
    """Unbiased probability that two samples have different classes: ``(draws, *)`` -> ``(*)``."""
    draws = len(classes)
    same = torch.stack([(classes == c).double().mean(0).square() for c in classes.unique()]).sum(0)
    return (1 - same) * draws / (draws - 1)


def of_real_images(
    trained: Trained, classifier: Classifier, options: DimensionOptions
) -> dict[str, Number]:
    """The same for real images, each binarised several times, and labels read from x itself.

    Standard errors are over images.
    """
    test = trained.dataset.test
    grey = test.images[test.labels == options.one][: options.test_images]
    prepare, generator = trained.vae.model.likelihood.prepare, RandomStream("real", 0).generator
    drawn = torch.stack([prepare(grey, generator) for _ in range(options.draws)])
    classes = classifier(drawn)
    per_image = {
        "real_to_other": (classes == options.other).double().mean(0),
        "real_not_one": (classes != options.one).double().mean(0),
        "real_disagree": disagreement(classes),
        "real_changed": (drawn[0] - drawn[1]).abs().double().flatten(1).mean(1),
    }
    train, scored = (
        (x.cpu().flatten(1), split.labels[: len(x)])
        for x, split in (
            (trained.x("train", options.train_images), trained.dataset.train),
            (trained.x("test", options.test_images), trained.dataset.test),
        )
    )
    for name, right in readable(train, scored, options).items():
        per_image[f"pixels_{name}"] = right
    numbers = {}
    for name, values in per_image.items():
        unit = UNITS[name.removeprefix("real_").removeprefix("pixels_")]
        numbers[name] = over_images(values, unit)
    return numbers


def draw(
    dims: Sequence[int],
    numbers: dict[str, Number],
    two: Trained,
    classifier: Classifier,
    options: DimensionOptions,
) -> Figure:
    figure, ((price, parts, units, read), (where, manifold, one_z, confused)) = new_figure(
        12, 6.8, 2, 4
    )

    def line(axes: Axes, name: str, index: int, text: str) -> None:
        of = [numbers[f"{name}_{d}"] for d in dims]
        errors = [number.std_error or 0.0 for number in of]
        error_line(axes, dims, [number.value for number in of], errors, index, text)

    def level(axes: Axes, name: str, index: int, text: str) -> None:
        axes.axhline(numbers[name].value, ls="--", lw=1, color=COLOURS[index], label=text)

    nats = "nats per test image"
    line(price, "log_px", 0, "log p(x)")
    label(price, "log p(x)", "latent dimensions", nats)
    line(parts, "distortion", 1, "distortion, -E log p(x | z)")
    line(parts, "rate", 2, "rate, KL(q(z | x) || p(z))")
    label(parts, "what x costs: z, and x given z", "latent dimensions", nats)
    parts.set_ylim(0, 1.4 * max(numbers[f"distortion_{d}"].value for d in dims))
    line(units, "active", 3, "used")
    units.plot(dims, dims, color="black", lw=0.8, label="all of them")
    units.set_ylim(0, 1 + 1.5 * max(numbers[f"active_{d}"].value for d in dims))
    label(units, "dimensions that are used", "latent dimensions", "active dimensions")
    line(read, "neighbours", 0, f"{options.neighbours} nearest z")
    line(read, "linear", 1, "linear in z")
    level(read, "pixels_neighbours", 0, "nearest x")
    level(read, "pixels_linear", 1, "linear in x")
    label(read, "labels can be read off z", "latent dimensions", "share of test labels right")
    line(confused, "to_other", 5, f"z of a {options.one}")
    level(confused, "real_to_other", 5, f"a real {options.one}")
    label(
        confused,
        f"does a {options.one} come back as class {options.other}?",
        "latent dimensions",
        f"share of draws taken for class {options.other}",
    )
    confused.set_ylim(bottom=0)
    for axes in (price, parts, units, read, confused):
        axes.set_xscale("log")
        axes.set_xticks(dims, [str(d) for d in dims])
        axes.minorticks_off()
        if axes is not price:
            axes.legend(fontsize="small")
    draw_map(where, two, options)
    side = 12
    show_images(manifold, manifold_of(two, side), side, "mean of p(x | z) at the same places")
    draw_one_z(one_z, two, classifier, options)
    return figure


def draw_map(axes: Axes, trained: Trained, options: DimensionOptions, side: int = 120) -> None:
    """Draw posterior means of test images, over the majority class of the nearest neighbours."""
    (means, labels), (test_means, test_labels) = codes(trained, options)
    count = min(options.neighbours, len(labels))
    reader = KNeighborsClassifier(count).fit(means.numpy(), labels.numpy())
    axis = torch.linspace(-REACH, REACH, side)
    across, up = torch.meshgrid(axis, axis, indexing="xy")
    regions = reader.predict(torch.stack([across, up], -1).reshape(-1, 2).numpy())
    rows = [to_rgb(CLASS_COLOURS[int(c) % len(CLASS_COLOURS)]) for c in regions]
    axes.imshow(
        torch.tensor(rows).reshape(side, side, 3),
        origin="lower",
        alpha=0.45,
        extent=(-REACH, REACH, -REACH, REACH),
    )
    colours = [CLASS_COLOURS[c % len(CLASS_COLOURS)] for c in test_labels.tolist()]
    axes.scatter(test_means[:, 0], test_means[:, 1], s=7, c=colours, linewidths=0)
    taken = torch.empty(0, 2)
    for c in test_labels.unique().tolist():
        points = test_means[test_labels == c]
        order = (points - points.median(0).values).norm(dim=1).argsort()
        # The point nearest to the median of its class whose label covers no other label.
        free = [i for i in order if (points[i] - taken).norm(dim=1).gt(0.45).all()]
        place = points[free[0] if free else order[0]]
        taken = torch.cat([taken, place[None]])
        axes.annotate(
            str(c),
            (place[0].item(), place[1].item()),
            ha="center",
            va="center",
            weight="bold",
            color="white",
            size="small",
            bbox={
                "boxstyle": "circle,pad=0.15",
                "edgecolor": "white",
                "facecolor": CLASS_COLOURS[c % len(CLASS_COLOURS)],
            },
        )
    axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH))
    label(axes, "the map: test images by class", "z[0]", "z[1]")


def manifold_of(trained: Trained, side: int) -> Tensor:
    """Mean images on a grid over the map, its top row first, ``(side * side, C, H, W)``."""
    axis = torch.linspace(-REACH, REACH, side)
    up, across = torch.meshgrid(axis.flip(0), axis, indexing="ij")
    z = torch.stack([across, up], -1).reshape(-1, 2).to(trained.vae.device)
    with torch.no_grad():
        means: Tensor = trained.vae.model.decode(z).mean
    return means


def draw_one_z(
    axes: Axes, trained: Trained, classifier: Classifier, options: DimensionOptions
) -> None:
    """Draw test images: x, the mean of p(x | z) for one sampled z, and samples of p(x | z)."""
    x = of_class_one(trained, options)
    with torch.no_grad(), RandomStream("one z", trained.seed, x.device).active():
        p_x = trained.vae.model.decode(trained.vae.guide.posterior(x).sample())
        images, means = p_x.sample((max(options.draws, 6),)), p_x.mean
    share = (classifier(images) == options.other).double().mean(0)
    order = share.argsort()
    chosen = order[torch.linspace(0, len(order) - 1, min(8, len(order))).long()]
    rows = [torch.cat([x[i, None], means[i, None], images[:6, i]]) for i in chosen.tolist()]
    show_images(axes, torch.cat(rows), 8, "x; mean of p(x | z); draws")
    height = x.shape[-2] + 1
    axes.set_axis_on()
    axes.set_xticks([])
    axes.set_yticks(
        [height * (row + 0.5) for row in range(len(rows))],
        [f"{share[i].item():.0%}" for i in chosen.tolist()],
        fontsize="small",
    )
    axes.set_ylabel(f"share of draws taken for class {options.other}", fontsize="small")


experiment = Experiment(
    "is_two_dimensions_enough",
    "Are two latent dimensions enough?",
    run,
    options=DimensionOptions,
    seeds=(0, 1, 2, 3, 4),
)
