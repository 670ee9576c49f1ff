"""Five methods that compress an image to ten numbers, by the same measures, on the same images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from matplotlib.figure import Figure
from pydantic import Field
from torch import Tensor

from experiments.autoencoder_pca_vae import autoencoder, linear_methods
from experiments.autoencoder_pca_vae.linear_methods import PPCA, largest_angle, orthonormal
from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, label, new_figure, show_rows
from experiments.images import accuracy_between, grey_values
from experiments.numbers import (
    Number,
    Verdict,
    above,
    all_of,
    below,
    lowest,
    over_seeds,
    within,
)
from experiments.vaes import Trained, VAESpec
from vae_pyro.config import Positive, build
from vae_pyro.evaluation.latent import posterior_means
from vae_pyro.evaluation.metrics import pareto_k_high
from vae_pyro.likelihoods import NormalLearnedScale
from vae_pyro.log_marginal import AIS, Exact, ImportanceSampling, estimate_together
from vae_pyro.networks import Linear, Network
from vae_pyro.randomness import RandomStream

NAMES = {
    "pca": "PCA",
    "linear_autoencoder": "linear\nautoencoder",
    "linear_vae": "linear VAE",
    "deep_autoencoder": "deep\nautoencoder",
    "deep_vae": "deep VAE",
}
FITTED = {"linear_autoencoder": "linear autoencoder", "deep_autoencoder": "deep autoencoder"}


@dataclass(frozen=True)
class MethodOptions(Options):
    """Options of this experiment.

    Args:
        latent_dim: numbers per image, for every method.
        test_images: at most.
        temperatures: of the annealing that estimates the deep VAE's log p(x).
        generated: images drawn of each method, and as many real ones, at most, beside them.
        linear_learning_rate: of Adam for the linear networks, whose valley is flat.
        deep_learning_rate: of Adam for the deep autoencoder.
    """

    latent_dim: Positive = 10
    test_images: Positive = 1000
    temperatures: Annotated[int, Field(ge=2)] = 100
    generated: Annotated[int, Field(ge=20)] = 600
    linear_learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    deep_learning_rate: Annotated[float, Field(gt=0)] = 1e-3


@dataclass(frozen=True)
class Method:
    """One way from images to codes and back.

    Attributes:
        encode: images ``(N, C, H, W)`` -> codes ``(N, D)``.
        decode: codes -> mean images ``(N, C, H, W)``.
        log_p: log p(x) of images, ``(N,)``; None where the method has no p(x).
        draw_codes: as ``encode``, but sampled from q(z | x) as in training; None without a q.
    """

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    log_p: Callable[[Tensor], Tensor] | None = None
    draw_codes: Callable[[Tensor], Tensor] | None = None


def run(context: Context) -> Result:
    options: MethodOptions = context.options
    common = (f"latent_dim={options.latent_dim}", "likelihood=normal_learned_scale")
    rate = f"training.learning_rate={options.linear_learning_rate}"
    linear, deep = context.train([VAESpec((*common, "network=linear", rate)), VAESpec(common)])
    dataset = linear[0].dataset
    ppca = linear_methods.fit(
        dataset.train.images.to(context.device), dataset.num_levels, options.latent_dim
    )
    found: list[dict[str, float]] = []
    shown: dict[str, Method] = {}
    for pair in zip(linear, deep, strict=True):
        context.tell(f"seed {pair[0].seed}: autoencoders, and all measures")
        methods = all_methods(context, ppca, *pair)
        found.append(measure(methods, ppca, *pair, options))
        shown = shown or methods
    numbers = {
        name: over_seeds([one[name] for one in found], unit_of(name))
        if name not in ("rmse_pca", "log_px_pca")
        else Number(found[0][name], unit=unit_of(name))
        for name in found[0]
    }
    lost = numbers["log_px_pca"] - numbers["log_px_linear_vae"]
    gained = numbers["log_px_deep_vae"] - numbers["log_px_pca"]
    halves = linear_methods.angle_of_halves(dataset, options.latent_dim)
    numbers |= {"lost": lost, "gained": gained, "angle_halves": Number(halves, unit="degrees")}

    answer = (
        f"It has a p(x), which PCA and autoencoders alone have not: log p(x) of the deep VAE is "
        f"{gained} nats per image above that of probabilistic PCA."
    )
    return Result(numbers, predict(numbers), answer, draw(numbers, shown, deep[0], options))


def predict(numbers: Mapping[str, Number]) -> dict[str, Verdict]:
    """The verdict on each prediction."""

    def finds_pca(name: str) -> Verdict:
        return all_of([below(numbers[f"angle_{name}"], 10), above(numbers[f"kept_{name}"], 0.99)])

    def excess(measure: str, kind: str) -> Number:
        """Of the deep autoencoder over the deep VAE."""
        return numbers[f"{measure}_{kind}deep_autoencoder"] - numbers[f"{measure}_deep_vae"]

    return {
        "linear_autoencoder_finds_pca": finds_pca("linear_autoencoder"),
        "linear_vae_finds_pca": finds_pca("linear_vae"),
        "linear_vae_is_ppca": within(numbers["lost"], -0.5, 0.5),
        "deep_autoencoder_reconstructs_best": lowest(
            "deep_autoencoder", {name: numbers[f"rmse_{name}"] for name in NAMES}
        ),
        "autoencoder_cannot_be_sampled": above(excess("accuracy", ""), 0.05),
        "nor_from_a_fitted_normal": above(excess("accuracy", "fitted_")),
        "deep_vae_has_highest_log_px": above(numbers["gained"]),
        "own_codes_are_not_normal": above(excess("own", ""), 0.1),
        "nor_once_fitted": above(excess("own", "fitted_")),
    }


def unit_of(name: str) -> str:
    """By the first word of a number's name."""
    units = {
        "rmse": "grey range per pixel",
        "log": "nats per image",
        "angle": "degrees",
        "distance": "times that of test images",
        "scale": "grey range per pixel",
    }
    return units.get(name.partition("_")[0], "share")


def all_methods(context: Context, ppca: PPCA, linear: Trained, deep: Trained) -> dict[str, Method]:
    """The five methods, by name; the autoencoders are trained here."""
    options: MethodOptions = context.options
    device = linear.vae.device
    dataset, settings = linear.dataset.to(device), context.chosen["training"]
    network = build(context.chosen["network"], Network, "network")
    shape = dataset.image_shape
    methods = {
        "pca": Method(
            lambda x: ppca.encode(x.flatten(1).double()),
            lambda z: ppca.decode(z.double()).reshape(-1, *shape),
            lambda x: ppca.log_prob(x.flatten(1).double()),
        ),
        "linear_vae": of_vae(linear, lambda x: Exact()(linear.vae, x).value),
        "deep_vae": of_vae(deep, None),
    }
    for name, kind, rate in (
        ("linear_autoencoder", Linear(), options.linear_learning_rate),
        ("deep_autoencoder", network, options.deep_learning_rate),
    ):
        trained = autoencoder.train(
            kind,
            dataset,
            linear.vae.model.likelihood.prepare,
            options.latent_dim,
            settings["epochs"],
            settings["batch_size"],
            rate,
            linear.seed,
        )
        methods[name] = Method(trained.encode, trained.decode)
    return {name: methods[name] for name in NAMES}


def of_vae(trained: Trained, log_p: Callable[[Tensor], Tensor] | None) -> Method:
    """A VAE as a method: codes are posterior means, images the means of p(x | z)."""
    vae = trained.vae

    def draw_codes(x: Tensor) -> Tensor:
        with RandomStream("codes of real images", trained.seed, x.device).active():
            z: Tensor = vae.guide.posterior(x).sample()
        return z

    return Method(
        lambda x: posterior_means(vae, x),
        lambda z: vae.model.decode(z.to(vae.model.origin)).mean,
        log_p,
        draw_codes,
    )


def measure(
    methods: Mapping[str, Method],
    ppca: PPCA,
    linear: Trained,
    deep: Trained,
    options: MethodOptions,
) -> dict[str, float]:
    """All numbers of one seed."""
    x = linear.x("test", options.test_images)
    numbers: dict[str, float] = {}
    real = real_images(linear, options.generated)
    held_out = torch.cat([linear.x(split, options.generated // 2) for split in ("valid", "test")])
    for name, method in methods.items():
        with torch.no_grad():
            error = (method.decode(method.encode(x)) - x).square().mean().sqrt().item()
            if method.log_p is not None:
                numbers[f"log_px_{name}"] = method.log_p(x).mean().item()
            own = method.decode((method.draw_codes or method.encode)(held_out)).float()
        numbers[f"rmse_{name}"] = error
        images = generate(method, linear, options, len(real))
        numbers |= sampling(f"_{name}", images, real, linear)
        numbers[f"own_{name}"] = accuracy_between(images, own)
        if name in FITTED:
            kinder = generate(method, linear, options, len(real), fitted=True)
            numbers |= sampling(f"_fitted_{name}", kinder, real, linear)
            numbers[f"own_fitted_{name}"] = accuracy_between(kinder, own)
    estimators = {
        "log_px_deep_vae": AIS(num_temperatures=options.temperatures, num_chains=4, start="guide"),
        "log_px_unannealed": ImportanceSampling(1000),
    }
    found = estimate_together(estimators, deep.vae, x, seed=deep.seed)
    numbers |= {name: timed.estimate.mean() for name, timed in found.items()}
    numbers["unsure"] = pareto_k_high(found["log_px_unannealed"].estimate)
    for name, trained in (("linear_vae", linear), ("deep_vae", deep)):
        likelihood = trained.vae.model.likelihood
        assert isinstance(likelihood, NormalLearnedScale)
        numbers[f"scale_{name}"] = likelihood.scale.item()
    for name in ("linear_autoencoder", "linear_vae"):
        basis = span(methods[name], linear, options.latent_dim)
        numbers[f"angle_{name}"] = largest_angle(ppca.basis, basis)
        numbers[f"kept_{name}"] = ppca.variance_kept(basis)
    return numbers


def span(method: Method, trained: Trained, latent_dim: int) -> Tensor:
    """An orthonormal basis of the images that a linear decoder can output, ``(P, D)``."""
    origin = trained.vae.model.origin
    corners = torch.cat([origin[None], torch.eye(latent_dim).to(origin)])
    with torch.no_grad():
        images = method.decode(corners).flatten(1)
    return orthonormal((images[1:] - images[0]).T)


def generate(
    method: Method, trained: Trained, options: MethodOptions, count: int, fitted: bool = False
) -> Tensor:
    """Images decoded from z ~ N(0, I), ``(count, C, H, W)``.

    Where ``fitted``: from the normal with mean and covariance of the training images' codes.
    """
    stream = RandomStream("codes", trained.seed)
    z = torch.randn(count, options.latent_dim, generator=stream.generator)
    z = z.to(trained.vae.device)
    with torch.no_grad():
        if fitted:
            codes = method.encode(trained.x("train"))
            jitter = 1e-6 * torch.eye(options.latent_dim).to(codes)
            z = codes.mean(0) + z @ torch.linalg.cholesky(torch.cov(codes.T) + jitter).T
        return method.decode(z).float()


def real_images(trained: Trained, count: int) -> Tensor:
    """Images that no method was trained on, half of them from each held-out split, ``(N, ..)``."""
    dataset = trained.dataset
    images = [split.images[: count // 2] for split in (dataset.valid, dataset.test)]
    return grey_values(torch.cat(images), dataset.num_levels)


def sampling(name: str, images: Tensor, real: Tensor, trained: Trained) -> dict[str, float]:
    """How far generated images ``(N, C, H, W)`` are from real ones.

    ``accuracy``: of a classifier between them. ``distance``: mean distance to the nearest
    training image, divided by that of real images.
    """
    levels = trained.dataset.num_levels
    if levels is not None:  # the levels of real images, so that rounding is no difference
        images = grey_values((images * levels).floor().clamp(0, levels - 1), levels)
    seen = grey_values(trained.dataset.train.images, levels).flatten(1)
    near, nearest = (torch.cdist(i.cpu().flatten(1), seen).min(1).values for i in (real, images))
    ratio = (nearest.mean() / near.mean()).item()
    return {f"accuracy{name}": accuracy_between(images, real), f"distance{name}": ratio}


def draw(
    numbers: Mapping[str, Number],
    methods: Mapping[str, Method],
    trained: Trained,
    options: MethodOptions,
) -> Figure:
    figure, (trade, back, new) = new_figure(12, 4.6, 1, 3)
    for place, name in enumerate(NAMES):
        for kind, filled in (("", True), ("_fitted", False)):
            key = f"own{kind}_{name}"
            if key not in numbers:
                continue
            across, up = numbers[f"rmse_{name}"], numbers[key]
            trade.errorbar(
                across.value,
                up.value,
                xerr=across.std_error,
                yerr=up.std_error,
                capsize=3,
                color=COLOURS[place],
                marker=MARKERS[place],
                ls="",
                markersize=8,
                mfc=None if filled else "white",
                label=NAMES[name].replace("\n", " ") + ("" if filled else ", z ~ fitted normal"),
            )
    trade.axhline(0.5, color="black", lw=0.8)
    trade.set_ylim(0.4, 1.5)
    trade.set_yticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    trade.legend(fontsize="small", loc="upper center")
    label(
        trade,
        "reconstruction and sampling",
        "reconstruction error, grey range (RMS per pixel)",
        "accuracy, generated or reconstructed (0.5: chance)",
    )
    columns = 6
    x = trained.x("test", columns)
    with torch.no_grad():
        reconstructed = [m.decode(m.encode(x)).float() for m in methods.values()]
    generated = [generate(m, trained, options, columns) for m in methods.values()]
    real = real_images(trained, 2 * columns)[-columns:].to(x)
    names = list(NAMES.values())
    title = "test images, and what comes back"
    show_rows(back, [x, *reconstructed], ["test images", *names], title)
    kinder = generate(methods["deep_autoencoder"], trained, options, columns, fitted=True)
    rows, names = [real, *generated], ["real", *names]
    rows.insert(-1, kinder)
    names.insert(-1, "the same,\nfitted")
    show_rows(new, rows, names, "decoded from z ~ N(0, I)")
    return figure


experiment = Experiment(
    "autoencoder_pca_vae",
    "What does a VAE do that PCA and autoencoders do not?",
    run,
    options=MethodOptions,
    seeds=(0, 1, 2, 3, 4),
)
