"""One evaluation in chunks: the same numbers whether it was stopped or not."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.linear_gaussian import LinearGaussian
from vae_pyro.compilation.precision import threads
from vae_pyro.errors import EstimatorError
from vae_pyro.guide import DiagNormal
from vae_pyro.likelihoods import Bernoulli, Beta
from vae_pyro.log_marginal import (
    AIS,
    Bound,
    ELBOBound,
    Estimate,
    Estimator,
    Exact,
    ImportanceSampling,
    IWAEBound,
    LocalELBO,
    PriorSampling,
    Quadrature,
    TimedEstimate,
    bidirectional,
    estimate_together,
    together,
)
from vae_pyro.log_marginal.cache import digest_of
from vae_pyro.log_marginal.chunking import multiply_adds
from vae_pyro.log_marginal.estimator import OnProgress
from vae_pyro.log_marginal.program import ModelAndGuide
from vae_pyro.log_marginal.together import for_all_images, is_cheap
from vae_pyro.networks import MLP, Conv, Network
from vae_pyro.randomness import RandomStream
from vae_pyro.vae import VAE, build_vae

FAMILY: dict[str, Estimator] = {
    "elbo": ELBOBound(50),
    "iwae_5": IWAEBound(50, 5),
    "log_px": ImportanceSampling(50),
    "log_px_wide": ImportanceSampling(50, inflation=1.5),
    "log_px_prior": PriorSampling(50),
    "log_px_ais": AIS(5, 4, 2),
    "log_px_quadrature": Quadrature(),
    "log_px_exact": Exact(),
    "elbo_local": LocalELBO(5, 4, 10),
}


def same(first: dict[str, TimedEstimate], second: dict[str, TimedEstimate]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[name].estimate.value, second[name].estimate.value)
        and torch.equal(first[name].estimate.std_error, second[name].estimate.std_error)
        and first[name].estimate.bound is second[name].estimate.bound
        and first[name].estimate.evaluations == second[name].estimate.evaluations
        and all(
            torch.equal(numbers, second[name].estimate.diagnostics[key])
            for key, numbers in first[name].estimate.diagnostics.items()
        )
        for name in first
    )


def test_each_name_gets_its_own_estimators_result() -> None:
    truth = LinearGaussian(shift=0.1)
    x = truth.sample(130)
    answers = estimate_together(FAMILY, truth.vae, x, seed=0)
    assert list(answers) == list(FAMILY)
    exact = answers["log_px_exact"].estimate
    assert torch.equal(exact.value, Exact()(truth.vae, x).value)
    for name in ("log_px", "log_px_wide", "log_px_ais", "log_px_quadrature"):
        z_scores = (answers[name].estimate.value - exact.value) / answers[name].estimate.std_error
        assert z_scores.abs().median() < 1.2
    assert answers["elbo"].estimate.mean() < answers["iwae_5"].estimate.mean()
    assert answers["log_px"].seconds == answers["elbo"].seconds > 0


def test_the_seed_decides() -> None:
    truth = LinearGaussian(shift=0.1)
    x = truth.sample(110)
    first, again = (estimate_together(FAMILY, truth.vae, x, seed=3) for _ in range(2))
    other = estimate_together(FAMILY, truth.vae, x, seed=4)
    assert same(first, again)
    assert not torch.equal(first["elbo"].estimate.value, other["elbo"].estimate.value)
    # Two chunks, two sequences of random numbers: equal images do not get equal estimates.
    twice = estimate_together(
        {"elbo": ELBOBound(5)}, truth.vae, x[:1].expand(50, -1, -1, -1), seed=0
    )
    value = twice["elbo"].estimate.value
    assert not torch.equal(value[:25], value[25:])


@pytest.fixture
def two_threads() -> Iterator[None]:
    with threads(2):
        yield


def test_processes_that_share_the_images_give_the_same_numbers(tmp_path: Path) -> None:
    truth = LinearGaussian(shift=0.1)
    x = truth.sample(110)
    answers = []
    for number in (1, 2, 3):
        with threads(number):
            folder = tmp_path / str(number)
            answers.append(estimate_together(FAMILY, truth.vae, x, seed=0, folder=folder))
    alone, shared, by_three = answers
    assert same(alone, shared)
    assert same(alone, by_three)
    # Each keeps what it computes, for an evaluation that is continued.
    names = [sorted(path.name for path in folder.iterdir()) for folder in tmp_path.iterdir()]
    assert names[0] == names[1] == names[2]


@dataclass(frozen=True)
class Who(Estimator):
    """Tells which process computes, and on how many threads."""

    def __call__(
        self, vae: ModelAndGuide, x: Tensor, on_progress: OnProgress | None = None
    ) -> Estimate:
        value = torch.full((len(x),), float(os.getpid()), dtype=torch.float64)
        count = torch.full_like(value, torch.get_num_threads())
        return Estimate(value, 0 * value, Bound.LOWER, {"threads": count})


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("images", "ahead"), [(39, 0), (41, 1)])
def test_the_first_of_many_chunks_is_computed_here(
    images: int, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a graph is compiled once, and a note on it is written once."""
    monkeypatch.setattr(together, "IMAGES_PER_CHUNK", {"cpu": 1})
    truth = LinearGaussian()
    answer = estimate_together({"log_px_a": Who()}, truth.vae, truth.sample(images), seed=0)
    estimate = answer["log_px_a"].estimate
    assert (estimate.value == os.getpid()).tolist() == [True] * ahead + [False] * (images - ahead)
    assert len(set(estimate.value.tolist())) == 2 + ahead
    assert (estimate.diagnostics["threads"] == 1).all()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_in_one_process_stops_all(tmp_path: Path) -> None:
    truth = LinearGaussian()
    x = truth.sample(110)
    log, kept = tmp_path / "log", tmp_path / "kept"
    stopping: dict[str, Estimator] = {"log_px_a": Counting(2, log)}
    with pytest.raises(Stop):
        estimate_together(stopping, truth.vae, x, seed=1, folder=kept)
    done = list(kept.iterdir())
    assert len(done) < 5
    whole: dict[str, Estimator] = {"log_px_a": Counting(99, log)}
    continued = estimate_together(whole, truth.vae, x, seed=1, folder=kept)
    undisturbed = estimate_together(
        {"log_px_a": Counting(99, tmp_path / "other")}, truth.vae, x, seed=1
    )
    assert same(continued, undisturbed)
    assert set(done) < set(kept.iterdir())


def test_the_ambient_randomness_is_left_alone() -> None:
    truth = LinearGaussian()
    state = torch.get_rng_state()
    estimate_together(FAMILY, truth.vae, truth.sample(3), seed=0)
    bidirectional(AIS(3, 2, 2), truth.vae, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)


class Stop(BaseException):
    pass


@dataclass(frozen=True)
class Counting(Estimator):
    """Counts what is computed, and stops when told to."""

    stop_after: int
    log: Path

    def __call__(
        self, vae: ModelAndGuide, x: Tensor, on_progress: OnProgress | None = None
    ) -> Estimate:
        calls = self.log.read_text().count("\n") if self.log.exists() else 0
        if calls >= self.stop_after:  # two processes may write at the same time
            raise Stop
        self.log.open("a").write(f"{len(x)}\n")
        value = torch.randn(len(x), dtype=torch.float64)
        return Estimate(value, value.abs(), Bound.LOWER, {"half": value / 2}, 7.0)

    def __repr__(self) -> str:
        return "Counting"


def test_a_stopped_evaluation_goes_on_at_its_chunk(tmp_path: Path) -> None:
    truth = LinearGaussian()
    x = truth.sample(110)
    log = tmp_path / "log"
    undisturbed = estimate_together(
        {"log_px_a": Counting(99, tmp_path / "other")}, truth.vae, x, seed=1
    )
    for stop_after in (2, 4):
        with pytest.raises(Stop):
            estimate_together(
                {"log_px_a": Counting(stop_after, log)},
                truth.vae,
                x,
                seed=1,
                folder=tmp_path / "kept",
            )
    continued = estimate_together(
        {"log_px_a": Counting(99, log)}, truth.vae, x, seed=1, folder=tmp_path / "kept"
    )
    assert log.read_text().split() == ["25", "25", "25", "25", "10"]  # none twice
    assert same(continued, undisturbed)


def test_every_estimator_comes_back_as_it_was(tmp_path: Path) -> None:
    truth = LinearGaussian(shift=0.1)
    x = truth.sample(130)
    fresh = estimate_together(FAMILY, truth.vae, x, seed=0, folder=tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    kept = estimate_together(FAMILY, truth.vae, x, seed=0, folder=tmp_path)
    assert same(fresh, kept)
    assert fresh["log_px"].seconds == kept["log_px"].seconds
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}


def test_bidirectional_bounds_come_back_too(tmp_path: Path) -> None:
    truth = LinearGaussian()
    fresh = bidirectional(AIS(3, 4, 2), truth.vae, 40, seed=0, folder=tmp_path)
    kept = bidirectional(AIS(3, 4, 2), truth.vae, 40, seed=0, folder=tmp_path)
    names = ("lower", "upper")
    assert same(dict(zip(names, fresh, strict=True)), dict(zip(names, kept, strict=True)))
    assert len(list(tmp_path.iterdir())) == 2


def asked_anew(folder: Path, ask: Callable[[], object]) -> bool:
    before = len(list(folder.iterdir()))
    ask()
    return len(list(folder.iterdir())) > before


def test_another_question_is_not_answered_from_the_folder(tmp_path: Path) -> None:
    truth = LinearGaussian()
    x = truth.sample(3)
    elbo: dict[str, Estimator] = {"elbo": ELBOBound(5)}

    def ask(
        estimators: dict[str, Estimator] = elbo,
        vae: VAE = truth.vae,
        images: Tensor = x,
        seed: int = 0,
    ) -> object:
        return estimate_together(estimators, vae, images, seed=seed, folder=tmp_path)

    ask()
    assert not asked_anew(tmp_path, ask)
    assert asked_anew(tmp_path, lambda: ask({"elbo": ELBOBound(6)}))
    assert asked_anew(tmp_path, lambda: ask({"elbo": ELBOBound(5, inflation=2.0)}))
    assert asked_anew(tmp_path, lambda: ask(images=x + 1e-9))
    assert asked_anew(tmp_path, lambda: ask(seed=1))
    assert asked_anew(tmp_path, lambda: ask(vae=LinearGaussian(shift=1e-6).vae))
    other_scale = LinearGaussian()
    other_scale.vae.model.likelihood.__dict__["scale"] = 0.7001
    assert asked_anew(tmp_path, lambda: ask(vae=other_scale.vae))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "nonsense"])
def test_a_damaged_chunk_is_computed_again(tmp_path: Path, damage: str) -> None:
    truth = LinearGaussian()
    x = truth.sample(3)
    elbo: dict[str, Estimator] = {"elbo": ELBOBound(50)}
    fresh = estimate_together(elbo, truth.vae, x, seed=0, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    damaged = {"truncate": whole[:-5], "flip": flipped, "empty": b"", "nonsense": b"x" * 100}
    path.write_bytes(damaged[damage])
    again = estimate_together(elbo, truth.vae, x, seed=0, folder=tmp_path)
    assert same(fresh, again)
    assert path.read_bytes() != damaged[damage]
    assert same(again, estimate_together(elbo, truth.vae, x, seed=0, folder=tmp_path))


def test_what_has_no_answer_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    vae = build_vae(4, (1, 2, 3), MLP((4,)), Beta(17), DiagNormal, seed=None)
    family: dict[str, Estimator] = {"elbo": ELBOBound(5), "log_px_quadrature": Quadrature()}
    with pytest.raises(EstimatorError, match="latent_dim of at most 3"):
        estimate_together(family, vae, torch.full((2, 1, 2, 3), 0.5), seed=0, folder=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [1, 2])
def test_progress_is_in_images_and_ends_with_all_of_them(number: int) -> None:
    truth = LinearGaussian(shift=0.1)
    x = truth.sample(230)
    seen: dict[str, list[int]] = {}

    @contextmanager
    def progress(label: str, total: int) -> Iterator[Callable[[int, str], None]]:
        assert total == 230
        reports = seen.setdefault(label, [])
        yield lambda done, _: reports.append(done)

    with threads(number):
        estimate_together(FAMILY, truth.vae, x, seed=0, progress=progress)
    assert list(seen) == [
        "evaluating elbo .. log_px",
        *(f"evaluating {name}" for name in list(FAMILY)[3:]),
    ]
    for reports in seen.values():
        assert reports == sorted(reports)
        assert reports[0] == 0
        assert reports[-1] == 230


def test_simulated_images_lie_in_the_likelihoods_support() -> None:
    """Beta draws reach 0 and 1 in float32, where the density may be infinite."""
    vae = build_vae(2, (1, 4, 4), MLP((4,)), Beta(17), DiagNormal, seed=None)
    for parameter in vae.model.decoder.parameters():
        parameter.data.mul_(8)
    lower, upper = bidirectional(AIS(5, 4, 2), vae, 50, seed=0)
    assert lower.estimate.value.isfinite().all()
    assert upper.estimate.value.isfinite().all()


@dataclass(frozen=True)
class Dice(Estimator):
    """Random numbers, of all images because they cost nothing."""

    budget_for_all = 1.0

    def __call__(
        self, vae: ModelAndGuide, x: Tensor, on_progress: OnProgress | None = None
    ) -> Estimate:
        value = torch.randn(len(x), dtype=torch.float64)
        return Estimate(value, value.abs(), Bound.LOWER, {"image": x.flatten(1)[:, 0]})


def test_the_later_images_have_estimates_of_their_own(tmp_path: Path) -> None:
    """Every second of 40 images first: what follows is neither repeated nor mixed up."""
    truth = LinearGaussian()
    x = truth.sample(40)
    first = torch.arange(0, 40, 2)
    dice: dict[str, Estimator] = {"log_px_dice": Dice()}
    estimators = {**dice, "log_px_prior": PriorSampling(50)}
    some = estimate_together(estimators, truth.vae, x[first], seed=0, folder=tmp_path)

    def estimate_all() -> dict[str, TimedEstimate]:
        return for_all_images(some, estimators, truth.vae, x, first, seed=0, folder=tmp_path)

    complete = estimate_all()
    assert list(complete) == ["log_px_dice"]  # nothing says that the other is cheap
    estimate = complete["log_px_dice"].estimate
    assert torch.equal(estimate.diagnostics["image"], x.flatten(1)[:, 0])
    assert torch.equal(estimate.value[::2], some["log_px_dice"].estimate.value)
    assert len(estimate.value.unique()) == 40
    assert same(complete, estimate_all())
    every = torch.arange(40)
    whole = estimate_together(estimators, truth.vae, x, seed=0)
    assert same(for_all_images(whole, estimators, truth.vae, x, every, seed=0), whole)


def test_random_streams_keep_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other names, an evaluation that is continued would get other numbers."""
    names: list[str] = []

    def named(name: str, seed: int, device: torch.device) -> RandomStream:
        names.append(name)
        return RandomStream(name, seed, device)

    monkeypatch.setattr(together, "RandomStream", named)
    monkeypatch.setattr(together, "IMAGES_PER_CHUNK", {"cpu": 2})
    truth = LinearGaussian()
    weights = {"elbo": ELBOBound(3), "iwae": IWAEBound(3, 3), "log_px": ImportanceSampling(3)}
    family: dict[str, Estimator] = {**weights, "log_px_prior": PriorSampling(3)}
    with threads(1):  # else other processes, which are told the names
        estimate_together(family, truth.vae, truth.sample(3), seed=0, place=5)
        bidirectional(AIS(2, 2, 1), truth.vae, 3, seed=0)
    assert names == [
        "evaluating elbo .. log_px 5",
        "evaluating elbo .. log_px 7",
        "evaluating log_px_prior 5",
        "evaluating log_px_prior 7",
        "simulated images",
        "evaluating simulated images 0",
        "evaluating simulated images 2",
    ]


def test_looking_at_a_vae_leaves_its_digest() -> None:
    truth = LinearGaussian()
    vae = VAE(truth.vae.model, truth.vae.guide)
    fresh = VAE(truth.vae.model, truth.vae.guide)
    repr(vae)
    assert digest_of(vae) == digest_of(fresh) == digest_of(fresh)


def small_and_large(network: Network) -> tuple[VAE, VAE]:
    return (
        build_vae(2, (1, 8, 8), network, Bernoulli(17), DiagNormal, seed=None),
        build_vae(2, (1, 28, 28), network, Bernoulli(256), DiagNormal, seed=None),
    )


def test_quadrature_of_all_digits_is_cheap_and_of_all_of_mnist_is_not() -> None:
    """With the default network and as many decoder evaluations as were counted on trained VAEs."""
    zeros = torch.zeros(100, dtype=torch.float64)
    digits, mnist = small_and_large(MLP((400, 400)))
    counted = {"digits": (digits, 27_878, 300), "mnist": (mnist, 23_024, 10_000)}
    for name, (vae, evaluations, num_images) in counted.items():
        estimate = Estimate(zeros, zeros, Bound.NUMERIC, evaluations=evaluations)
        assert is_cheap(Quadrature(), vae, estimate, num_images) == (name == "digits")
        assert not is_cheap(AIS(), vae, estimate, 100)
        assert not is_cheap(AIS(), vae, replace(estimate, evaluations=0), 100)
        assert is_cheap(Exact(), vae, replace(estimate, evaluations=0), num_images)


def test_what_a_decoder_costs() -> None:
    """Of dense layers the weights; a convolution uses each weight at every pixel."""
    dense, _ = small_and_large(MLP((10,)))
    assert multiply_adds(dense) == 2 * 10 + 10 * 64 + 300 * 64
    small, large = small_and_large(Conv())
    weights = sum(p.numel() for p in small.model.decoder.parameters())
    assert multiply_adds(small) > 10 * weights
    assert multiply_adds(large) > 10 * multiply_adds(small)


def test_a_decoder_of_other_functions_costs_no_less_than_its_weights() -> None:
    class Einsum(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("...i,oi->...o", x, self.weight) + self.bias

    vae, _ = small_and_large(MLP((10,)))
    known = multiply_adds(vae)
    layers = [part for part in vae.model.decoder.modules() if isinstance(part, nn.Linear)]
    assert layers
    for layer in layers:
        layer.__class__ = Einsum
    assert multiply_adds(vae) == known


def test_budgets_are_frozen() -> None:
    assert replace(AIS(5, 4, 2), num_chains=8) == AIS(5, 8, 2)
    assert hash(ELBOBound(5)) == hash(ELBOBound(5))
