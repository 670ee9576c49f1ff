"""Comparisons of models against t tests, simulations with known truth, and what may be claimed."""

import gc
import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

import vae_pyro as vp
from benchmarks import calibration
from benchmarks.calibration import simulate, wrong_in
from tests.linear_gaussian import LinearGaussian
from vae_pyro.evaluation import Comparison, Scores
from vae_pyro.evaluation.comparison import rank_set
from vae_pyro.evaluation.difference import Scope, seed_interval
from vae_pyro.log_marginal import Bound, Estimate, Exact, ImportanceSampling


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """statsmodels collects garbage at every call, which takes longer the more there is."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def scores(value: Tensor, error: float = 0.0, **more: float | bool) -> Scores:
    value = value.double()
    value = value[None] if value.ndim == 1 else value
    return Scores(value, torch.full_like(value, error), **more)


def pair(a: Scores, b: Scores) -> Comparison:
    return Comparison({"a": a, "b": b})


def estimate(value: Tensor, bound: Bound = Bound.EXACT) -> Estimate:
    return Estimate(value.double(), torch.zeros(len(value)).double(), bound)


def test_one_seed_each_is_the_paired_t_test() -> None:
    torch.manual_seed(0)
    images = 5 * torch.randn(80)
    a, b = images + 0.1 * torch.randn(80), images - 0.05 + 0.2 * torch.randn(80)
    d = pair(scores(a), scores(b)).difference("a", "b")
    test = stats.ttest_rel(a.double().numpy(), b.double().numpy())
    assert d.p_value == pytest.approx(test.pvalue)
    assert d.interval() == pytest.approx(tuple(test.confidence_interval()))
    assert d.scope is Scope.WEIGHTS
    unpaired = math.hypot(*(x.double().std().item() for x in (a, b))) / 80**0.5
    assert d.unpaired_std_error == pytest.approx(unpaired)
    assert d.unpaired_std_error > 20 * d.std_error


def test_many_images_leave_welchs_t_test_over_seeds() -> None:
    """Values that are the same for all images differ by seeds alone."""
    torch.manual_seed(1)
    a, b = torch.randn(4), 0.3 + 2 * torch.randn(3)
    d = pair(scores(a[:, None].expand(4, 50)), scores(b[:, None].expand(3, 50))).differences[0]
    test = stats.ttest_ind(a.double().numpy(), b.double().numpy(), equal_var=False)
    assert d.p_value == pytest.approx(test.pvalue)
    assert d.degrees_of_freedom == pytest.approx(test.df)
    assert d.interval() == pytest.approx(tuple(test.confidence_interval()))
    assert d.scope is Scope.CONFIGURATIONS


def crossed(
    seeds: int, images: Tensor, sds: tuple[float, float], generator: torch.Generator
) -> Tensor:
    """image_i + seed_s + residual_si."""
    noise = torch.randn(seeds, 1 + len(images), generator=generator, dtype=torch.float64)
    return images + sds[0] * noise[:, :1] + sds[1] * noise[:, 1:]


@pytest.mark.parametrize("sds", [(0.3, 1.0), (0.0, 1.0), (0.3, 0.0)], ids=str)
def test_the_variance_is_that_of_repeated_experiments(sds: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(2)
    values, variances = [], []
    for _ in range(1500):
        shared, own = torch.randn(2, 60, generator=generator, dtype=torch.float64)
        a = crossed(3, 5 * shared, sds, generator)
        b = crossed(4, 5 * shared + 0.5 * own, sds, generator)
        d = pair(scores(a), scores(b)).differences[0]
        values.append(d.value)
        variances.append(d.std_error**2)
    expected = (sds[0] ** 2 + sds[1] ** 2 / 60) * (1 / 3 + 1 / 4) + 0.25 / 60
    mean = torch.tensor(variances)
    # It is never below either of its parts, so it is too large where seeds do not differ.
    error = 4 * mean.std().item() / len(mean) ** 0.5
    assert -error < mean.mean().item() - expected < error + (0.2 * expected if not sds[0] else 0)
    assert torch.tensor(values).var().item() == pytest.approx(expected, rel=4 * (2 / 1500) ** 0.5)


def test_components_are_those_of_the_simulation() -> None:
    generator = torch.Generator().manual_seed(3)
    seeds, images = 60, 4 * torch.randn(400, generator=generator, dtype=torch.float64)
    value = crossed(seeds, images, (0.5, 1.0), generator)
    value = value + 0.3 * torch.randn(value.shape, generator=generator, dtype=torch.float64)
    found = scores(value, 0.3).components()
    assert found.monte_carlo == pytest.approx(0.09)
    assert found.residual == pytest.approx(1.0, rel=0.04)
    assert found.seeds == pytest.approx(0.25, rel=4 * (2 / seeds) ** 0.5)
    assert found.images == pytest.approx(16, rel=4 * (2 / 400) ** 0.5)
    one = scores(value[:1], 0.3).components()
    assert math.isnan(one.seeds)
    assert one.images == pytest.approx(value[0].var().item())


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("tau", [0.05, 0.2], ids=["images-matter", "seeds-matter"])
@pytest.mark.parametrize("better", [0, None], ids=["equal", "different"])
def test_intervals_cover_the_truth(seeds: int, tau: float, better: int | None) -> None:
    """95% of 400 are 380 ± 4.4; docs/comparing_models.md has more of them."""
    found = calibration.coverage((wrong_in(better), wrong_in(1)), tau, seeds, 400)
    assert 366 <= 400 * found["satterthwaite"] <= 396
    if tau == 0.2:
        assert found["images"] < 0.8  # the error of the images is not that of the seeds
        assert found["monte_carlo"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize(("models", "repeats"), [(3, 300), (8, 100)])
def test_equals_are_seldom_ranked(models: int, repeats: int) -> None:
    wrong = repeats * calibration.false_ranks(models, 0.2, 3, repeats)
    assert wrong <= stats.binom.ppf(0.999, repeats, 0.05)


def test_who_is_far_better_is_ranked_first() -> None:
    models = [wrong_in(None) * scale for scale in (1.0, 2.0, 4.0)]
    comparison = simulate(models, 0.05, 5, torch.Generator().manual_seed(6))
    assert comparison.ranks == {"0": (1, 1), "1": (2, 2), "2": (3, 3)}
    assert comparison.best_set == ["0"]
    assert comparison.difference("2", "0").verdict == "lower"
    assert comparison.difference("0", "2").verdict == "higher"


def test_several_comparisons_are_adjusted_by_holms_steps() -> None:
    """Of one seed each, the p-values are those of the pairs alone."""
    comparison = simulate([wrong_in(i) for i in range(4)], 0.2, 1, torch.Generator())
    by_size = sorted(comparison.differences, key=lambda d: d.p_value)
    largest = 0.0
    for number, d in enumerate(by_size):
        largest = max(largest, min(1.0, (len(by_size) - number) * d.p_value))
        assert d.adjusted_p_value == pytest.approx(largest)


def test_seeds_that_agree_by_chance_are_no_evidence() -> None:
    """By itself the pair of two such configurations is decided; among four it is not."""
    few = [torch.tensor([0.0, 0.001, -0.001]) + shift for shift in (0.0, 0.1)]
    many = [torch.tensor([0.5, -0.5, 0.0]) + shift for shift in (0.0, 0.1)]
    made = {str(i): scores(seeds[:, None].expand(3, 50)) for i, seeds in enumerate([*few, *many])}
    alone = Comparison({name: made[name] for name in "01"})
    assert alone.difference("1", "0").verdict == "higher"
    together = Comparison(made)
    assert together.difference("1", "0").p_value == alone.difference("1", "0").p_value
    assert together.difference("1", "0").verdict == "undecided"
    for d in together.differences:
        assert d.adjusted_p_value >= d.p_value


numbers = st.lists(st.floats(-50, 50), min_size=6, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=5), st.integers(1, 3), st.floats(-100, 100))
def test_ranks_are_consistent(rows: list[list[float]], seeds: int, shift: float) -> None:
    images = 6 // seeds
    values = [torch.tensor(row[: seeds * images]).reshape(seeds, images) for row in rows]
    comparison = Comparison({str(i): scores(value) for i, value in enumerate(values)})
    ranks = comparison.ranks
    assert comparison.highest in comparison.best_set
    assert all(1 <= first <= last <= len(rows) for first, last in ranks.values())
    for d in comparison.differences:
        if d.verdict == "higher":
            assert d.value > 0
        assert d.monte_carlo_std_error == 0
    backwards = Comparison(dict(reversed(list(comparison.scores.items()))))
    assert {name: backwards.ranks[name] for name in ranks} == ranks
    moved = Comparison({n: scores(s.value + shift) for n, s in comparison.scores.items()})
    for before, after in zip(comparison.differences, moved.differences, strict=True):
        assert after.value == pytest.approx(before.value, abs=1e-9)


def test_a_bound_supports_only_that_it_is_higher() -> None:
    torch.manual_seed(7)
    images = torch.randn(100)
    low, high = images - 3 + 0.1 * torch.randn(100), images
    loose = pair(scores(low, untrusted_share=0.2), scores(high)).differences[0]
    assert loose.verdict == "undecided"  # the true value of a may be higher by more
    assert loose.interval()[1] == math.inf
    assert str(loose) == "≥ -3.0"
    lead = pair(scores(high, untrusted_share=0.2), scores(low)).differences[0]
    assert lead.verdict == "higher"
    assert str(lead) == "≥ 3.0"
    other = pair(scores(high), scores(low, untrusted_share=0.2)).differences[0]
    assert (str(other), other.verdict) == ("≤ 3.0", "undecided")
    both = pair(scores(high, untrusted_share=0.2), scores(low, untrusted_share=0.06)).differences[0]
    assert (str(both), both.verdict) == ("? 3.0", "undecided")
    assert (
        pair(scores(high, untrusted_share=0.05), scores(low)).differences[0].may_be_higher == set()
    )


def test_a_density_is_a_bound_beside_a_probability_alone() -> None:
    torch.manual_seed(8)
    images = torch.randn(100)
    density = scores(images - 3 + 0.1 * torch.randn(100), is_density=True)
    better = scores(images, is_density=True)
    assert pair(density, scores(images)).differences[0].verdict == "undecided"
    assert pair(better, scores(images - 1 + torch.randn(100))).differences[0].verdict == "higher"
    assert pair(density, better).differences[0].verdict == "lower"


def test_estimates_of_a_known_model_are_compared_within_their_interval() -> None:
    one, other = LinearGaussian(), LinearGaussian(shift=0.2)
    x = one.sample(150)
    models = {"one": one.vae, "other": other.vae}
    sampled = vp.compare({name: ImportanceSampling(200)(vae, x) for name, vae in models.items()})
    exact = vp.compare({name: Exact()(vae, x) for name, vae in models.items()})
    d, truth = sampled.difference("one", "other"), exact.difference("one", "other")
    assert abs(d.value - truth.value) < 4.5 * d.monte_carlo_std_error + 1e-6
    assert truth.monte_carlo_std_error == 0
    assert 0 < d.monte_carlo_std_error < 1.1 * d.std_error  # the two models are one


def test_printed_it_says_what_the_interval_is_about() -> None:
    torch.manual_seed(9)
    images = torch.randn(50)
    one, *more = (estimate(images + 0.1 * torch.randn(50)) for _ in range(4))
    text = str(vp.compare({"d=2": one, "d=10": estimate(images - 1 + 0.1 * torch.randn(50))}))
    assert "50 images" in text
    assert "these trained weights" in text
    assert text.count("[") == 2  # of the difference, and in the words
    assert "other training seeds" not in text
    text = str(vp.compare({"d=2": more, "d=10": [estimate(images), one]}))
    assert "other training seeds" in text
    assert "1-2" in text


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="same images; these have a: 20, b: 30"):
        vp.compare({"a": estimate(torch.zeros(20)), "b": estimate(torch.zeros(30))})
    with pytest.raises(ValueError, match="no models"):
        vp.compare({})
    with pytest.raises(ValueError, match=r"one or more seeds, of the same images: got \[\]"):
        vp.compare({"a": []})
    with pytest.raises(ValueError, match=r"got \[20, 30\]"):
        vp.compare({"a": [estimate(torch.zeros(20)), estimate(torch.zeros(30))]})
    with pytest.raises(ValueError, match="upper bound"):
        vp.compare({"a": estimate(torch.zeros(20), Bound.UPPER)})
    with pytest.raises(ValueError, match="two images"):
        vp.compare({"a": estimate(torch.zeros(1))})
    with pytest.raises(ValueError, match="not finite"):
        vp.compare({"a": estimate(torch.tensor([0.0, math.nan]))})
    with pytest.raises(KeyError, match="'c'"):
        vp.compare({"a": estimate(torch.zeros(5)), "b": estimate(torch.zeros(5))}).difference(
            "a", "c"
        )


def test_equal_models_differ_by_nothing() -> None:
    same = pair(scores(torch.arange(5.0)), scores(torch.arange(5.0))).differences[0]
    assert (same.value, same.p_value, same.verdict) == (0.0, 1.0, "undecided")
    shifted = pair(scores(torch.arange(5.0) + 1), scores(torch.arange(5.0))).differences[0]
    assert shifted.verdict == "higher"


def test_the_interval_over_seeds_is_students() -> None:
    means = [-23.0, -23.4, -23.1, -23.2]
    error = stats.sem(means)
    expected = stats.t.interval(0.95, 3, loc=sum(means) / 4, scale=error)
    assert seed_interval(means) == pytest.approx(expected)
    assert all(math.isnan(end) for end in seed_interval(means[:1]))


def test_rank_sets() -> None:
    assert [rank_set(ranks) for ranks in ((1, 1), (2, 4))] == ["1", "2-4"]
