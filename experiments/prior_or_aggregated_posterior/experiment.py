"""Samples with z ~ p(z), as the model is written, and with z ~ q(z), the mean of q(z | x)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from sklearn.ensemble import ExtraTreesClassifier
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, label, new_figure, show_images
from experiments.images import accuracy_between
from experiments.numbers import Number, Verdict, above, all_of, below, over_images, over_seeds
from experiments.vaes import Trained, VAESpec
from vae_pyro.config import Positive
from vae_pyro.evaluation.latent import information
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

REACH = 3.5  # of the map to every side, in standard deviations of the prior
NUMBERS_AT_ONCE = 2**22
NATS = ("rate", "information", "information_upper", "kl", "kl_lower", "kl_control", "kl_excess")


@dataclass(frozen=True)
class PriorOptions(Options):
    """Options of this experiment.

    Args:
        latent_dims: latent dimensions with the default likelihood; must include 2.
        grey_latent_dim: latent dimension for grey images, with a learned normal scale.
        images: number of training images whose q(z | x) are averaged to q(z), at most.
        latents: samples of z per image, for the mutual information.
        prior_draws: samples from the prior that are searched for holes.
        far: a hole is where q(z) is below p(z) by this factor.
        generated: images generated with each z, at most as many as there are held-out images.

    Raises:
        ValueError: if 2 is not among ``latent_dims``.
    """

    latent_dims: tuple[Positive, ...] = (2, 10, 20)
    grey_latent_dim: Positive = 10
    images: Annotated[int, Field(ge=2)] = 1500
    latents: Annotated[int, Field(ge=2)] = 8
    prior_draws: Annotated[int, Field(ge=10)] = 4000
    far: Annotated[float, Field(gt=1)] = 10.0
    generated: Annotated[int, Field(ge=20)] = 600

    def __post_init__(self) -> None:
        super().__post_init__()
        if 2 not in self.latent_dims:
            raise ValueError(f"latent_dims: must contain 2, got {list(self.latent_dims)}")


@dataclass(frozen=True)
class Critics:
    """Real images, and a classifier trained on them, to compare generated images with.

    Attributes:
        real: held-out images, half of each split, ``(N, C, H, W)``.
        trees: classify an image by votes.
    """

    real: Tensor
    trees: ExtraTreesClassifier

    def clear(self, images: Tensor) -> Tensor:
        """Share of the votes for the class with most votes, ``(N,)``."""
        votes = self.trees.predict_proba(images.cpu().flatten(1).numpy())
        return torch.from_numpy(votes).max(1).values


def train_critics(trained: Trained, options: PriorOptions) -> Critics:
    """Critics of images as this VAE's likelihood prepares them."""
    half = options.generated // 2
    real = torch.cat([trained.x("valid", half), trained.x("test", half)]).cpu()
    split = trained.dataset.train
    images, labels = split.images[: options.images], split.labels[: options.images]
    prepare, generator = trained.vae.model.likelihood.prepare, RandomStream("critics", 0).generator
    x = torch.cat([prepare(images, generator) for _ in range(2)])  # to learn the noise too
    trees = ExtraTreesClassifier(200, random_state=0)
    return Critics(real, trees.fit(x.flatten(1).numpy(), labels.repeat(2).numpy()))


def run(context: Context) -> Result:
    options: PriorOptions = context.options
    dims = sorted(set(options.latent_dims))
    specs = {str(d): VAESpec((f"latent_dim={d}",)) for d in dims}
    grey = (f"latent_dim={options.grey_latent_dim}", "likelihood=normal_learned_scale")
    specs["grey"] = VAESpec(grey)
    families = dict(zip(specs, context.train(list(specs.values())), strict=True))
    numbers: dict[str, Number] = {}
    for kind, family in families.items():
        context.tell(f"{kind} {'images' if kind == 'grey' else 'latent dimensions'}")
        critics = train_critics(family[0], options)
        found = [measure(trained, critics, options) for trained in family]
        for one in found:  # differences within the same VAE
            one["accuracy_difference"] = one["accuracy_prior"] - one["accuracy_aggregated"]
            one["clear_difference"] = one["clear_aggregated"] - one["clear_prior"]
            one["kl_excess"] = one["kl"] - one["kl_control"]
        for name in found[0]:
            values = [one[name] for one in found]
            unit = "nats" if name in NATS else "share"
            numbers[f"{name}_{kind}"] = over_seeds(values, unit)
        numbers |= of_real_images(critics, family[0], kind)
    last = dims[-1]
    answer = (
        f"For binary images in {last} dimensions {compare(numbers, str(last))}. For grey images in "
        f"{options.grey_latent_dim} dimensions {compare(numbers, 'grey')}."
    )
    return Result(numbers, predict(numbers, dims), answer, draw(numbers, families, options))


def predict(numbers: Mapping[str, Number], dims: Sequence[int]) -> dict[str, Verdict]:
    """The verdict on each prediction."""

    def everywhere(smaller: str, larger: str) -> Verdict:
        return all_of(below(numbers[f"{smaller}_{d}"] - numbers[f"{larger}_{d}"]) for d in dims)

    last = dims[-1]
    return {
        "they_differ": everywhere("kl_control", "kl_lower"),
        "difference_grows": above(numbers[f"kl_{last}"] - numbers["kl_2"]),
        "holes_exist": everywhere("holes_control", "holes"),
        "aggregated_looks_more_real": everywhere("accuracy_aggregated", "accuracy_prior"),
        "aggregated_is_clearer": everywhere("clear_prior", "clear_aggregated"),
        "holes_are_unclear": everywhere("clear_emptiest", "clear_prior"),
        "grey_differs_more": above(numbers["kl_excess_grey"] - numbers[f"kl_excess_{last}"]),
        "grey_aggregated_looks_more_real": above(numbers["accuracy_difference_grey"]),
        "grey_aggregated_is_clearer": above(numbers["clear_difference_grey"]),
    }


def compare(numbers: Mapping[str, Number], kind: str) -> str:
    """The comparison of images with z ~ q(z) and z ~ p(z), in words."""
    difference = numbers[f"accuracy_difference_{kind}"]
    look = {Verdict.HELD: "more", Verdict.REFUTED: "less"}.get(above(difference))
    found = (
        f"images with z ~ q(z) look {look} real to a classifier"
        if look
        else "a classifier shows no detectable difference"
    )
    return f"{found} (accuracy with z ~ p(z) less that with z ~ q(z): {difference})"


def of_real_images(critics: Critics, trained: Trained, kind: str) -> dict[str, Number]:
    """The critics' measures of real images: training images against held-out ones."""
    x = trained.x("train", len(critics.real))
    share, count = accuracy_between(x, critics.real), 2 * len(x)
    return {
        f"accuracy_real_{kind}": Number(share, math.sqrt(0.25 / count), "share", (), count - 1),
        f"clear_real_{kind}": over_images(critics.clear(critics.real), "share"),
    }


def measure(trained: Trained, critics: Critics, options: PriorOptions) -> dict[str, float]:
    """All numbers of one VAE."""
    vae, count = trained.vae, len(critics.real)
    x = trained.x("train", options.images)
    with torch.no_grad(), RandomStream("latent space", trained.seed, x.device).active():
        real = information(vae, x, options.latents)
        z = vae.model.prior().sample((options.prior_draws,))
        # For images of the VAE q(z) = p(z), up to the encoder's errors and their finite number.
        simulated = vae.model.decode(vae.model.prior().sample((len(x),))).sample()
        simulated = vae.model.likelihood.into_support(simulated)
        control = information(vae, simulated, options.latents)
        ratio = log_ratio(vae, x, z)
        emptiest = z[ratio.argsort()[: max(1, options.prior_draws // 10)]]
        images = {
            "prior": vae.model.decode(vae.model.prior().sample((count,))).sample(),
            "aggregated": vae.model.decode(aggregated(vae, x, count)).sample(),
            "emptiest": vae.model.decode(emptiest).sample(),
        }
    limit = -math.log(options.far)
    numbers = {
        "rate": real.kl.mean(),
        "information": real.mutual_information.mean(),
        "information_upper": real.mutual_information_upper.mean(),
        "kl": real.marginal_kl.mean(),
        "kl_lower": real.kl.mean() - real.mutual_information_upper.mean(),
        "kl_control": control.marginal_kl.mean(),
        "holes": (ratio < limit).double().mean().item(),
        "holes_control": (log_ratio(vae, simulated, z) < limit).double().mean().item(),
    }
    for name in ("prior", "aggregated"):
        numbers[f"accuracy_{name}"] = accuracy_between(images[name], critics.real)
    return numbers | {f"clear_{k}": critics.clear(v).mean().item() for k, v in images.items()}


def aggregated(vae: VAE, x: Tensor, count: int) -> Tensor:
    """z ~ q(z): one image of x ``(N, C, H, W)`` at random, then z ~ q(z | x); ``(count, D)``."""
    chosen = torch.randint(len(x), (count,), device=x.device)
    z: Tensor = vae.guide.posterior(x[chosen]).sample()
    return z


def log_ratio(vae: VAE, x: Tensor, z: Tensor) -> Tensor:
    """log q(z) - log p(z), nats, float64, ``(M,)``; q(z) is the mean of q(z | x_i) over x.

    Args:
        vae: the pair.
        x: images, ``(N, C, H, W)``.
        z: points, ``(M, D)``.
    """
    per_chunk = max(1, NUMBERS_AT_ONCE // (len(x) * z.shape[1]))
    with torch.no_grad():
        q = vae.guide.posterior(x)
        log_q = torch.cat(
            [
                q.log_prob(part[:, None].expand(-1, len(x), -1)).double().logsumexp(1)
                for part in z.split(per_chunk)
            ]
        )
        return (log_q - math.log(len(x)) - vae.model.prior().log_prob(z).double()).cpu()


def draw(
    numbers: Mapping[str, Number], families: Mapping[str, list[Trained]], options: PriorOptions
) -> Figure:
    figure, ((where, divided, told), (of_prior, of_aggregated, clear)) = new_figure(12, 7.2, 2, 3)
    draw_map(figure, where, families["2"][0], options)
    places = range(len(families))

    def of(name: str) -> tuple[list[float], list[float]]:
        chosen = [numbers[f"{name}_{kind}"] for kind in families]
        return [n.value for n in chosen], [n.std_error or 0.0 for n in chosen]

    for name, (place, colour, text) in {
        "rate": (-0.27, 0, "rate, KL(q(z | x) || p(z))"),
        "kl": (0.0, 1, "its part KL(q(z) || p(z))"),
        "kl_control": (0.27, 6, "likewise, images of the VAE (control)"),
    }.items():
        values, errors = of(name)
        divided.bar(
            [p + place for p in places],
            values,
            0.27,
            yerr=errors,
            capsize=2,
            color=COLOURS[colour],
            label=text,
        )
    label(divided, "the rate, and the mismatch in it", "", "nats per image")
    divided.set_ylim(0, 1.4 * max(of("rate")[0]))
    for axes, name, title in (
        (told, "accuracy", "classifier, generated or held-out (0.5: chance)"),
        (clear, "clear", "clearness: votes for the top class"),
    ):
        for index, (kind, text) in enumerate(
            (("aggregated", "z ~ q(z)"), ("prior", "z ~ p(z)"), ("real", "real images"))
        ):
            values, errors = of(f"{name}_{kind}")
            axes.errorbar(
                places,
                values,
                yerr=errors,
                color=COLOURS[(0, 1, 6)[index]],
                marker="osD"[index],
                ls="",
                capsize=3,
                label=text,
            )
        label(axes, title, "", "accuracy" if name == "accuracy" else "share of votes")
    names = [f"binary,\n{k} dim." if k != "grey" else "grey" for k in families]
    names[-1] += f",\n{options.grey_latent_dim} dim."
    for axes in (divided, told, clear):
        axes.set_xticks(list(places), names)
        axes.margins(x=0.15)
        axes.legend(fontsize="small")
    shown, side = families["grey"][0], 8
    with torch.no_grad(), RandomStream("figure", shown.seed).active():
        x = shown.x("train", options.images)
        z = shown.vae.model.prior().sample((side * side,))
        for axes, points, text in (
            (of_prior, z, "z ~ p(z)"),
            (of_aggregated, aggregated(shown.vae, x, side * side), "z ~ q(z)"),
        ):
            means = shown.vae.model.decode(points).mean
            show_images(axes, means, side, f"grey: means of p(x | z), {text}")
    return figure


def draw_map(figure: Figure, axes: Axes, trained: Trained, options: PriorOptions) -> None:
    """Draw log10 of q(z) / p(z) in two dimensions, and contours of p(z)."""
    side = 80
    axis = torch.linspace(-REACH, REACH, side)
    across, up = torch.meshgrid(axis, axis, indexing="xy")
    z = torch.stack([across, up], -1).reshape(-1, 2).to(trained.vae.model.origin)
    ratio = log_ratio(trained.vae, trained.x("train", options.images), z).reshape(side, side)
    extent: Any = (-REACH, REACH, -REACH, REACH)
    shades = axes.imshow(
        (ratio / math.log(10)).clamp(-2, 2),
        origin="lower",
        extent=extent,
        cmap="PuOr",
        vmin=-2,
        vmax=2,
    )
    figure.colorbar(shades, ax=axes, label="log10 of q(z) / p(z)")
    radius = (across.square() + up.square()).sqrt()
    rings = axes.contour(
        axis, axis, radius, levels=[1.18, 2.15, 3.03], colors="black", linewidths=1
    )
    shares = dict(zip(rings.levels, ("50%", "90%", "99%"), strict=True))
    axes.clabel(rings, fmt=shares, fontsize="small")
    label(axes, "binary, 2 dim.; rings: shares of p(z)", "z[0]", "z[1]")


experiment = Experiment(
    "prior_or_aggregated_posterior",
    "Should one draw z from the prior or from where images lie?",
    run,
    options=PriorOptions,
    seeds=(0, 1, 2, 3, 4),
)
