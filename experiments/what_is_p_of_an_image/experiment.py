"""p(x) is a distribution over images: of all images of nine pixels, and of real digits."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, label, new_figure, show_images
from experiments.numbers import Number, Verdict, above, below, lowest, over_seeds, within
from experiments.vaes import Trained, VAESpec
from vae_pyro.data import Dataset
from vae_pyro.log_marginal import Quadrature, estimate_together
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE


@dataclass(frozen=True)
class ImageOptions(Options):
    """Options of this experiment.

    Args:
        held_out: the class that is left out of the training of the second VAE.
        images: number of images of each kind whose log p(x) is computed.
    """

    held_out: int = 8
    images: int = 40


def run(context: Context) -> Result:
    kept = sorted(set(context.dataset.train.labels.tolist()) - {context.options.held_out})
    data = context.chosen["data"]
    middle = {"_target_": "experiments.what_is_p_of_an_image.middle.Middle", "source": data}
    small, whole, control = context.train(
        [
            VAESpec(("latent_dim=2",), {"data": middle}),
            VAESpec(("latent_dim=2",), {"data": {**data, "classes": kept}}),
            VAESpec(("latent_dim=2",)),
        ]
    )
    context.tell("all images of 3 x 3 pixels")
    every = all_images(small[0].dataset)
    found = [probabilities(trained, every) for trained in small]
    counted = [count(t.dataset, every, p) for t, p in zip(small, found, strict=True)]
    context.tell("kinds of images of full size")
    images = [images_by_kind(trained, context) for trained in whole]
    kinds = [
        {name: log_p(trained.vae, x) for name, x in by_kind.items()}
        for trained, by_kind in zip(whole, images, strict=True)
    ]
    numbers = {
        name: over_seeds([c[name] for c in counted], "total variation")
        for name in ("to_test", "to_train", "independent", "train_to_test")
    }
    numbers["sum"] = over_seeds([c["sum"] for c in counted])
    for name in kinds[0]:
        means = [k[name].mean().item() for k in kinds]
        numbers[name] = over_seeds(means, "nats per image")
    for name in ("digits", "held_out"):  # the same images under VAEs that learned every class
        means = [
            log_p(trained.vae, by_kind[name]).mean().item()
            for trained, by_kind in zip(control, images, strict=True)
        ]
        numbers[f"control_{name}"] = over_seeds(means, "nats per image")
    highest = over_seeds([k["digits"].max().item() for k in kinds], "nats")
    beaten = over_seeds([(k["digits"] < k["blank"]).double().mean().item() for k in kinds], "share")
    lead = over_seeds([(k["mode"] - k["digits"].max()).item() for k in kinds], "nats")
    numbers |= {"best_digit": highest, "less_probable_than_blank": beaten, "mode_above_best": lead}
    numbers["draws_until_mode"] = over_seeds([math.exp(-k["mode"].item()) for k in kinds], "draws")
    numbers["held_out_less"] = numbers["digits"] - numbers["held_out"]
    numbers["control_less"] = numbers["control_digits"] - numbers["control_held_out"]
    numbers["effect"] = numbers["held_out_less"] - numbers["control_less"]
    known = {
        Verdict.HELD: "more probable than each",
        Verdict.REFUTED: "less probable than the best",
    }
    beside = known.get(above(lead), "about as probable as the best")
    answer = (
        f"The probability that the model generates exactly this image: over all 512 images of 3 x "
        f"3 pixels it sums to {numbers['sum'].value:.4f}. A high p(x) does not mean a good image: "
        f"the most probable image found is {beside} of {len(kinds[0]['digits'])} real ones."
    )
    test = frequencies(small[0].dataset, "test", every)
    return Result(numbers, predict(numbers), answer, draw(found[0], test, kinds, images[0]))


def predict(numbers: Mapping[str, Number]) -> dict[str, Verdict]:
    """The verdict on each prediction."""
    return {
        "sums_to_one": within(numbers["sum"], 1 - 1e-3, 1 + 1e-3),
        "matches_frequencies": below(numbers["to_test"] - numbers["independent"]),
        "held_out_is_improbable": above(numbers["digits"] - numbers["held_out"], 1),
        "noise_is_least_probable": lowest("noise", {name: numbers[name] for name in NAMES}),
        "blank_beats_digits": above(numbers["less_probable_than_blank"], 0.5),
        "mode_beats_all_digits": above(numbers["mode_above_best"]),
    }


def count(dataset: Dataset, every: Tensor, p: Tensor) -> dict[str, float]:
    """Sum of p(x) over every image, and total variation distances between distributions."""
    test = frequencies(dataset, "test", every)
    train = frequencies(dataset, "train", every)
    pixels = (train[:, None] * every.flatten(1)).sum(0)
    independent = torch.where(every.flatten(1) == 1, pixels, 1 - pixels).prod(1)
    return {
        "sum": p.sum().item(),
        "to_test": distance(p, test),
        "to_train": distance(p, train),
        "independent": distance(independent, test),
        "train_to_test": distance(train, test),
    }


def all_images(dataset: Dataset) -> Tensor:
    """Every binary image of this shape, float64, ``(2 ** pixels, C, H, W)``."""
    size = math.prod(dataset.image_shape)
    rows = torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=torch.float64)
    return rows.reshape(-1, *dataset.image_shape)


def probabilities(trained: Trained, every: Tensor) -> Tensor:
    """p(x) of the model, float64, ``(N,)``."""
    return log_p(trained.vae, every.to(trained.vae.model.origin)).exp()


def frequencies(dataset: Dataset, split: str, every: Tensor) -> Tensor:
    """The exact probability of each binary image under the split's grey images, ``(N,)``.

    Pixels are independent with probability level / (L - 1), so the probability of an image is a
    product, averaged over the grey images.
    """
    assert dataset.num_levels is not None
    levels = getattr(dataset, split).images.double().flatten(1) / (dataset.num_levels - 1)
    chance = torch.where(every.flatten(1)[:, None] == 1, levels, 1 - levels)
    return chance.prod(-1).mean(1)


def distance(p: Tensor, q: Tensor) -> float:
    """The total variation distance: the largest difference in the probability of an event."""
    return 0.5 * (p - q).abs().sum().item()


def log_p(vae: VAE, x: Tensor) -> Tensor:
    """log p(x) by quadrature, ``(N,)``; it does not rely on the encoder for unusual x."""
    return estimate_together({"q": Quadrature()}, vae, x, seed=0)["q"].estimate.value


def images_by_kind(trained: Trained, context: Context) -> dict[str, Tensor]:
    """The images by kind, each ``(N, C, H, W)``; one blank image and one mode."""
    vae, n = trained.vae, context.options.images
    digits = trained.x("test", n)
    stream = trained.dataset.held_out_stream("test").generator
    unseen = context.dataset.test.of_classes([context.options.held_out]).images[:n]
    shape, device = digits.shape, digits.device
    generator = torch.Generator().manual_seed(trained.seed)
    order = torch.rand(digits.flatten(1).shape, generator=generator).argsort(1).to(device)
    noise = torch.rand(shape, generator=generator).round().to(device)
    model_draws = draw_x(vae, n, trained.seed)
    return {
        "digits": digits,
        "model_draws": model_draws,
        "held_out": vae.model.likelihood.prepare(unseen, stream).to(device),
        "shuffled": digits.flatten(1).gather(1, order).reshape(shape),
        "noise": noise,
        "blank": torch.zeros(1, *shape[1:], device=device),
        "mode": most_probable(vae, torch.cat([digits, model_draws])),
    }


def draw_x(vae: VAE, num_images: int, seed: int) -> Tensor:
    """x ~ p(x) by the generative model."""
    with torch.no_grad(), RandomStream("draws", seed, vae.device).active():
        x: Tensor = vae.model(None, num_images)
    return x


def most_probable(vae: VAE, starts: Tensor, per_axis: int = 65) -> Tensor:
    """A local maximum of p(x) under flips of one pixel, ``(1, C, H, W)``.

    The best of several searches, in which p(x) is a sum over a grid of z.
    """
    axis = torch.linspace(-4, 4, per_axis, device=starts.device)
    z = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        logits = vae.model.decoder(z).flatten(1).double()
        log_prior = vae.model.prior().log_prob(z).double()
    base = -torch.nn.functional.softplus(logits).sum(1) + log_prior

    def score(x: Tensor) -> Tensor:
        return (x.flatten(1).double() @ logits.T + base).logsumexp(1)

    means = (logits.sigmoid() > 0.5).to(starts).reshape(-1, *starts.shape[1:]).unique(dim=0)
    starts = torch.cat([starts, means])
    x = starts[score(starts).topk(min(10, len(starts))).indices]
    flips = torch.eye(x[0].numel(), device=x.device).reshape(-1, *x.shape[1:])
    best = x
    for start in x:
        image, current = start[None], score(start[None]).item()
        while True:
            neighbours = (image - flips).abs()
            scores = score(neighbours)
            if scores.max().item() <= current:
                break
            image, current = neighbours[scores.argmax()][None], scores.max().item()
        best = torch.cat([best, image])
    return best[score(best).argmax()][None]


NAMES = {
    "digits": "test digits",
    "model_draws": "drawn from\nthe model",
    "held_out": "class never\nseen",
    "shuffled": "pixels\nshuffled",
    "noise": "noise",
    "blank": "blank",
    "mode": "most\nprobable",
}


def draw(p: Tensor, q: Tensor, kinds: list[dict[str, Tensor]], images: dict[str, Tensor]) -> Figure:
    """Left: p(x) against the frequency q of every small image. Right: log p(x) by kind."""
    figure, (left, right) = new_figure(11.5, 4.8, 1, 2, width_ratios=[1, 1.35])
    left.plot(q, p, ".", color=COLOURS[0], alpha=0.7)
    ends = [0.5 * min(p.min().item(), q[q > 0].min().item()), 1]
    left.plot(ends, ends, color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    label(
        left,
        "all 512 images of 3 x 3 pixels: p(x) is a probability",
        "how often the test data draw x",
        "p(x) of the VAE",
    )
    everything = torch.cat([values for k in kinds for values in k.values()])
    low, high = everything.min().item(), everything.max().item()
    height = (high - low) / 6
    for place, name in enumerate(NAMES):
        values = torch.cat([k[name] for k in kinds])
        spread = (torch.rand(len(values), generator=torch.Generator().manual_seed(0)) - 0.5) * 0.5
        right.plot(place + spread, values, ".", color=COLOURS[place % len(COLOURS)], alpha=0.5)
        right.plot([place - 0.35, place + 0.35], [values.mean()] * 2, color="black")
        corner = (place - 0.4, high + 0.25 * height, 0.8, height)
        show_images(right.inset_axes(corner, transform=right.transData), images[name][:1], 1)
    right.set_xticks(range(len(NAMES)), list(NAMES.values()), fontsize="small")
    right.set_ylim(low - 0.2 * height, high + 1.5 * height)
    pixels = " x ".join(str(side) for side in images["digits"].shape[2:])
    label(
        right,
        "typical is not most probable (one of each above; line: mean; all seeds)",
        "",
        f"log p(x), nats per image of {pixels} binary pixels",
    )
    return figure


experiment = Experiment(
    "what_is_p_of_an_image",
    "What is p of an image?",
    run,
    options=ImageOptions,
    overrides=("likelihood=bernoulli",),
    seeds=(0, 1, 2, 3, 4),
)
