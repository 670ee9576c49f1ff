"""Networks output parameters: for all of them p(x | z) and q(z | x) integrate to 1."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from experiments.context import Context, Experiment, Options, Result
from experiments.do_networks_output_distributions.integrals import (
    log_integral_of_bernoulli_formula,
    over_pixels,
    over_z,
)
from experiments.figures import COLOURS, MARKERS, label, new_figure
from experiments.numbers import Number, Verdict, above, all_of, below, over_images
from experiments.vaes import Trained, VAESpec
from vae_pyro.likelihoods import Support
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

LIKELIHOODS = (
    "bernoulli",
    "categorical",
    "discretized_logistic_mixture",
    "continuous_bernoulli",
    "beta",
    "normal",
    "normal_learned_scale",
    "normal_heteroscedastic",
)
GUIDES = ("diag_normal", "full_rank_normal", "flow")
CONTRASTS = {
    "exponential": "exp(raw output)",
    "grey_bernoulli": "Bernoulli's formula, grey pixels",
    "squared_error": "exp(-squared error)",
}
EXACT, BROKEN = 1e-6, 1e-3  # how far from 1 counts as rounding, and as no distribution
PRECISIONS = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class NetworkOptions(Options):
    """Options of this experiment.

    Args:
        likelihoods: must include bernoulli and categorical, which the contrast needs.
        inputs: z's (or x's) of each kind: random, extreme, adversarial.
        radius: largest distance of adversarial z's from 0.
        steps: of the gradient ascent that finds them.
        radii: powers of ten of the extreme distances from 0.
        grid: points per axis of the grid over z, odd.
        points: of the line over which the density of a pixel is integrated, odd.

    Raises:
        ValueError: if a number is too small, even or missing.
    """

    likelihoods: tuple[str, ...] = LIKELIHOODS
    inputs: int = 8
    radius: float = 10.0
    steps: int = 100
    radii: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    grid: int = 601
    points: int = 1_001

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(inputs=1, steps=1, grid=3, points=3)
        if not {"bernoulli", "categorical"} <= set(self.likelihoods):
            raise ValueError("likelihoods: bernoulli and categorical must be among them")
        if not (self.grid % 2 and self.points % 2 and self.radius > 0 and self.radii):
            raise ValueError("grid: it and points must be odd, radius positive, radii not empty")


@dataclass(frozen=True)
class Deviations:
    """The largest distance of an integral from 1, by kind.

    Attributes:
        worst: by precision and kind of input.
        far: in float32 by power of ten of the distance of z from 0; empty for guides.
        unreachable: by precision, the largest mass nearer to 0 or 1 than any representable number.
        largest: the largest output of the network.
    """

    worst: Mapping[str, Mapping[str, float]]
    far: Mapping[int, float]
    unreachable: Mapping[str, float]
    largest: float


def run(context: Context) -> Result:
    options = context.options
    specs = [VAESpec(("latent_dim=2", f"likelihood={name}")) for name in options.likelihoods]
    specs += [VAESpec(("latent_dim=2", f"guide={name}")) for name in GUIDES[1:]]
    vaes = context.train(specs)
    likelihoods = dict(zip(options.likelihoods, vaes, strict=False))
    guides = dict(zip(GUIDES, [likelihoods["bernoulli"], *vaes[len(likelihoods) :]], strict=True))
    found: dict[str, Deviations] = {}
    for name, of in likelihoods.items():
        context.tell(f"p(x | z): {name}")
        found[name] = combine([pixels(t, options) for t in of])
    for name, of in guides.items():
        context.tell(f"q(z | x): {name}")
        found[name] = combine([posteriors(t, options) for t in of])
    contrast = contrasts(likelihoods, options)
    numbers = deviation_numbers(found) | contrast
    tried = 2 * 4 * options.inputs * len(context.seeds)  # extreme ones count twice
    numbers["inputs"] = Number(tried, unit="inputs of each kind of network")
    worst = {name: numbers[f"worst_{name}"] for name in found}
    discrete = [n for n in likelihoods if is_discrete(likelihoods[n][0].vae)]
    tolerance = EXACT + numbers["grid_error"].value
    far = {name: Number(max(found[name].far.values())) for name in likelihoods}
    worst_density = max((far[n].value for n in far if n not in discrete), default=math.nan)
    predictions = {
        "likelihoods_integrate": all_of(below(worst[name], EXACT) for name in likelihoods),
        "guides_integrate": all_of(below(worst[name], tolerance) for name in GUIDES),
        "training_plays_no_part": below(numbers["worst_untrained"], tolerance),
        "adversary_fails": below(numbers["worst_adversarial"], tolerance),
        "levels_hold_far_out": all_of(below(far[name], BROKEN) for name in discrete),
        "densities_give_out_in_float32": above(Number(worst_density), BROKEN),
        "raw_outputs_do_not_integrate": all_of(map(misses_one, contrast.values())),
    }
    answer = (
        f"They output parameters, and any parameters give a distribution: for all inputs tried, "
        f"random, extreme and adversarial, the integrals of p(x | z) over a pixel and of q(z | x), "
        f"computed in float64, are at most {max(worst.values(), key=lambda n: n.value)} away from "
        f"1."
    )
    return Result(numbers, predictions, answer, draw(found, contrast))


def misses_one(log_integral: Number) -> Verdict:
    """Whether an integral misses 1 by more than a factor of e, up or down."""
    return above(log_integral if log_integral.value > 0 else -1 * log_integral, 1)


def is_discrete(vae: VAE) -> bool:
    """Whether p(x | z) is a probability of levels, and not a density."""
    return vae.model.likelihood.support in (Support.BINARY, Support.LEVELS)


def untrained(vae: VAE, seed: int) -> VAE:
    """The same networks with new random weights."""
    fresh = copy.deepcopy(vae)
    with RandomStream("untrained", seed, vae.device).active():
        for module in fresh.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.reset_parameters()
    return fresh


def pixels(trained: Trained, options: NetworkOptions) -> Deviations:
    """The integrals of p(x | z) at random, extreme and adversarial z."""
    worst: dict[str, dict[str, float]] = {name: {} for name in PRECISIONS}
    unreachable, far, largest = dict.fromkeys(PRECISIONS, 0.0), {}, 0.0
    for state, vae in (("", trained.vae), ("untrained", untrained(trained.vae, trained.seed))):
        z = random_z(vae, options.inputs, trained.seed)
        kinds = {
            "random": z,
            "extreme": torch.cat([options.radius**2 * along(z), options.radius * along(z)]),
            "adversarial": adversarial(vae.model.decoder, z, options),
        }
        for precision, dtype in PRECISIONS.items():
            cast = copy.deepcopy(vae).to(dtype)
            for kind, at in kinds.items():
                off, lost, size = deviation(cast, at.to(dtype), options.points)
                for key in (kind, state):
                    worst[precision][key] = max(off, worst[precision].get(key, 0.0))
                unreachable[precision] = max(unreachable[precision], lost)
                largest = max(largest, size)
    for power in options.radii:
        z = 10.0**power * along(random_z(trained.vae, options.inputs, trained.seed))
        far[power] = deviation(trained.vae, z, options.points)[0]
    return Deviations(worst, far, unreachable, largest)


def random_z(vae: VAE, number: int, seed: int) -> Tensor:
    """z ~ p(z), ``(number, D)``."""
    with RandomStream("inputs", seed, vae.device).active():
        z: Tensor = vae.model.prior().sample((number,))
    return z


def along(z: Tensor) -> Tensor:
    """The directions of z ``(N, D)``."""
    return z / z.norm(dim=-1, keepdim=True)


def deviation(vae: VAE, z: Tensor, points: int) -> tuple[float, float, float]:
    """|integral - 1| of the worst pixel, mass out of reach, and the largest output."""
    with torch.no_grad():
        outputs = vae.model.decoder(z)
        integral = over_pixels(vae.model.likelihood, outputs, points)
    off = (integral.value - 1).abs().nan_to_num(nan=math.inf).max().item()
    return off, integral.unreachable.max().item(), outputs.abs().max().item()


def adversarial(network: nn.Module, start: Tensor, options: NetworkOptions) -> Tensor:
    """Inputs within ``radius`` whose outputs gradient ascent has made as large as it can."""
    at = start.clone().requires_grad_()
    adam = torch.optim.Adam([at], lr=options.radius / 20)
    for _ in range(options.steps):
        size = network(at).square().flatten(1).sum(1)
        (at.grad,) = torch.autograd.grad(-(size + 1e-12).log().sum(), at)
        adam.step()
        with torch.no_grad():
            norm = at.flatten(1).norm(dim=1).clamp(min=1e-12)
            shrink = (options.radius / norm).clamp(max=1)
            at *= shrink.reshape(-1, *[1] * (at.dim() - 1))
    return at.detach()


def posteriors(trained: Trained, options: NetworkOptions) -> Deviations:
    """The integrals of q(z | x) at test images, extreme and adversarial images."""
    worst: dict[str, dict[str, float]] = {name: {} for name in PRECISIONS}
    largest = 0.0
    for state, vae in (("", trained.vae), ("untrained", untrained(trained.vae, trained.seed))):
        x = trained.x("test", options.inputs)
        flat = torch.linspace(0, 1, options.inputs).to(x)[:, None, None, None].expand_as(x)
        kinds = {
            "random": x,
            "extreme": torch.cat([flat, options.radius * along(x.flatten(1)).reshape(x.shape)]),
            "adversarial": adversarial(vae.guide.encoder, x, options),
        }
        for precision, dtype in PRECISIONS.items():
            cast = copy.deepcopy(vae).to(dtype)
            for kind, images in kinds.items():
                off = 0.0
                with torch.no_grad(), RandomStream("z", trained.seed, x.device).active():
                    for image in images.to(dtype).split(1):
                        total, error = over_z(cast.guide.posterior(image), options.grid)
                        off = max(off, abs(total - 1))
                        worst[precision]["grid"] = max(error, worst[precision].get("grid", 0.0))
                    largest = max(largest, cast.guide.encoder(images.to(dtype)).abs().max().item())
                for key in (kind, state):
                    worst[precision][key] = max(off, worst[precision].get(key, 0.0))
    return Deviations(worst, {}, dict.fromkeys(PRECISIONS, 0.0), largest)


def combine(found: Sequence[Deviations]) -> Deviations:
    """The worst of all seeds."""
    first = found[0]
    return Deviations(
        {p: {k: max(f.worst[p][k] for f in found) for k in of} for p, of in first.worst.items()},
        {power: max(f.far[power] for f in found) for power in first.far},
        {p: max(f.unreachable[p] for f in found) for p in first.unreachable},
        max(f.largest for f in found),
    )


def deviation_numbers(found: Mapping[str, Deviations]) -> dict[str, Number]:
    """The worst integral of each kind; no error bars, because they are exact up to rounding."""
    inputs = ("random", "extreme", "adversarial")
    numbers = {}
    for name, of in found.items():
        for prefix, precision in (("worst", "float64"), ("float32", "float32")):
            numbers[f"{prefix}_{name}"] = Number(max(of.worst[precision][k] for k in inputs))
        numbers[f"largest_output_{name}"] = Number(of.largest)
        broken = [power for power, off in of.far.items() if off > BROKEN]
        if broken:
            numbers[f"breaks_at_{name}"] = Number(10.0 ** min(broken), unit="distance of z from 0")
    for kind in (*inputs, "untrained"):
        numbers[f"worst_{kind}"] = Number(max(of.worst["float64"][kind] for of in found.values()))
    grids = [of.worst["float64"]["grid"] for of in found.values() if "grid" in of.worst["float64"]]
    return numbers | {
        "grid_error": Number(max(grids)),
        **{
            f"out_of_reach_{precision}": Number(
                max(of.unreachable[precision] for of in found.values()), unit="share"
            )
            for precision in PRECISIONS
        },
    }


def contrasts(
    likelihoods: Mapping[str, Sequence[Trained]], options: NetworkOptions
) -> dict[str, Number]:
    """log of the integral over all images of three functions that are no distributions, nats."""

    def outputs(name: str) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [
                    t.vae.model.decoder(random_z(t.vae, options.inputs, t.seed)).double().cpu()
                    for t in likelihoods[name]
                ]
            )

    exponential = outputs("categorical").logsumexp(1).flatten(1).sum(1)
    grey = log_integral_of_bernoulli_formula(outputs("bernoulli")).flatten(1).sum(1)
    size = grey.new_tensor(outputs("bernoulli")[0].numel())
    nats = "nats"
    return {
        "exponential": over_images(exponential, nats),
        "grey_bernoulli": over_images(grey, nats),
        "squared_error": Number((size * math.log(math.pi) / 2).item(), unit=nats),
    }


def draw(found: Mapping[str, Deviations], contrast: Mapping[str, Number]) -> Figure:
    figure, (left, right) = new_figure(12, 5.2, 1, 2, width_ratios=[1.15, 1])
    draw_worst(left, found, contrast)
    styles = ("-", "--", ":", "-.")
    for index, name in enumerate(n for n in found if n not in GUIDES):
        far = found[name].far
        right.plot(
            [10.0**power for power in far],
            [max(off, 1e-9) for off in far.values()],
            color=COLOURS[index % 7] if index < 7 else "black",
            marker=MARKERS[index % 7],
            ls=styles[index % 4],
            label=name.replace("_", " "),
            markersize=5,
        )
    right.axhline(BROKEN, color="black", lw=0.8, ls="--")
    right.set(xscale="log", yscale="log", ylim=(1e-9, 1e5))
    right.legend(fontsize="small", ncols=2, loc="upper left")
    label(
        right,
        "where float32 is too coarse: densities that are narrow\nrelative to their mean",
        "distance of z from 0 (the prior: about 1.3)",
        "worst |integral - 1| of a pixel, float32",
    )
    return figure


def draw_worst(axes: Axes, found: Mapping[str, Deviations], contrast: Mapping[str, Number]) -> None:
    names = [*found, *contrast]
    for place, name in enumerate(names):
        if name in found:
            for index, precision in enumerate(PRECISIONS):
                worst = max(
                    found[name].worst[precision][k] for k in ("random", "extreme", "adversarial")
                )
                axes.plot(
                    max(worst, 1e-17),
                    -place,
                    MARKERS[index],
                    color=COLOURS[index],
                    label=None if place else f"a distribution, {precision}",
                )
        else:
            axes.plot(
                abs(contrast[name].value),
                -place,
                MARKERS[2],
                color=COLOURS[2],
                label="no distribution (all pixels)" if name == "exponential" else None,
            )
    titles = [
        CONTRASTS.get(name)
        or f"{'q(z | x)' if name in GUIDES else 'p(x | z)'} {name.replace('_', ' ')}"
        for name in names
    ]
    axes.set_yticks([-place for place in range(len(names))], titles, fontsize="small")
    axes.set(xscale="log", xlim=(1e-17, 1e4))
    axes.legend(fontsize="small")
    label(
        axes,
        "the worst of random, extreme and adversarial inputs",
        "how far the log of the integral is from 0, nats",
        "",
    )


experiment = Experiment(
    "do_networks_output_distributions",
    "Do networks output distributions?",
    run,
    options=NetworkOptions,
    overrides=("training.epochs=5", "evaluation.num_samples=50"),
    seeds=(0,),
)
