"""A VAE of every class as a classifier, compared with a network trained to classify."""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from experiments.context import Context, Experiment, Options, Result
from experiments.figures import COLOURS, MARKERS, label, new_figure, show_images
from experiments.numbers import (
    Number,
    Verdict,
    above,
    all_of,
    below,
    over_both,
    over_images,
    over_seeds,
    percent,
)
from vae_pyro.config import Config, build, parse_config, resolve
from vae_pyro.data import Dataset
from vae_pyro.evaluation.metrics import pareto_k_high
from vae_pyro.guide import Guide
from vae_pyro.likelihoods import Likelihood
from vae_pyro.log_marginal import ImportanceSampling, estimate_together, log_weights
from vae_pyro.networks import Network
from vae_pyro.objectives import Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.saving import Blueprint
from vae_pyro.training.svi import train
from vae_pyro.vae import ConditionalVAE


@dataclass(frozen=True)
class ClassifierOptions(Options):
    """Options of this experiment.

    Args:
        images: test images to be classified, and images of noise.
        samples: z's per image and class for log p(x | y), from the encoder's q(z | x, y), half as
            wide again, mixed with a tenth of the prior, because q was not trained on wrong classes.
        bins: of confidence, for calibration.
    """

    images: int = 300
    samples: int = 500
    bins: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(images=2, samples=1, bins=1)


@dataclass(frozen=True)
class Setting:
    """What both classifiers of one seed share."""

    config: Config
    dataset: Dataset
    likelihood: Likelihood
    network: Network
    num_classes: int
    seed: int

    def stream(self, name: str) -> RandomStream:
        return RandomStream(name, self.seed, self.dataset.train.images.device)

    def batches(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of x and y, epoch after epoch without end, from one random stream."""
        split, generator = self.dataset.train, self.stream(name).generator
        size = self.config.training.batch_size
        while True:
            order = torch.randperm(len(split), generator=generator, device=split.images.device)
            for index in order.split(size):
                x = self.likelihood.prepare(split.images[index], generator)
                yield x, split.labels[index]

    @property
    def batches_per_epoch(self) -> int:
        return math.ceil(len(self.dataset.train) / self.config.training.batch_size)

    def held_out(self, name: str) -> tuple[Tensor, Tensor]:
        """x and y of a held-out split."""
        split = getattr(self.dataset, name)
        generator = self.dataset.held_out_stream(name).generator  # type: ignore[arg-type]
        x = self.likelihood.prepare(split.images.cpu(), generator)
        return x.to(split.images.device), split.labels


def run(context: Context) -> Result:
    found = []
    for seed in context.seeds:
        setting = prepare(context, seed)
        context.tell(f"seed {seed}: training p(x | y)")
        conditional = train_conditional(setting)
        context.tell(f"seed {seed}: training p(y | x) directly")
        classifier = train_classifier(setting)
        context.tell(f"seed {seed}: log p(x | y) of every image and class")
        found.append(measure(setting, conditional, classifier, context.options))
    numbers = {
        name: over_seeds([measures[name] for measures, _ in found], UNITS[name.split(".")[0]])
        for name in found[0][0]
    }
    right = {
        name: torch.stack([pictures[f"right.{name}"] for _, pictures in found])
        for name in ("bayes", "direct")
    }
    numbers["accuracy_difference"] = over_both(right["direct"], right["bayes"], "share")
    for name, hits in right.items():
        error = over_images(hits.mean(0)).std_error or 0.0
        numbers[f"accuracy_error.{name}"] = Number(error, unit="share")
    answer = (
        f"Yes: Bayes' rule with p(x | y) classifies {percent(numbers['accuracy.bayes'])} of "
        f"{right['bayes'].shape[1]} test images correctly (± over training seeds). For noise p(y | "
        f"x) still names a class, but p(x) tells it from digits."
    )
    return Result(numbers, predict(numbers), answer, draw([pictures for _, pictures in found]))


def predict(numbers: Mapping[str, Number]) -> dict[str, Verdict]:
    """The verdict on each prediction."""
    return {
        "direct_is_more_accurate": above(numbers["accuracy_difference"]),
        "bayes_is_better_calibrated": below(
            numbers["miscalibration.bayes"] - numbers["miscalibration.direct"]
        ),
        "both_are_sure_of_noise": all_of(
            above(numbers[f"sure_of_noise.{name}"], 0.5) for name in ("bayes", "direct")
        ),
        "log_p_finds_noise": all_of(
            [
                above(numbers["noise_found.bayes"], 0.99),
                above(numbers["noise_found.bayes"] - numbers["noise_found.direct"]),
            ]
        ),
    }


UNITS = {
    "accuracy": "share",
    "nll": "nats per image",
    "miscalibration": "probability",
    "sure_of_noise": "probability",
    "sure_of_test": "probability",
    "noise_found": "share of pairs",
    "log_p": "nats per image",
    "k_hat_high": "share of test images and classes",
}


def prepare(context: Context, seed: int) -> Setting:
    config = parse_config({**context.chosen, "seed": seed})
    dataset = context.dataset.to(context.device)
    plan = Blueprint(
        config.latent_dim,
        dataset.image_shape,
        dataset.num_levels,
        config.network,
        config.likelihood,
        config.guide,
    )
    likelihood = plan.build_likelihood()
    dataset = dataset.for_likelihood(likelihood)
    network = build(config.network, Network, "network")
    num_classes = int(dataset.train.labels.max()) + 1
    return Setting(config, dataset, likelihood, network, num_classes, seed)


def train_conditional(setting: Setting) -> ConditionalVAE:
    """Train p(x | y) by SVI; keep the weights with the highest validation ELBO given y."""
    guide, options = resolve(setting.config.guide, Guide, "guide")
    with RandomStream("initial weights", setting.seed).active():
        conditional = ConditionalVAE(
            setting.num_classes,
            setting.config.latent_dim,
            setting.dataset.image_shape,
            setting.network,
            setting.likelihood,
            guide,
            options,
        ).to(setting.dataset.train.images.device)
    source = setting.batches("batches")
    x, y = setting.held_out("valid")

    def epoch() -> Iterator[Tensor]:
        for _ in range(setting.batches_per_epoch):
            batch, classes = next(source)
            with conditional.given(classes):
                yield batch

    records = train(
        conditional.vae,
        build(setting.config.objective, Objective, "objective"),
        epoch,
        epochs=setting.config.training.epochs,
        learning_rate=setting.config.training.learning_rate,
        noise=setting.stream("training"),
    )
    kept, best = copy.deepcopy(conditional.state_dict()), -math.inf
    for _ in records:
        with torch.no_grad(), setting.stream("validation").active(), conditional.given(y) as vae:
            elbo = log_weights(vae, x, setting.config.training.valid_samples).total.mean().item()
        if elbo > best:
            kept, best = copy.deepcopy(conditional.state_dict()), elbo
    conditional.load_state_dict(kept)
    return conditional.eval()


def train_classifier(setting: Setting) -> nn.Module:
    """Train the same encoder with class logits as outputs, on the same x; keep the best epoch."""
    with RandomStream("initial classifier", setting.seed).active():
        classifier = setting.network.encoder(setting.dataset.image_shape, setting.num_classes)
    classifier = classifier.to(setting.dataset.train.images.device)
    adam = torch.optim.Adam(classifier.parameters(), setting.config.training.learning_rate)
    source = setting.batches("batches")
    x, y = setting.held_out("valid")
    kept, best = copy.deepcopy(classifier.state_dict()), math.inf
    for _ in range(setting.config.training.epochs):
        for _ in range(setting.batches_per_epoch):
            batch, classes = next(source)
            adam.zero_grad()
            cross_entropy(classifier(batch), classes).backward()
            adam.step()
        with torch.no_grad():
            nll = cross_entropy(classifier(x), y).item()
        if nll < best:
            kept, best = copy.deepcopy(classifier.state_dict()), nll
    classifier.load_state_dict(kept)
    return classifier.eval()


def measure(
    setting: Setting, conditional: ConditionalVAE, classifier: nn.Module, options: ClassifierOptions
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Accuracy, calibration and response to noise of both classifiers; data for the figure."""
    x, y = (part[: options.images] for part in setting.held_out("test"))
    generator = setting.stream("noise").generator
    noise = torch.rand(x.shape, generator=generator, device=x.device).round()
    both = torch.cat([x, noise])
    frequency = torch.bincount(setting.dataset.train.labels, minlength=setting.num_classes)
    log_prior = (frequency / frequency.sum()).double().log().cpu()
    estimator = ImportanceSampling(options.samples, inflation=1.5, prior_share=0.1)
    warned = []
    # A class without training images has probability 0.
    log_joint = torch.full((len(both), setting.num_classes), -math.inf, dtype=torch.float64)
    for label_ in range(setting.num_classes):
        if frequency[label_]:
            with conditional.given(label_) as vae:
                found = estimate_together({"p": estimator}, vae, both, seed=setting.seed)
            estimate = found["p"].estimate
            log_joint[:, label_] = estimate.value + log_prior[label_]
            warned.append(pareto_k_high(estimate.select(torch.arange(len(x)))))
    with torch.no_grad():
        logits = classifier(both).double().cpu()
    log_p_x, y, n = log_joint.logsumexp(1), y.cpu(), len(x)
    is_test = torch.cat([torch.ones(n), torch.zeros(n)]).numpy()
    measures = {"k_hat_high": sum(warned) / len(warned)}
    measures |= {"log_p.test": log_p_x[:n].mean().item(), "log_p.noise": log_p_x[n:].mean().item()}
    pictures = {"log_p": log_p_x}
    for name, scores in (("bayes", log_joint), ("direct", logits)):
        log_posterior = scores.log_softmax(1)
        confidence, named = log_posterior.exp().max(1)
        right = (named[:n] == y).double()
        measures |= {
            f"accuracy.{name}": right.mean().item(),
            f"nll.{name}": -log_posterior[:n].gather(1, y[:, None]).mean().item(),
            f"miscalibration.{name}": miscalibration(confidence[:n], right, options.bins),
            f"sure_of_test.{name}": confidence[:n].mean().item(),
            f"sure_of_noise.{name}": confidence[n:].mean().item(),
            f"noise_found.{name}": float(
                roc_auc_score(is_test, log_p_x if name == "bayes" else confidence)
            ),
        }
        pictures |= {f"confidence.{name}": confidence[:n], f"right.{name}": right}
        pictures[f"noise.{name}"] = confidence[n:]
    shown = []
    with torch.no_grad(), setting.stream("pictures").active():
        for label_ in range(setting.num_classes):
            with conditional.given(label_) as vae:
                shown.append(vae.model(None, 4))
    pictures["samples"] = torch.stack(shown, 1).flatten(0, 1)
    pictures["noise"] = noise[: setting.num_classes]
    return measures, pictures


def miscalibration(confidence: Tensor, right: Tensor, bins: int) -> float:
    """Expected calibration error: mean over images of |share right - confidence| of their bin.

    All bins hold equally many images.
    """
    order = confidence.argsort()
    parts = zip(confidence[order].tensor_split(bins), right[order].tensor_split(bins), strict=True)
    gaps = [len(c) * (r.mean() - c.mean()).abs().item() for c, r in parts if len(c)]
    return sum(gaps) / len(confidence)


def draw(pictures: list[dict[str, Tensor]], bins: int = 6) -> Figure:
    figure, (left, middle, right) = new_figure(12, 4, 1, 3, width_ratios=[1.3, 1, 1])
    first = pictures[0]
    classes = len(first["noise"])
    rows = torch.cat([first["samples"], first["noise"]])
    show_images(left, rows, classes, "draws of p(x | y), a column per class; last row: noise")
    names = {"bayes": "Bayes' rule with p(x | y)", "direct": "trained to classify"}
    low = 1.0
    for index, (name, words) in enumerate(names.items()):
        confidence = torch.cat([p[f"confidence.{name}"] for p in pictures])
        hit = torch.cat([p[f"right.{name}"] for p in pictures])
        order = confidence.argsort()
        c, r = (
            torch.stack([part.mean() for part in values[order].tensor_split(bins)])
            for values in (confidence, hit)
        )
        size = len(first["right.bayes"]) / bins  # the images of every seed are the same
        low = min(low, c.min().item(), r.min().item())
        middle.errorbar(
            c,
            r,
            yerr=(r * (1 - r) / size).sqrt(),
            color=COLOURS[index],
            marker=MARKERS[index],
            capsize=3,
            label=words,
        )
    middle.plot([0, 1], [0, 1], color="black", lw=0.8)
    middle.set(xlim=(low - 0.1, 1.02), ylim=(low - 0.1, 1.02))
    middle.legend(fontsize="small", loc="upper left")
    label(middle, "test images: as often right as sure?", "probability named", "share right")
    log_p = torch.stack([p["log_p"] for p in pictures])
    test, noise = (part.flatten() for part in log_p.chunk(2, dim=1))
    edges = torch.linspace(log_p.min().item(), log_p.max().item(), 40).tolist()
    right.hist(test, edges, color=COLOURS[0], label="test images")
    right.hist(noise, edges, color=COLOURS[1], hatch="//", alpha=0.8, label="noise")
    right.legend(fontsize="small", loc="upper center")
    label(right, "log p(x) tells noise from digits", "log p(x), nats per image", "images")
    return figure


experiment = Experiment(
    "generate_and_classify",
    "Can a model that generates images classify them?",
    run,
    options=ClassifierOptions,
    overrides=("latent_dim=10",),
    seeds=(0, 1, 2, 3, 4),
)
