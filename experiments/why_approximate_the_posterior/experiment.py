"""The true p(z | x), on a grid and by NUTS, compared with q(z | x) of the encoder."""

import copy
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pyro
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, label, new_figure
from experiments.numbers import Number, Verdict, above, all_of, below, over_seeds
from experiments.vaes import Trained, VAESpec
from vae_pyro.errors import EstimatorError
from vae_pyro.evaluation.latent import ACTIVE_VARIANCE, posterior_means
from vae_pyro.log_marginal import (
    ELBOBound,
    Estimator,
    ImportanceSampling,
    LocalELBO,
    Quadrature,
    estimate_together,
)
from vae_pyro.log_marginal.proposals import Mixture, inflate
from vae_pyro.log_marginal.weights import log_joint
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE

GUIDES = {"diag_normal": "normal", "full_rank_normal": "full-rank normal", "flow": "flow"}
LARGE_GUIDES = ("diag_normal",)  # each guide is one more VAE per seed
INFLATION, PRIOR_SHARE = 1.2, 0.1  # of the proposal for the posterior's moments
MASSES = (0.99, 0.9, 0.5)  # within the contours
HALF_WIDTH, COARSE, NEGLIGIBLE = 6.0, 121, 12.0  # of the first grid; its points; nats


@dataclass(frozen=True)
class PosteriorOptions(Options):
    """Options of this experiment.

    Args:
        large: latent dimensions of the second kind of VAE; the first has 2.
        images: number of test images whose gap is computed.
        grid: points per axis of the grid on which p(z | x) is drawn.
        local_steps: steps of the search for the best q of each image.
        draws: weighted samples per image, for log p(x) and the moments of p(z | x).
        nuts_images: number of test images whose posterior NUTS samples.
        nuts_samples: samples of NUTS after the warm-up.
        nuts_warmup: samples of the warm-up.

    Raises:
        ValueError: if a number is too small.
    """

    large: int = 10
    images: int = 40
    grid: int = 161
    local_steps: int = 300
    draws: int = 20_000
    nuts_images: int = 6
    nuts_samples: int = 300
    nuts_warmup: int = 150

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(large=3, images=1, grid=3, local_steps=1, draws=100)
        self.at_least(nuts_images=1, nuts_samples=10, nuts_warmup=10)


@dataclass(frozen=True)
class Gap:
    """log p(x) - ELBO of each image, and its two parts where known; nats, ``(images,)``."""

    total: Tensor
    approximation: Tensor | None
    amortisation: Tensor | None


@dataclass(frozen=True)
class Moments:
    """Moments of p(z | x) or an approximation, by latent dimension, each ``(images, D)``."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Compared:
    """The posterior of some images by three methods, in the dimensions that the encoder uses.

    Attributes:
        weighted: by weighted samples.
        nuts: by NUTS.
        q: by the encoder.
        evaluations: of the decoder and its gradient, per image, by NUTS.
        effective: effective sample size of NUTS, mean over dimensions.
        correlation: the strongest between two dimensions under p(z | x), mean over images.
    """

    weighted: Moments
    nuts: Moments
    q: Moments
    evaluations: int
    effective: float
    correlation: float

    def shift(self, other: Moments) -> Tensor:
        """Difference of the means, in standard deviations of the posterior."""
        return (other.mean - self.weighted.mean) / self.weighted.std

    def ratio(self, other: Moments) -> float:
        """Geometric mean of the standard deviations divided by those of the posterior."""
        return (other.std / self.weighted.std).log().mean().exp().item()


@dataclass(frozen=True)
class Contours:
    """Densities on a grid of two dimensions, each ``(grid, grid)``: first axis, second axis.

    Attributes:
        axes: the points of each axis.
        posterior: p(z | x).
        q: q(z | x).
        log_p: log of the integral of p(x, z), nats.
    """

    axes: tuple[Tensor, Tensor]
    posterior: Tensor
    q: Tensor
    log_p: float


def run(context: Context) -> Result:
    options = context.options
    kinds = [(2, guide) for guide in GUIDES] + [(options.large, guide) for guide in LARGE_GUIDES]
    trained = context.train([VAESpec((f"latent_dim={d}", f"guide={g}")) for d, g in kinds])
    names = [f"{'small' if d == 2 else 'large'}_{guide}" for d, guide in kinds]
    vaes = dict(zip(names, trained, strict=True))
    found: dict[str, list[Gap]] = {}
    for name, of in vaes.items():
        context.tell(f"gap: {name}")
        found[name] = [gap(t, options) for t in of]
    context.tell("NUTS")
    compared = [compare(t, options) for t in vaes["large_diag_normal"]]
    shown = int(found["small_diag_normal"][0].total.argmax())
    drawn = {guide: contours(vaes[f"small_{guide}"][0], shown, options.grid) for guide in GUIDES}
    apart = [
        abs(drawn[guide].log_p - on_grid(vaes[f"small_{guide}"][0], shown)) for guide in GUIDES
    ]
    numbers = gap_numbers(found) | posterior_numbers(compared)
    numbers["grid_difference"] = Number(max(apart), unit="nats")
    numbers["shown_gap"] = Number(found["small_diag_normal"][0].total[shown].item(), unit="nats")
    numbers["full_rank_gain"] = (
        numbers["approximation_small_diag_normal"] - numbers["approximation_small_full_rank_normal"]
    )
    numbers["flow_gain"] = numbers["gap_small_diag_normal"] - numbers["gap_small_flow"]
    answer = (
        f"Because p(z | x) = p(x | z) p(z) / p(x), and p(x) is an integral over all z. The encoder "
        f"avoids this integral, and loses {numbers['gap_large_diag_normal']} nats per image "
        f"({options.large} latent dimensions, {options.images} test images)."
    )
    return Result(numbers, predict(numbers), answer, draw(drawn, numbers, compared, options))


def predict(numbers: Mapping[str, Number]) -> dict[str, Verdict]:
    """The verdict on each prediction."""
    larger = numbers["amortisation_large_diag_normal"] - numbers["approximation_large_diag_normal"]
    return {
        "grids_agree": below(numbers["grid_difference"], 0.01),
        "gaps_are_positive": all_of(
            above(numbers[name]) for name in numbers if name.startswith("gap_")
        ),
        "full_rank_approximates_better": above(numbers["full_rank_gain"]),
        "flow_has_smaller_gap": above(numbers["flow_gain"]),
        "amortisation_is_larger": above(larger),
        "q_is_narrower": below(numbers["q_std_ratio"], 1),
        "nuts_agrees": below(numbers["nuts_shift"] - 2 * numbers["nuts_shift_expected"], 0.02),
    }


def gap(trained: Trained, options: PosteriorOptions) -> Gap:
    """log p(x) - ELBO, split where the guide is normal."""
    vae, x = trained.vae, trained.x("test", options.images)
    known: Estimator = ImportanceSampling(
        options.draws, inflation=INFLATION, prior_share=PRIOR_SHARE
    )
    if vae.model.latent_dim == 2:
        known = Quadrature()
    estimators: dict[str, Estimator] = {"elbo": ELBOBound(1_000), "known": known}
    best = LocalELBO(num_steps=options.local_steps)
    with suppress(EstimatorError):  # not defined for a flow
        best.check(vae)
        estimators["best"] = best
    values = {
        name: timed.estimate.value
        for name, timed in estimate_together(estimators, vae, x, seed=trained.seed).items()
    }
    total = values["known"] - values["elbo"]
    if "best" not in values:
        return Gap(total, None, None)
    return Gap(total, values["known"] - values["best"], values["best"] - values["elbo"])


def gap_numbers(found: Mapping[str, Sequence[Gap]]) -> dict[str, Number]:
    """Means over images, by kind of VAE and part of the gap."""
    numbers = {}
    for name, gaps in found.items():
        nats = "nats per image"
        numbers[f"gap_{name}"] = over_seeds([g.total.mean().item() for g in gaps], nats)
        for part in ("approximation", "amortisation"):
            values = [getattr(g, part) for g in gaps]
            if values[0] is not None:
                numbers[f"{part}_{name}"] = over_seeds([v.mean().item() for v in values], nats)
    return numbers


def compare(trained: Trained, options: PosteriorOptions) -> Compared:
    """Moments of the posterior by weighted samples, by NUTS and by the encoder."""
    vae, x = trained.vae, trained.x("test", options.nuts_images)
    variances = posterior_means(vae, trained.x("test")).var(0)
    used = variances >= min(ACTIVE_VARIANCE, variances.max().item())
    with torch.no_grad(), RandomStream("weighted draws", trained.seed, x.device).active():
        weighted, correlation = weighted_moments(vae, x, options.draws, used)
        q = vae.guide.posterior(x)
        encoder = Moments(q.mean[:, used].double().cpu(), q.stddev[:, used].double().cpu())
    with RandomStream("NUTS", trained.seed, x.device).active():
        z, evaluations = nuts(vae, x, options)
    z = z[..., used].double().cpu()
    return Compared(
        weighted,
        Moments(z.mean(0), z.std(0)),
        encoder,
        evaluations,
        effective_sample_size(z[None]).mean().item(),
        correlation,
    )


def weighted_moments(vae: VAE, x: Tensor, num_draws: int, used: Tensor) -> tuple[Moments, float]:
    """Mean and standard deviation of p(z | x) by self-normalised importance sampling.

    Returns:
        moments in the dimensions ``used``, and the strongest correlation, mean over images.
    """
    narrow, wide = vae.guide.posterior(x), vae.model.prior().expand([len(x)])
    proposal = Mixture(inflate(narrow, INFLATION), wide, PRIOR_SHARE)
    parts, log_w = [], []
    for start in range(0, num_draws, 1_000):
        z = proposal.sample(torch.Size([min(1_000, num_draws - start)]))
        log_w.append((sum(log_joint(vae, x, z)) - proposal.log_prob(z)).double().cpu())
        parts.append(z[..., used].double().cpu())
    z = torch.cat(parts)
    w = torch.cat(log_w).softmax(0)[..., None]
    mean = (w * z).sum(0)
    apart = z - mean
    covariance = torch.einsum("kno,knd,kne->nde", w, apart, apart)
    std = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / (std[:, :, None] * std[:, None])
    off = correlation.abs() - torch.eye(std.shape[1])
    return Moments(mean, std), off.flatten(1).max(1).values.mean().item()


def nuts(vae: VAE, x: Tensor, options: PosteriorOptions) -> tuple[Tensor, int]:
    """Samples of p(z | x) by NUTS from the Pyro model itself.

    Returns:
        ``(samples, images, D)``, and the number of decoder evaluations.
    """
    model = copy.deepcopy(vae.model).requires_grad_(False)
    calls = []
    model.decoder.register_forward_hook(lambda *_: calls.append(1))
    chain = MCMC(NUTS(model), options.nuts_samples, options.nuts_warmup, disable_progbar=True)
    with pyro.get_param_store().scope():
        chain.run(x)
    return chain.get_samples()["z"], len(calls)


def posterior_numbers(compared: Sequence[Compared]) -> dict[str, Number]:
    """Differences of NUTS and the encoder from the weighted samples, means over seeds."""
    sds = "posterior standard deviations"
    expected = [math.sqrt(2 / math.pi / c.effective) for c in compared]  # E|N(0, 1 / ESS)|
    return {
        "nuts_shift": over_seeds([c.shift(c.nuts).abs().mean().item() for c in compared], sds),
        "nuts_shift_expected": over_seeds(expected, sds),
        "nuts_std_ratio": over_seeds([c.ratio(c.nuts) for c in compared]),
        "q_shift": over_seeds([c.shift(c.q).abs().mean().item() for c in compared], sds),
        "q_std_ratio": over_seeds([c.ratio(c.q) for c in compared]),
        "nuts_evaluations": over_seeds(
            [c.evaluations / 1_000 for c in compared], "thousand per image"
        ),
        "nuts_per_draw": over_seeds([c.evaluations / c.effective for c in compared]),
        "nuts_effective": over_seeds([c.effective for c in compared], "draws"),
        "correlation": over_seeds([c.correlation for c in compared]),
        "used": over_seeds([c.q.mean.shape[1] for c in compared], "latent dimensions"),
    }


def on_grid(trained: Trained, image: int) -> float:
    """log p(x) by the library's quadrature."""
    x = trained.x("test", image + 1)[-1:]
    return Quadrature()(trained.vae, x).value.item()


def contours(trained: Trained, image: int, points: int) -> Contours:
    """p(z | x) and q(z | x) on a grid that covers p(z | x)."""
    vae, x = trained.vae, trained.x("test", image + 1)[-1:]
    with torch.no_grad():
        axis = torch.linspace(-HALF_WIDTH, HALF_WIDTH, COARSE, device=x.device)
        z = torch.cartesian_prod(axis, axis)[:, None]
        log_p = torch.stack(log_joint(vae, x, z)).sum(0)[:, 0]
        kept = z[log_p > log_p.max() - NEGLIGIBLE, 0]
        margin = 2 * (axis[1] - axis[0])
        low, high = kept.min(0).values - margin, kept.max(0).values + margin
        first, second = (
            torch.linspace(a, b, points, device=x.device) for a, b in zip(low, high, strict=True)
        )
        z = torch.cartesian_prod(first, second)[:, None]
        log_p = torch.stack(log_joint(vae, x, z)).sum(0)[:, 0].double()
        log_q = vae.guide.posterior(x).log_prob(z)[:, 0].double()
    cell = ((first[1] - first[0]) * (second[1] - second[0])).item()
    total = log_p.logsumexp(0).item() + math.log(cell)
    return Contours(
        (first.cpu(), second.cpu()),
        (log_p - total).exp().reshape(points, points).cpu(),
        log_q.exp().reshape(points, points).cpu(),
        total,
    )


def levels(density: Tensor) -> list[float]:
    """The heights above which the density has each of MASSES, ascending."""
    ordered = density.flatten().sort(descending=True).values
    share = ordered.cumsum(0) / ordered.sum()
    return [ordered[(share < mass).sum().clamp(max=len(share) - 1)].item() for mass in MASSES]


def draw(
    drawn: Mapping[str, Contours],
    numbers: Mapping[str, Number],
    compared: Sequence[Compared],
    options: PosteriorOptions,
) -> Figure:
    figure, (top, bottom) = new_figure(12, 7.6, 2, 3)
    for axes, (guide, title) in zip(top, GUIDES.items(), strict=True):
        draw_contours(axes, drawn[guide], title)
    draw_gaps(bottom[0], numbers, options)
    draw_stds(bottom[1], compared, options)
    draw_shifts(bottom[2], compared, options)
    return figure


def draw_contours(axes: Axes, of: Contours, guide: str) -> None:
    grid = [axis.numpy() for axis in of.axes]
    heights = [*levels(of.posterior), of.posterior.max().item() * 1.01]
    shades = ["#d9d9d9", "#a6a6a6", "#6e6e6e"]
    axes.contourf(*grid, of.posterior.T.numpy(), levels=sorted(set(heights)), colors=shades)
    axes.contour(*grid, of.q.T.numpy(), levels=sorted(set(levels(of.q))), colors=COLOURS[1])
    axes.plot([], [], color="#a6a6a6", lw=6, label="p(z | x)")
    axes.plot([], [], color=COLOURS[1], label=f"q(z | x), {guide}")
    axes.legend(fontsize="small")
    label(axes, f"one image, 2 dimensions, guide: {guide}", "z_1", "z_2")


def draw_gaps(axes: Axes, numbers: Mapping[str, Number], options: PosteriorOptions) -> None:
    names = [name.removeprefix("gap_") for name in numbers if name.startswith("gap_")]
    for place, name in enumerate(names):
        total, bottom = numbers[f"gap_{name}"], 0.0
        parts = [numbers.get(f"{p}_{name}") for p in ("approximation", "amortisation")]
        for index, part in enumerate(parts):
            if part is not None:
                axes.bar(place, part.value, 0.7, bottom, color=COLOURS[index])
                bottom += part.value
        if parts[0] is None:
            axes.bar(place, total.value, 0.7, color=COLOURS[6])
        axes.errorbar(place, total.value, total.std_error or 0, color="black", capsize=4)
    for index, title in (
        (0, "approximation: the family"),
        (1, "amortisation: one encoder for all"),
        (6, "both (not split for a flow)"),
    ):
        axes.bar([0], [0], color=COLOURS[index], label=title)
    short = {"diag_normal": "normal", "full_rank_normal": "full\nrank", "flow": "flow"}
    ticks = []
    for name in names:
        size, _, guide = name.partition("_")
        ticks.append(f"{short[guide]}\n{2 if size == 'small' else options.large}-D")
    axes.set_xticks(range(len(names)), ticks, fontsize="small")
    axes.set_ylim(0, 1.45 * max(numbers[f"gap_{name}"].value for name in names))
    axes.legend(fontsize="small")
    label(axes, "what q(z | x) costs: log p(x) - ELBO", "", "nats per image")


def draw_stds(axes: Axes, compared: Sequence[Compared], options: PosteriorOptions) -> None:
    x = torch.cat([c.weighted.std.flatten() for c in compared])
    for index, (name, title) in enumerate((("nuts", "NUTS"), ("q", "q(z | x)"))):
        y = torch.cat([getattr(c, name).std.flatten() for c in compared])
        axes.plot(x, y, MARKERS[index], color=COLOURS[index], alpha=0.6, markersize=4, label=title)
    axes.axline((x.min().item(),) * 2, slope=1, color="black", lw=0.8)
    axes.legend(fontsize="small")
    label(
        axes,
        f"spread of each used z_d ({options.large}-D)",
        "standard deviation by weighted draws",
        "standard deviation",
    )


def draw_shifts(axes: Axes, compared: Sequence[Compared], options: PosteriorOptions) -> None:
    shifts = [
        torch.cat([c.shift(getattr(c, name)).flatten() for c in compared]) for name in ("nuts", "q")
    ]
    reach = max(shift.abs().max().item() for shift in shifts)
    bins = torch.linspace(-reach, reach, 25).tolist()
    for index, title in enumerate(("NUTS", "q(z | x)")):
        axes.hist(shifts[index], bins, color=COLOURS[index], alpha=0.6, label=title)
    axes.legend(fontsize="small")
    label(
        axes,
        f"means of each used z_d ({options.large}-D)",
        "off the mean by weighted draws, in its std. dev.",
        "images and dimensions",
    )


experiment = Experiment(
    "why_approximate_the_posterior",
    "Why approximate p(z | x), and what does it cost?",
    run,
    options=PosteriorOptions,
    seeds=(0, 1, 2, 3, 4),
)
