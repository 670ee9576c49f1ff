"""log p(x) by prior, encoder, adaptive proposal and annealing: error against evaluations."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, error_line, label, new_figure
from experiments.numbers import NONE, Number, Verdict, above, all_of, below, over_seeds, within
from experiments.vaes import Trained, VAESpec
from vae_pyro.log_marginal import (
    AIS,
    AdaptiveImportanceSampling,
    Estimator,
    ImportanceSampling,
    IWAEBound,
    PriorSampling,
    Quadrature,
    elbo_parts,
    estimate_together,
    log_weights,
)
from vae_pyro.log_marginal.adaptive import LEAST_EVALUATIONS
from vae_pyro.log_marginal.proposals import THE_GUIDE, Proposal
from vae_pyro.log_marginal.quadrature import MAX_DIM
from vae_pyro.randomness import RandomStream

NAMES = {
    "prior": "z from the prior",
    "encoder": "z from the encoder (IWAE-K)",
    "adaptive": "z from a proposal fitted to the image",
    "ais": "AIS",
}
PRIOR = Proposal(prior_share=1.0)
FACTOR = 10  # times exp(KL): a number of samples that should suffice


@dataclass(frozen=True)
class EstimateOptions(Options):
    """Options of this experiment.

    Args:
        small: latent dimensions of the first VAE; at most 3, so that quadrature is the reference.
        large: latent dimensions of the second VAE.
        images: test images whose log p(x) is estimated.
        draws: samples per image from the prior and from the encoder, one number per budget; those
            of at least 100 are also budgets of adaptive importance sampling.
        temperatures: of AIS, one number per budget.
        chains: of AIS, per image.
        reference_draws: samples of the importance sampling that is the reference without a grid.
        reference_temperatures: of the long AIS that checks the reference.
        shown_draws: samples whose weights are analysed; a twentieth of those in the histogram.

    Raises:
        ValueError: if a number is too small, or budgets do not rise.
    """

    small: int = 2
    large: int = 20
    images: int = 15
    draws: tuple[int, ...] = (1, 10, 100, 1_000, 10_000)
    temperatures: tuple[int, ...] = (3, 10, 30, 100, 300)
    chains: int = 16
    reference_draws: int = 100_000
    reference_temperatures: int = 500
    shown_draws: int = 1_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.small <= MAX_DIM:
            raise ValueError(f"small: quadrature takes 1 to {MAX_DIM}, got {self.small}")
        for name in ("draws", "temperatures"):
            chosen = getattr(self, name)
            if min(chosen, default=0) < 1 or list(chosen) != sorted(set(chosen)):
                raise ValueError(f"{name}: needs rising numbers from 1 up, got {list(chosen)}")
        if not self.adaptive:
            raise ValueError(
                f"draws: one must be {LEAST_EVALUATIONS} or more, got {list(self.draws)}"
            )
        if self.large == self.small:
            raise ValueError(f"large: must not be that of small, {self.small}")
        self.at_least(images=1, large=1, shown_draws=2)

    @property
    def adaptive(self) -> tuple[int, ...]:
        """Budgets of adaptive importance sampling: decoder evaluations, the fit included."""
        return tuple(number for number in self.draws if number >= LEAST_EVALUATIONS)

    def budgets(self, name: str) -> tuple[int, ...]:
        """The budgets of one estimator."""
        return {"ais": self.temperatures, "adaptive": self.adaptive}.get(name, self.draws)


@dataclass(frozen=True)
class Errors:
    """The errors of one estimator at rising budgets, of one VAE.

    Attributes:
        evaluations: of the decoder per image, by budget.
        per_image: estimate - reference, nats, ``(budgets, images)``.
    """

    evaluations: Sequence[float]
    per_image: Tensor

    @property
    def typical(self) -> list[float]:
        """Mean absolute error by budget, nats per image."""
        values: list[float] = self.per_image.abs().mean(1).tolist()
        return values

    @property
    def shortfall(self) -> list[float]:
        """Mean of reference - estimate by budget, nats per image."""
        values: list[float] = (-self.per_image.mean(1)).tolist()
        return values


@dataclass(frozen=True)
class Measured:
    """The measures of one VAE.

    Attributes:
        errors: by estimator.
        agreement: second reference - reference, nats per image, and its own standard error.
        floor: mean standard error of the reference, nats per image.
        kl: E_q[log q(z | x) - log p(z)], nats, ``(images,)``.
        log_likelihood: mean log p(x | z) under the prior and under the encoder, nats per image.
        effective: effective sample size of ``shown_draws`` weights, by proposal.
        largest: share of the largest weight in the average over the prior.
    """

    errors: Mapping[str, Errors]
    agreement: tuple[float, float]
    floor: float
    kl: Tensor
    log_likelihood: Mapping[str, float]
    effective: Mapping[str, float]
    largest: float


def run(context: Context) -> Result:
    options = context.options
    both = context.train([VAESpec((f"latent_dim={d}",)) for d in (options.small, options.large)])
    numbers: dict[str, Number] = {}
    measured: dict[str, list[Measured]] = {}
    for size, vaes in zip(("small", "large"), both, strict=True):
        context.tell(f"estimating with {vaes[0].vae.model.latent_dim} latent dimensions")
        measured[size] = [measure(trained, options) for trained in vaes]
        numbers |= summary(size, measured[size], options)
    by_seed = list(zip(measured["small"], measured["large"], strict=True))
    few = [shortfalls(both, options, -math.inf, 0) for both in by_seed]
    plenty = [shortfalls(both, options, math.log(FACTOR), math.inf) for both in by_seed]
    for name, found in (("too_few", few), ("plenty", plenty)):
        if all(found):
            numbers[f"shortfall_{name}"] = over_seeds([mean(f) for f in found], "nats per image")
    most = options.adaptive[-1]
    answer = (
        "Sample z where this image's posterior is, and weight each sample by p(x, z) / q(z | x): a "
        f"proposal that is fitted to each image gives log p(x) to within "
        f"{numbers[f'adaptive_large_{most}']} nats per image ({most:,} decoder evaluations, "
        f"{options.large} latent dimensions, {options.images} test images)."
    )
    figure = draw(both[1][0], measured, options)
    return Result(numbers, predict(numbers, options), answer, figure)


def predict(numbers: Mapping[str, Number], options: EstimateOptions) -> dict[str, Verdict]:
    """The verdict on each prediction."""
    shown = min(options.draws, key=lambda k: abs(k - 1_000))
    most, sizes = options.adaptive[-1], ("small", "large")

    def excess(first: str, second: str) -> Number:
        """Of the error of one estimator at one budget over that of another."""
        return numbers[first] - numbers[second]

    def agree(size: str) -> Verdict:
        tolerance = 3 * numbers[f"agreement_error_{size}"].value + 0.01
        return within(numbers[f"agreement_{size}"], -tolerance, tolerance)

    return {
        "prior_worse_in_many_dimensions": above(
            excess(f"prior_large_{shown}", f"prior_small_{shown}")
        ),
        "encoder_beats_prior_in_many": below(
            excess(f"encoder_large_{shown}", f"prior_large_{shown}")
        ),
        "ais_beats_prior_in_many": below(
            excess(f"ais_large_{options.temperatures[-1]}", f"prior_large_{options.draws[-1]}")
        ),
        "adaptive_beats_encoder": all_of(
            below(excess(f"adaptive_{size}_{most}", f"encoder_{size}_{most}")) for size in sizes
        ),
        "all_low_with_few": all_of(
            above(numbers[f"short_{name}_{size}"])
            for name in ("prior", "encoder", "ais")
            for size in sizes
        ),
        "exp_kl_decides": all_of(
            [
                above(numbers.get("shortfall_too_few", NONE), 1),
                below(numbers.get("shortfall_plenty", NONE), 1),
            ]
        ),
        "references_agree": all_of(agree(size) for size in sizes),
    }


def measure(trained: Trained, options: EstimateOptions) -> Measured:
    """Run every estimator at every budget, and analyse the weights."""
    vae, x = trained.vae, trained.x("test", options.images)
    families: dict[str, dict[int, Estimator]] = {
        "prior": {k: PriorSampling(k) for k in options.draws},
        "encoder": {k: IWAEBound(k, k) for k in options.draws},
        "adaptive": {k: AdaptiveImportanceSampling(k) for k in options.adaptive},
        "ais": {t: AIS(t, options.chains) for t in options.temperatures},
    }
    defensive = ImportanceSampling(options.reference_draws, inflation=1.2, prior_share=0.1)
    long = AIS(options.reference_temperatures, options.chains)
    references: dict[str, Estimator] = {"defensive": defensive, "long": long}
    if vae.model.latent_dim == options.small:
        references = {"grid": Quadrature(), "long": long}
    every = {f"{n} {b}": e for n, family in families.items() for b, e in family.items()}
    found = estimate_together(every | references, vae, x, seed=trained.seed)
    first, second = (found[name].estimate for name in references)
    errors = {}
    for name, family in families.items():
        estimates = [found[f"{name} {budget}"].estimate for budget in family]
        apart = torch.stack([e.value - first.value for e in estimates])
        errors[name] = Errors([e.evaluations for e in estimates], apart)
    own = math.hypot(first.mean_std_error(), second.mean_std_error())
    with torch.no_grad(), RandomStream("weights", trained.seed, x.device).active():
        kl = elbo_parts(vae, x, options.shown_draws)["kl"].value
        drawn = {
            name: [log_weights(vae, image, options.shown_draws, proposal) for image in x.split(1)]
            for name, proposal in (("prior", PRIOR), ("encoder", THE_GUIDE))
        }
    log_w = {n: torch.cat([w.total.double().cpu() for w in d], 1) for n, d in drawn.items()}
    return Measured(
        errors,
        (second.mean() - first.mean(), own),
        first.std_error.mean().item(),
        kl,
        {
            name: torch.cat([w.log_likelihood for w in d], 1).double().mean().item()
            for name, d in drawn.items()
        },
        {n: (1 / w.softmax(0).square().sum(0)).mean().item() for n, w in log_w.items()},
        log_w["prior"].softmax(0).max(0).values.mean().item(),
    )


def summary(size: str, found: Sequence[Measured], options: EstimateOptions) -> dict[str, Number]:
    """Means over seeds of the measures of VAEs with one latent dimension."""
    nats = "nats per image"
    numbers = {}
    for name in NAMES:
        for place, budget in enumerate(options.budgets(name)):
            numbers[f"{name}_{size}_{budget}"] = over_seeds(
                [m.errors[name].typical[place] for m in found], nats
            )
        short = [m.errors[name].shortfall[0] for m in found]
        numbers[f"short_{name}_{size}"] = over_seeds(short, nats)
        cost = found[0].errors[name].evaluations[-1]
        numbers[f"most_{name}_{size}"] = Number(cost, unit="decoder evaluations per image")
    for name in ("prior", "encoder"):
        numbers[f"log_likelihood_{name}_{size}"] = over_seeds(
            [m.log_likelihood[name] for m in found], nats
        )
        numbers[f"effective_{name}_{size}"] = over_seeds(
            [m.effective[name] for m in found], "weights"
        )
    return numbers | {
        f"largest_{size}": over_seeds([m.largest for m in found], "share"),
        f"kl_{size}": over_seeds([m.kl.mean().item() for m in found], nats),
        f"exp_kl_{size}": Number(
            math.exp(mean(m.kl.mean().item() for m in found)), unit="draws from the prior"
        ),
        f"agreement_{size}": over_seeds([m.agreement[0] for m in found], nats),
        f"agreement_error_{size}": over_seeds([m.agreement[1] for m in found], nats),
        f"reference_error_{size}": over_seeds([m.floor for m in found], nats),
    }


def shortfalls(
    measured: Sequence[Measured], options: EstimateOptions, lowest: float, highest: float
) -> list[float]:
    """Reference - estimate, nats, by the prior, where lowest <= log K - KL < highest."""
    found: list[float] = []
    for m in measured:
        excess = torch.tensor(options.draws).double().log()[:, None] - m.kl
        chosen = (excess >= lowest) & (excess < highest)
        found += (-m.errors["prior"].per_image[chosen]).tolist()
    return found


def draw(
    shown: Trained, measured: Mapping[str, list[Measured]], options: EstimateOptions
) -> Figure:
    figure, (left, *others) = new_figure(12, 4.6, 1, 3)
    histogram(left, shown, options)
    for axes, size in zip(others, ("small", "large"), strict=True):
        for index, (name, title) in enumerate(NAMES.items()):
            typical = torch.tensor([m.errors[name].typical for m in measured[size]])
            several = len(typical) > 1
            error = typical.std(0) / len(typical) ** 0.5 if several else 0 * typical[0]
            error_line(
                axes,
                measured[size][0].errors[name].evaluations,
                typical.mean(0).tolist(),
                error.tolist(),
                index,
                title,
            )
        floor = mean(m.floor for m in measured[size])
        axes.axhline(floor, color="black", lw=0.8, ls="--", label="the reference's own error")
        axes.set(xscale="log", yscale="log")
        truth = "a grid over z" if size == "small" else f"{options.reference_draws:,} weighted z's"
        label(
            axes,
            f"{getattr(options, size)} latent dimensions\n(reference: {truth})",
            "decoder evaluations per image",
            "mean error of log p(x), nats per image",
        )
    lowest = min(axes.get_ylim()[0] for axes in others)
    highest = max(axes.get_ylim()[1] for axes in others)
    for axes in others:
        axes.set_ylim(lowest, highest)
    others[0].legend(fontsize="small")
    return figure


def histogram(axes: Axes, shown: Trained, options: EstimateOptions) -> None:
    """Draw log p(x | z) of one image for z from the prior and from the encoder, and log p(x)."""
    x = shown.x("test", 1)
    number = 20 * options.shown_draws
    with torch.no_grad(), RandomStream("histogram", 0, x.device).active():
        prior = log_weights(shown.vae, x, number, PRIOR).log_likelihood[:, 0].double().cpu()
        encoder = log_weights(shown.vae, x, number).log_likelihood[:, 0].double().cpu()
    log_p = prior.logsumexp(0).item() - math.log(number)
    low, high = prior.quantile(0.005).item(), max(prior.max().item(), encoder.max().item())
    bins = torch.linspace(low, high + 1, 60).tolist()
    axes.hist(prior, bins, density=True, color=COLOURS[0], alpha=0.6, label="z from the prior")
    axes.hist(
        prior,
        bins,
        density=True,
        weights=prior.softmax(0),
        histtype="step",
        lw=1.8,
        color="black",
        label="the same, weighted by p(x | z):\nwhat the average is made of",
    )
    axes.hist(encoder, bins, density=True, color=COLOURS[1], alpha=0.6, label="z from the encoder")
    axes.axvline(log_p, color=COLOURS[2], lw=1.5, ls="--", label="log of the prior's average")
    axes.legend(fontsize="small", loc="upper left")
    label(
        axes,
        f"one image, {options.large} latent dimensions:\nmost z of the prior miss it",
        "log p(x | z), nats",
        "share of z's per nat",
    )


experiment = Experiment(
    "how_to_estimate_p_of_x",
    "How does one estimate p(x)?",
    run,
    options=EstimateOptions,
    seeds=(0, 1, 2, 3, 4),
)
