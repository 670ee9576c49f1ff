"""Coverage of every estimator's error bars where log p(x) is known, bias of IWAE-K, and k-hat."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, error_line, label, new_figure
from experiments.numbers import (
    NONE,
    Number,
    Verdict,
    above,
    all_of,
    below,
    over_seeds,
    percent,
    within,
)
from experiments.vaes import Trained, VAESpec
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    ELBOBound,
    Estimate,
    Estimator,
    Exact,
    ImportanceSampling,
    IWAEBound,
    PriorSampling,
    Quadrature,
    ReverseAIS,
    estimate_together,
)
from vae_pyro.log_marginal.diagnostics import HIGH_PARETO_K

NOMINAL = {1: math.erf(1 / math.sqrt(2)), 2: math.erf(2 / math.sqrt(2))}
TITLES = {
    "elbo": "ELBO",
    "iwae_5": "IWAE-5",
    "iwae_50": "IWAE-50",
    "importance": "importance sampling",
    "defensive": "defensive mixture",
    "prior": "z from the prior",
    "ais": "AIS",
    "upper": "AIS backwards",
    "quadrature": "quadrature",
}
WIDE, NARROW = 1.5, 0.5  # inflations of the guide whose bias is followed


@dataclass(frozen=True)
class TrustOptions(Options):
    """Options of this experiment.

    Args:
        latent_dim: of all VAEs; quadrature takes up to 3.
        early_epochs: after which the training of the poor encoder is stopped.
        images: test images.
        repetitions: evaluations of each image, with new random numbers.
        num_samples: z's per image and evaluation.
        groups: K of each IWAE bound whose bias is measured.
        bias_samples: z's per image for the biases, at least the largest K.
        tail_samples: z's per image for the k-hat of a proposal.
        inflations: what the scale of a well-trained guide is multiplied by.
        temperatures: of AIS.

    Raises:
        ValueError: if a number is too small.
    """

    latent_dim: int = 3
    early_epochs: int = 2
    images: int = 50
    repetitions: int = 20
    num_samples: int = 500
    groups: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    bias_samples: int = 50_000
    tail_samples: int = 10_000
    inflations: tuple[float, ...] = (0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5)
    temperatures: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(images=2, repetitions=2, num_samples=50, tail_samples=50)
        if not self.groups or self.bias_samples < max(self.groups):
            raise ValueError(f"bias_samples: must be at least the largest of {self.groups}")
        if not self.inflations:
            raise ValueError("inflations: needs at least one number")


@dataclass(frozen=True)
class Repeated:
    """Repeated estimates by one estimator, compared with a reference.

    Attributes:
        error: estimate - reference, nats, ``(repetitions, images)``.
        std_error: as the estimator reports it, in the same shape.
        warned: whether k-hat was above 0.7, in the same shape; None without k-hat.
        numeric: whether the errors are numerical, and so do not average out over images.
    """

    error: Tensor
    std_error: Tensor
    warned: Tensor | None = None
    numeric: bool = False

    def coverage(self, width: int, among: Tensor | None = None) -> float:
        """Share of estimates within ``width`` standard errors of the reference; NaN of none."""
        inside = (self.error.abs() <= width * self.std_error).double()
        return (inside if among is None else inside[among]).mean().item()

    def mean_coverage(self, width: int) -> float:
        """The same for the means over images, with the standard errors of means."""
        std_error = self.std_error.square().sum(1).sqrt() / self.error.shape[1]
        if self.numeric:
            std_error = self.std_error.mean(1)
        return (self.error.mean(1).abs() <= width * std_error).double().mean().item()


@dataclass(frozen=True)
class Bias:
    """The bias of IWAE-K for rising K, means over images.

    Attributes:
        values: expectation - log p(x), nats per image.
        theory: -Var(w) / (2 K mean(w)^2), nats per image.
    """

    values: Tensor
    theory: Tensor


def run(context: Context) -> Result:
    options = context.options
    dim = f"latent_dim={options.latent_dim}"
    # A group and not an override, so that training.epochs= still sets the epochs of the good VAEs.
    early = {**context.chosen["training"], "epochs": options.early_epochs}
    good, poor = context.train([VAESpec((dim,)), VAESpec((dim,), {"training": early})])
    context.tell("coverage")
    covered = [coverage(trained, options) for trained in poor]
    context.tell("bias")
    wide, narrow = ([bias(t, options, s) for t in good] for s in (WIDE, NARROW))
    context.tell("warnings")
    inflated = {s: [inflate(t, options, s) for t in good] for s in options.inflations}
    numbers = coverage_numbers(covered) | bias_numbers(wide, narrow, options)
    numbers |= warning_numbers(inflated, covered)
    narrowest, widest = (f(options.inflations) for f in (min, max))
    held = {s: percent(numbers[f"inflated_{key(s)}_2"]) for s in (narrowest, widest)}
    answer = (
        f"It depends on the proposal. With one {widest:g} times as wide as the posterior, ± 2 "
        f"standard errors of importance sampling held the exact log p(x) in {held[widest]} of the "
        f"answers (nominal {100 * NOMINAL[2]:.0f}%); with one {narrowest:g} times as wide, in "
        f"{held[narrowest]} ({options.num_samples} samples for each answer)."
    )
    return Result(numbers, predict(numbers, options), answer, draw(numbers, wide, narrow, options))


def predict(numbers: Mapping[str, Number], options: TrustOptions) -> dict[str, Verdict]:
    """The verdict on each prediction."""

    def of_all_seeds(name: str) -> Number:
        """Only numbers of the same seeds can be paired."""
        number = numbers.get(name, NONE)
        return number if len(number.seeds) == len(numbers["elbo_2"].seeds) else NONE

    return {
        "elbo_misses": below(numbers["elbo_2"], 0.5),
        "elbo_covers_itself": within(numbers["own_elbo_2"], NOMINAL[2] - 0.03, NOMINAL[2] + 0.03),
        "bars_hold_where_not_warned": above(of_all_seeds("importance_quiet_2"), 0.9),
        "mean_is_covered_less": below(numbers["importance_mean_2"] - numbers["importance_2"]),
        "bias_follows_theory": within(numbers["bias_ratio"], 0.8, 1.2),
        "k_hat_follows_theory": all_of(
            within(numbers[f"k_hat_{key(s)}"], tail_index(s) - 0.1, tail_index(s) + 0.1)
            for s in options.inflations
            if s < 1
        ),
        "warned_are_worse": below(of_all_seeds("warned_2") - of_all_seeds("quiet_2")),
    }


def key(inflation: float) -> str:
    """0.5 -> ``0_5``, for names."""
    return f"{inflation:g}".replace(".", "_")


def tail_index(inflation: float) -> float:
    """The Pareto k of the weights from a normal posterior's own shape, s < 1 times as wide."""
    return 1 - inflation**2


def exact(trained: Trained, x: Tensor) -> Tensor:
    """The exact log p(x) of the model, ``(N,)``."""
    return Exact()(trained.vae, x).value


def estimates(
    trained: Trained, estimators: Mapping[str, Estimator], x: Tensor, repetitions: int
) -> dict[str, Estimate]:
    """Estimates of every image ``repetitions`` times, with new random numbers each time."""
    again = x.repeat(repetitions, 1, 1, 1)
    timed = estimate_together(estimators, trained.vae, again, seed=trained.seed)
    return {name: one.estimate for name, one in timed.items()}


def repeated(estimate: Estimate, truth: Tensor, repetitions: int) -> Repeated:
    """Estimates of ``estimates`` compared with a reference ``(images,)``."""
    k_hat = estimate.diagnostics.get("pareto_k")
    return Repeated(
        estimate.value.reshape(repetitions, -1) - truth,
        estimate.std_error.reshape(repetitions, -1),
        None if k_hat is None else k_hat.reshape(repetitions, -1) > HIGH_PARETO_K,
        estimate.bound is Bound.NUMERIC,
    )


def coverage(trained: Trained, options: TrustOptions) -> dict[str, Repeated]:
    """Errors of every estimator against log p(x), and of bounds against their own expectation."""
    x, n, times = trained.x("test", options.images), options.num_samples, options.repetitions
    bounds: dict[str, Estimator] = {
        "elbo": ELBOBound(n),
        "iwae_5": IWAEBound(n, 5),
        "iwae_50": IWAEBound(n, 50),
    }
    others: dict[str, Estimator] = {
        "importance": ImportanceSampling(n),
        "defensive": ImportanceSampling(n, inflation=1.5, prior_share=0.1),
        "prior": PriorSampling(n),
        "ais": AIS(options.temperatures),
        "upper": ReverseAIS(options.temperatures),
    }
    truth = exact(trained, x)
    found = estimates(trained, bounds | others, x, times)
    grid = estimates(trained, {"quadrature": Quadrature()}, x, 1)  # it is deterministic
    many = 100 * n  # so that the expectation is known ten times as precisely
    long: dict[str, Estimator] = {
        "elbo": ELBOBound(many),
        "iwae_5": IWAEBound(many, 5),
        "iwae_50": IWAEBound(many, 50),
    }
    own = estimates(trained, long, x, 1)
    return {
        **{name: repeated(estimate, truth, times) for name, estimate in found.items()},
        **{name: repeated(estimate, truth, 1) for name, estimate in grid.items()},
        **{f"own_{name}": repeated(found[name], own[name].value, times) for name in bounds},
    }


def coverage_numbers(covered: Sequence[Mapping[str, Repeated]]) -> dict[str, Number]:
    """Coverage, bias and standard error of every estimator, means over seeds."""
    numbers = {}
    for name in covered[0]:
        of = [a[name] for a in covered]
        numbers[f"{name}_std_error"] = over_seeds([a.std_error.mean().item() for a in of], "nats")
        numbers[f"{name}_bias"] = over_seeds([a.error.mean().item() for a in of], "nats per image")
        for width in NOMINAL:
            numbers[f"{name}_{width}"] = over_seeds([a.coverage(width) for a in of], "share")
            numbers[f"{name}_mean_{width}"] = over_seeds(
                [a.mean_coverage(width) for a in of], "share"
            )
    return numbers


def bias(trained: Trained, options: TrustOptions, inflation: float) -> Bias:
    """Expectation of IWAE-K - log p(x) for every K, and its theoretical value."""
    x, n = trained.x("test", options.images), options.bias_samples
    family: dict[str, Estimator] = {
        str(k): IWAEBound(n, k, inflation=inflation) for k in options.groups
    }
    found = estimates(trained, family, x, 1)
    truth = exact(trained, x)
    effective = next(iter(found.values())).diagnostics["effective_sample_size"]
    variance = (n / effective - 1).mean()  # of w / mean(w)
    groups = torch.tensor(options.groups, dtype=torch.float64)
    values = torch.stack([(e.value - truth).mean() for e in found.values()])
    return Bias(values, -variance / (2 * groups))


def bias_numbers(
    wide: Sequence[Bias], narrow: Sequence[Bias], options: TrustOptions
) -> dict[str, Number]:
    """The biases and their theoretical values, means over seeds."""
    nats = "nats per image"
    numbers = {}
    for name, of in (("wide", wide), ("narrow", narrow)):
        for place, k in enumerate(options.groups):
            numbers[f"{name}_bias_{k}"] = over_seeds([b.values[place].item() for b in of], nats)
    middle = options.groups.index(min(options.groups, key=lambda k: abs(k - 50)))
    last = len(options.groups) - 1
    return numbers | {
        f"theory_bias_{options.groups[middle]}": over_seeds(
            [b.theory[middle].item() for b in wide], nats
        ),
        "bias_ratio": over_seeds([(b.values / b.theory)[middle].item() for b in wide], "times"),
        "wide_fall": over_seeds([(b.values[middle] / b.values[last]).item() for b in wide]),
        "narrow_fall": over_seeds([(b.values[middle] / b.values[last]).item() for b in narrow]),
        "theory_fall": Number(options.groups[last] / options.groups[middle]),
    }


@dataclass(frozen=True)
class Inflated:
    """Importance sampling with a guide whose scale was multiplied.

    Attributes:
        k_hat: mean of the fits to ``tail_samples`` weights of each image.
        repeated: estimates from ``num_samples`` weights.
    """

    k_hat: float
    repeated: Repeated


def inflate(trained: Trained, options: TrustOptions, inflation: float) -> Inflated:
    """Estimate with the guide's scale multiplied by ``inflation``."""
    x, times = trained.x("test", options.images), options.repetitions
    few: dict[str, Estimator] = {"": ImportanceSampling(options.num_samples, inflation=inflation)}
    many: dict[str, Estimator] = {"": ImportanceSampling(options.tail_samples, inflation=inflation)}
    k_hat = estimates(trained, many, x, 1)[""].diagnostics["pareto_k"]
    found = repeated(estimates(trained, few, x, times)[""], exact(trained, x), times)
    return Inflated(k_hat.clamp(min=-1).mean().item(), found)  # -inf: no tail at all


def warning_numbers(
    inflated: Mapping[float, Sequence[Inflated]], covered: Sequence[Mapping[str, Repeated]]
) -> dict[str, Number]:
    """Coverage and error where k-hat warns and where it does not."""
    numbers = {}
    for inflation, of in inflated.items():
        name = key(inflation)
        numbers[f"k_hat_{name}"] = over_seeds([i.k_hat for i in of])
        numbers[f"inflated_{name}_2"] = over_seeds([i.repeated.coverage(2) for i in of], "share")
        numbers |= by_warning(f"inflated_{name}_", [i.repeated for i in of])

    def joined(seed: int, part: str) -> Tensor:
        return torch.cat([getattr(of[seed].repeated, part) for of in inflated.values()])

    pooled = [
        Repeated(joined(seed, "error"), joined(seed, "std_error"), joined(seed, "warned"))
        for seed in range(len(covered))
    ]
    numbers |= by_warning("importance_", [a["importance"] for a in covered])
    numbers |= by_warning("", pooled)
    apart = [abs(numbers[f"k_hat_{key(s)}"].value - tail_index(s)) for s in inflated if s < 1]
    return numbers | {"k_hat_error": Number(max(apart, default=math.nan))}


def by_warning(prefix: str, of: Sequence[Repeated]) -> dict[str, Number]:
    """Coverage and error with and without a warning, over the seeds that have such estimates."""
    numbers = {}
    warned = [r.warned for r in of if r.warned is not None]
    numbers[f"{prefix}share_warned"] = over_seeds(
        [w.double().mean().item() for w in warned], "share"
    )
    for group, sets in (("warned", warned), ("quiet", [~w for w in warned])):
        some = [(r, s) for r, s in zip(of, sets, strict=True) if s.any()]
        if some:
            numbers[f"{prefix}{group}_2"] = over_seeds([r.coverage(2, s) for r, s in some], "share")
            numbers[f"{prefix}{group}_error"] = over_seeds(
                [r.error[s].abs().mean().item() for r, s in some], "nats"
            )
    return numbers


def draw(
    numbers: Mapping[str, Number],
    wide: Sequence[Bias],
    narrow: Sequence[Bias],
    options: TrustOptions,
) -> Figure:
    figure, (left, middle, right) = new_figure(12, 4.8, 1, 3, width_ratios=[1.2, 1, 1])
    draw_coverage(left, numbers)
    for index, (of, name) in enumerate(
        ((wide, f"guide {WIDE:g} times as wide"), (narrow, f"guide {NARROW:g} times as wide"))
    ):
        values = -torch.stack([b.values for b in of])
        error = values.std(0) / len(of) ** 0.5 if len(of) > 1 else 0 * values[0]
        error_line(middle, options.groups, values.mean(0).tolist(), error.tolist(), index, name)
    theory = -torch.stack([b.theory for b in wide]).mean(0)
    middle.plot(
        options.groups, theory, color="black", ls="--", lw=1, label="Var(w) / (2 K mean(w)^2)"
    )
    middle.set(xscale="log", yscale="log")
    middle.legend(fontsize="small")
    label(
        middle,
        "how far the expectation of IWAE-K\nlies below log p(x)",
        "K, weights averaged",
        "log p(x) - IWAE-K, nats per image",
    )
    draw_warnings(right, numbers, options)
    return figure


def draw_coverage(axes: Axes, numbers: Mapping[str, Number]) -> None:
    for place, name in enumerate(TITLES):
        for index, width in enumerate(NOMINAL):
            number = numbers[f"{name}_{width}"]
            name_once = f"± {width} standard error{'s' * (width > 1)}"
            dot(axes, number, place, index, name_once)
        dot(axes, numbers[f"{name}_mean_2"], place, 2, "± 2 standard errors, mean of all images")
    for index, share in enumerate(NOMINAL.values()):
        axes.axvline(share, color=COLOURS[index], ls="--", lw=1)
    axes.set_yticks([-place for place in range(len(TITLES))], list(TITLES.values()))
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-len(TITLES) - 2, 0.6)
    axes.legend(fontsize="small", loc="lower left")
    label(
        axes,
        "how often the bars hold log p(x)\n(dashed: how often they should)",
        "share of answers",
        "",
    )


def dot(axes: Axes, number: Number, place: int, index: int, name: str) -> None:
    axes.errorbar(
        number.value,
        -place,
        xerr=number.std_error or 0,
        color=COLOURS[index],
        marker=MARKERS[index],
        markersize=7,
        capsize=3,
        ls="",
        label=None if place else name,
    )


def draw_warnings(axes: Axes, numbers: Mapping[str, Number], options: TrustOptions) -> None:
    for index, (group, title) in enumerate(
        (("quiet", "k-hat below 0.7"), ("warned", "k-hat above 0.7"))
    ):
        names = {s: f"inflated_{key(s)}_{group}_2" for s in options.inflations}
        found = {s: numbers[name] for s, name in names.items() if name in numbers}
        error_line(
            axes,
            list(found),
            [n.value for n in found.values()],
            [n.std_error or 0 for n in found.values()],
            index,
            title,
        )
    axes.axhline(NOMINAL[2], color="black", ls="--", lw=1, label="as it should be")
    axes.axvline(math.sqrt(1 - HIGH_PARETO_K), color="black", ls=":", lw=1)
    axes.set_ylim(-0.03, 1.03)
    axes.legend(fontsize="small", loc="lower right")
    label(
        axes,
        "a guide rescaled on purpose\n(left of the dotted line k > 0.7)",
        "guide's scale, times the posterior's",
        "share of answers within ± 2 standard errors",
    )


experiment = Experiment(
    "can_the_error_bars_be_trusted",
    "Can the error bars be trusted?",
    run,
    options=TrustOptions,
    overrides=("data=linear_gaussian", "network=linear", "likelihood=normal_learned_scale"),
    seeds=(0, 1, 2, 3, 4),
)
