"""Interpolate, traverse, follow an attribute, denoise: each with a measure beside its pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, label, new_figure, show_rows
from experiments.images import Classifier
from experiments.moving_in_latent_space.walks import (
    across,
    active_dimensions,
    along,
    as_x,
    between,
    codes,
    decode,
    grey,
    random_directions,
)
from experiments.numbers import Number, Verdict, above, all_of, below, over_seeds
from experiments.vaes import Trained, VAESpec
from vae_pyro.config import Positive
from vae_pyro.log_marginal import AIS, estimate_together
from vae_pyro.randomness import RandomStream

REACH = 2.0  # standard deviations of the prior: 95% of it lies within
STEPS = 9  # of every walk; odd, so that one is in the middle
MIDDLE = STEPS // 2
COARSE = MIDDLE + 1  # every other step: also odd


@dataclass(frozen=True)
class MovingOptions(Options):
    """Options of this experiment.

    Args:
        latent_dim: of all VAEs.
        train_images: number of images that define attributes and train classifiers, at most.
        test_images: number of images that are moved, at most.
        pairs: number of pairs of test images to interpolate between.
        temperatures: of the annealing that estimates log p(x).
        noise: shares of pixels that are replaced, rising.
        one: the class of the images that are moved towards ``other``.
        other: the class that they should reach.

    Raises:
        ValueError: if ``noise`` does not hold two or more rising shares.
    """

    latent_dim: Positive = 10
    train_images: Positive = 2000
    test_images: Positive = 300
    pairs: Positive = 30
    temperatures: Annotated[int, Field(ge=2)] = 100
    noise: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    one: int = 3
    other: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.noise) < 2 or list(self.noise) != sorted(set(self.noise)):
            raise ValueError(f"noise: two or more rising shares, got {list(self.noise)}")


Curves = dict[str, list[float]]
Measured = tuple[dict[str, float], Curves]
"""Numbers by name, and curves by name."""


def run(context: Context) -> Result:
    options: MovingOptions = context.options
    size_of_z = f"latent_dim={options.latent_dim}"
    specs = {
        "binary": VAESpec((size_of_z, "likelihood=bernoulli")),
        "grey": VAESpec((size_of_z, "likelihood=normal_learned_scale")),
    }
    families = dict(zip(specs, context.train(list(specs.values())), strict=True))
    first = families["binary"][0]
    train = first.dataset.train
    classifier = Classifier(
        grey(first, train.images[: options.train_images]), train.labels[: options.train_images]
    )
    numbers: dict[str, Number] = {}
    curves: dict[str, list[Curves]] = {}
    for kind, family in families.items():
        context.tell(f"{kind} images: four kinds of moves")
        found: list[dict[str, float]] = []
        curves[kind] = []
        for trained in family:
            parts = [
                interpolate(trained, options),
                traverse(trained, classifier, options),
                follow(trained, classifier, options),
                denoise(trained, options),
            ]
            found.append({k: v for one, _ in parts for k, v in one.items()})
            curves[kind].append({k: v for _, lines in parts for k, v in lines.items()})
        for name in found[0]:
            numbers[f"{name}_{kind}"] = over_seeds([f[name] for f in found], unit_of(name))
    predictions = {
        f"{name}_{kind}": verdict
        for kind in families
        for name, verdict in predict(numbers, kind, options).items()
    }

    for kind in families:
        numbers[f"dip_saved_{kind}"] = numbers[f"pixel_dip_{kind}"] - numbers[f"latent_dip_{kind}"]
    answer = (
        f"To a degree. Half way between two binary images log p(x) falls by "
        f"{numbers['dip_saved_binary']} nats less by way of z than by way of pixels. Adding an "
        f"attribute, or changing the class, works for a part of the images only."
    )
    return Result(numbers, predictions, answer, draw(curves, families["grey"][0], options))


def predict(numbers: Mapping[str, Number], kind: str, options: MovingOptions) -> dict[str, Verdict]:
    """The verdict on each prediction for one kind of images."""

    def of(name: str) -> Number:
        return numbers[f"{name}_{kind}"]

    least, most = (f"{100 * share:g}" for share in (options.noise[0], options.noise[-1]))
    gained, promised = of("ink_slope"), of("ink_promised")
    return {
        "latent_path_dips_less": below(of("latent_dip") - 0.5 * of("pixel_dip")),
        "latent_middle_is_as_real": above(of("latent_middle") - of("pixel_ends")),
        "dimension_is_not_one_change": below(of("same_dimension"), 0.5),
        "no_better_than_random": below(of("same_dimension") - of("same_random"), 0.1),
        "unused_dimension_does_nothing": below(of("change_least"), 0.01),
        "ink_rises_everywhere": above(of("ink_monotone"), 0.9),
        "ink_as_promised": all_of([above(gained - 0.5 * promised), below(gained - 2.0 * promised)]),
        "ink_keeps_the_class_better": above(of("ink_keeps_class") - of("random_keeps_class")),
        "class_can_be_changed": above(of("became_other"), 0.8),
        "denoising_costs_clean_images": above(of(f"denoised_{least}") - of(f"corrupted_{least}")),
        "denoising_helps_noisy_images": below(of(f"denoised_{most}") - of(f"corrupted_{most}")),
    }


def unit_of(name: str) -> str:
    """By the words of a number's name."""
    units = {
        "latent": "nats per image",
        "pixel": "nats per image",
        "corrupted": "grey range per pixel",
        "denoised": "grey range per pixel",
        "change": "grey range per pixel",
        "classes": "classes",
    }
    if name.endswith(("_slope", "_promised")):
        return "grey range per unit of z"
    return units.get(name.partition("_")[0], "share")


def interpolate(trained: Trained, options: MovingOptions) -> Measured:
    """log p(x) on the way from one test image to another, by way of z and by way of pixels.

    Of draws x ~ p(x | z), and of x drawn of the mixed grey images as of real ones; at every other
    step. By annealing, which does not rely on the encoder for images unlike the training images.
    """
    x, images = trained.x("test"), grey(trained, trained.dataset.test.images)
    generator = RandomStream("interpolation", trained.seed).generator
    order = torch.randperm(len(x), generator=generator).to(x.device)
    a, b = order[: options.pairs], order.flip(0)[: options.pairs]
    z = codes(trained, x)
    with torch.no_grad(), RandomStream("drawn on the way", trained.seed, x.device).active():
        draws = trained.vae.model.decode(between(z[a], z[b], COARSE)).sample().flatten(0, 1)
    ways = {
        "latent": trained.vae.model.likelihood.into_support(draws),
        "pixel": as_x(trained, between(images[a], images[b], COARSE).flatten(0, 1), generator),
    }
    numbers: dict[str, float] = {}
    curves: Curves = {}
    for name, drawn in ways.items():
        ais = AIS(num_temperatures=options.temperatures, num_chains=4, start="guide")
        found = estimate_together({"ais": ais}, trained.vae, drawn, seed=trained.seed)["ais"]
        curve = found.estimate.value.reshape(COARSE, -1).mean(1)
        ends, middle = curve[[0, -1]].mean().item(), curve[COARSE // 2].item()
        curves[name] = (curve - ends).tolist()
        numbers |= {f"{name}_ends": ends, f"{name}_middle": middle, f"{name}_dip": ends - middle}
    return numbers, curves


def traverse(trained: Trained, classifier: Classifier, options: MovingOptions) -> Measured:
    """The change of images along one coordinate, and how far it is the same in all of them.

    ``same``: the squared change that is the same in all images, as a share of the mean squared
    change. 1: the same picture is added to every image; 0: it differs from image to image.
    """
    z = codes(trained, trained.x("test", options.test_images))
    active = active_dimensions(z)
    units = torch.eye(z.shape[1]).to(z)
    generator = RandomStream("directions", trained.seed).generator
    chosen = {
        "dimension": units[active],
        "random": random_directions(active, z.shape[1], generator).to(z),
    }
    numbers: dict[str, float] = {}
    curves: Curves = {}
    for name, directions in chosen.items():
        walks = [decode(trained, across(z, u, REACH, STEPS)) for u in directions]
        same = [shared(walk[-1] - walk[0]) for walk in walks]
        seen = torch.stack([classifier(walk) for walk in walks])  # (directions, steps, images)
        numbers[f"same_{name}"] = sum(same) / len(same)
        numbers[f"classes_{name}"] = num_classes(seen).mean().item()
        curves[name] = same
    changes = [size(*decode(trained, across(z, u, REACH, 2))) for u in units]
    return numbers | {"change_least": min(changes), "change_most": max(changes)}, curves


def shared(change: Tensor) -> float:
    """|mean change|^2 / mean |change|^2 over images ``(N, C, H, W)``."""
    rows = change.flatten(1).double()
    return (rows.mean(0).square().sum() / rows.square().sum(1).mean()).item()


def num_classes(seen: Tensor) -> Tensor:
    """The number of classes on a walk: ``(walks, steps, N)`` -> ``(walks, N)``."""
    return torch.stack([(seen == c).any(1) for c in seen.unique()]).double().sum(0)


def size(start: Tensor, end: Tensor) -> float:
    """Root mean squared change per pixel of images ``(N, C, H, W)``."""
    return (end - start).square().mean().sqrt().item()


def ink_directions(trained: Trained, options: MovingOptions) -> dict[str, tuple[Tensor, float]]:
    """Unit vectors along which ink should grow, and how much it grows with codes along them.

    ``ink``: from the mean code of images with less ink than the median to that of the others.
    ``fit``: by least squares of ink on the used dimensions.
    """
    z = codes(trained, trained.x("train", options.train_images)).double()
    images = grey(trained, trained.dataset.train.images[: options.train_images])
    ink = images.flatten(1).mean(1).double()
    more = ink > ink.median()
    used = active_dimensions(z)
    fit = torch.zeros_like(z[0])
    centred, gained = z[:, used] - z[:, used].mean(0), ink - ink.mean()
    fit[used] = torch.linalg.lstsq(centred, gained[:, None]).solution[:, 0]
    found = {}
    for name, vector in (("ink", z[more].mean(0) - z[~more].mean(0)), ("fit", fit)):
        unit = vector / vector.norm()
        along_it = (z - z.mean(0)) @ unit
        slope = (along_it @ gained) / along_it.square().sum()
        found[name] = (unit.float(), slope.item())
    return found


def class_direction(trained: Trained, options: MovingOptions) -> Tensor:
    """From the mean code of training images of class ``one`` to that of ``other``, ``(D,)``."""
    train = trained.dataset.train
    z = codes(trained, trained.x("train"))
    labels = train.labels.to(z.device)
    return z[labels == options.other].mean(0) - z[labels == options.one].mean(0)


def follow(trained: Trained, classifier: Classifier, options: MovingOptions) -> Measured:
    """Directions that stand for an attribute: the amount of ink, and a class."""
    z = codes(trained, trained.x("test", options.test_images))
    numbers: dict[str, float] = {}
    curves: Curves = {}
    for name, (direction, promised) in ink_directions(trained, options).items():
        walk = decode(trained, along(z, direction, REACH, STEPS))
        ink = walk.flatten(2).mean(2)  # (steps, images)
        curves[name] = (ink - ink[MIDDLE]).mean(1).tolist()
        numbers |= {
            f"{name}_promised": promised,
            f"{name}_slope": ((ink[-1] - ink[0]) / (2 * REACH)).mean().item(),
            f"{name}_monotone": (ink.diff(dim=0) > 0).all(0).double().mean().item(),
            f"{name}_keeps_class": kept(classifier(walk)),
        }
    generator = RandomStream("directions", trained.seed).generator
    others = random_directions(active_dimensions(z), z.shape[1], generator).to(z)
    elsewhere = [decode(trained, along(z, u, REACH, STEPS)) for u in others]
    chosen = trained.dataset.test.labels == options.one
    start = codes(trained, trained.x("test")[chosen.to(z.device)])[: options.test_images]
    before, after = (
        classifier(decode(trained, start + move))
        for move in (torch.zeros_like(start[0]), class_direction(trained, options))
    )
    wandering = torch.stack([w.flatten(2).mean(2) for w in elsewhere])
    fell = (wandering[:, -1] - wandering[:, 0]).mean(-1).abs() / (2 * REACH)  # per direction
    numbers |= {
        "random_slope": fell.mean().item(),
        "random_keeps_class": sum(kept(classifier(w)) for w in elsewhere) / len(elsewhere),
        "were_one": (before == options.one).double().mean().item(),
        "were_other": (before == options.other).double().mean().item(),
        "became_other": (after == options.other).double().mean().item(),
    }
    return numbers, curves


def kept(classes: Tensor) -> float:
    """Share of walk ends ``(steps, N)`` that have the class of the middle of the walk."""
    return (classes[[0, -1]] == classes[MIDDLE]).double().mean().item()


def denoise(trained: Trained, options: MovingOptions) -> Measured:
    """The distance of corrupted images, and of their reconstructions, from the clean images."""
    x = trained.x("test", options.test_images)
    images = grey(trained, trained.dataset.test.images[: options.test_images])
    numbers: dict[str, float] = {}
    curves: Curves = {"corrupted": [], "denoised": []}
    for share in options.noise:
        worse = corrupt(x, share, trained.seed)
        better = decode(trained, codes(trained, worse))
        for name, found in (("corrupted", worse), ("denoised", better)):
            numbers[f"{name}_{100 * share:g}"] = size(x, found)
            numbers[f"{name}_from_grey_{100 * share:g}"] = size(images, found)
            curves[name].append(size(x, found))
    return numbers, curves


def corrupt(x: Tensor, share: float, seed: int) -> Tensor:
    """x ``(N, C, H, W)`` with this share of its pixels replaced by random pixels of all images."""
    generator = RandomStream("corruption", seed).generator
    replaced = torch.rand(x.shape, generator=generator) < share
    anywhere = torch.randint(x.numel(), x.shape, generator=generator)
    return torch.where(replaced.to(x.device), x.flatten()[anywhere.to(x.device)], x)


def draw(
    curves: Mapping[str, Sequence[Curves]], trained: Trained, options: MovingOptions
) -> Figure:
    figure, axes = new_figure(12, 7, 2, 4, height_ratios=[1, 1.15])
    draw_measures(axes[0], curves, options)
    draw_pictures(axes[1], trained, options)
    return figure


def draw_measures(
    axes: Sequence[Axes], curves: Mapping[str, Sequence[Curves]], options: MovingOptions
) -> None:
    path, change, ink, noise = axes

    def line(panel: Axes, x: Sequence[float], name: str, index: int, text: str) -> None:
        for kind, dashes in (("binary", ":"), ("grey", "-")):
            columns = zip(*(one[name] for one in curves[kind]), strict=True)
            points = [over_seeds(values) for values in columns]
            panel.errorbar(
                x,
                [p.value for p in points],
                yerr=[p.std_error or 0.0 for p in points],
                ls=dashes,
                color=COLOURS[index],
                marker=MARKERS[index],
                capsize=2,
                label=f"{text}, {kind}",
            )

    way = [step / (COARSE - 1) for step in range(COARSE)]
    line(path, way, "latent", 0, "z")
    line(path, way, "pixel", 1, "pixels")
    label(path, "from one image to another", "share of the way", "log p(x), less that of the ends")
    for index, (kind, name) in enumerate(
        (kind, name) for kind in curves for name in ("dimension", "random")
    ):
        for one in curves[kind]:
            spread = torch.linspace(-0.2, 0.2, len(one[name])).tolist()
            colour = COLOURS[2 + index % 2]
            places = [index + s for s in spread]
            change.plot(places, one[name], color=colour, marker="^v"[index % 2], ls="")
    change.set(xlim=(-0.5, 3.5), ylim=(0, 1))
    change.set_xticks(range(4), ["one\ndim.", "random", "one\ndim.", "random"])
    label(
        change,
        "same change in all images?",
        "binary                 grey",
        "share that is the same",
    )
    steps = torch.linspace(-REACH, REACH, STEPS).tolist()
    line(ink, steps, "ink", 5, "decoded")
    label(ink, "along the direction of ink", "moved by, units of z", "mean grey value gained")
    line(noise, [100 * s for s in options.noise], "corrupted", 1, "corrupted")
    line(noise, [100 * s for s in options.noise], "denoised", 0, "decoded")
    label(noise, "denoising", "pixels replaced, %", "from the clean x (RMS per pixel)")
    legends: list[tuple[Axes, Any]] = [
        (path, "lower center"),
        (ink, "upper left"),
        (noise, "upper left"),
    ]
    for panel, where in legends:
        low, high = panel.get_ylim()
        room = 0.55 * (high - low)  # for the legend
        panel.set_ylim(*((low - room, high) if where.startswith("lower") else (low, high + room)))
        panel.legend(fontsize="small", loc=where)


def draw_pictures(axes: Sequence[Axes], trained: Trained, options: MovingOptions) -> None:
    from_to, one_by_one, attribute, cleaned = axes
    x, images = trained.x("test"), grey(trained, trained.dataset.test.images)
    z = codes(trained, x)
    a, b = [0, 2, 4], [1, 3, 5]
    latent = decode(trained, between(z[a], z[b], STEPS))
    pixel = between(images[a], images[b], STEPS)
    rows = [walk[:, i] for i in range(len(a)) for walk in (latent, pixel)]
    show_rows(from_to, [row[::2] for row in rows], ["z", "pixels"] * len(a), "interpolation")
    active = active_dimensions(z)[:3]
    units = torch.eye(z.shape[1]).to(z)
    rows, names = [], []
    for d in active.tolist():
        for image in (0, 1):
            rows.append(decode(trained, across(z[image, None], units[d], REACH, STEPS))[:, 0])
            names.append(f"z[{d}]")
    show_rows(one_by_one, [row[::2] for row in rows], names, "one dimension, two images each")
    direction, _ = ink_directions(trained, options)["ink"]
    rows = list(decode(trained, along(z[:3], direction, REACH, STEPS)).unbind(1))
    start = z[trained.dataset.test.labels.to(z.device) == options.one][:3]
    end = start + class_direction(trained, options)
    rows += list(decode(trained, between(start, end, STEPS)).unbind(1))
    names = ["ink"] * 3 + [f"{options.one} to {options.other}"] * len(start)
    show_rows(attribute, [row[::2] for row in rows], names, "attributes")
    rows, names = [], []
    shares = [options.noise[0], options.noise[len(options.noise) // 2], options.noise[-1]]
    for share in shares:
        worse = corrupt(x, share, trained.seed)[: MIDDLE + 1]
        rows += [worse, decode(trained, codes(trained, worse))]
        names += [f"{100 * share:g}%", "decoded"]
    show_rows(cleaned, rows, names, "denoising")


experiment = Experiment(
    "moving_in_latent_space",
    "Can one edit images by moving z?",
    run,
    options=MovingOptions,
    seeds=(0, 1, 2, 3, 4),
)
