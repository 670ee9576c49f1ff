"""Two kinds of error bars, and answers put together from parts."""

import math

import pytest
import torch

from vae_pyro.log_marginal import Bound, Estimate, PerImage, TimedEstimate
from vae_pyro.log_marginal.estimate import concatenate, with_error
from vae_pyro.log_marginal.estimator import part_of

VALUE = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
ERROR = torch.tensor([0.3, 0.4, 0.0, 0.0], dtype=torch.float64)


def test_monte_carlo_and_image_errors_are_two_things() -> None:
    number = PerImage(VALUE, ERROR)
    assert number.mean() == 3
    assert number.mean_std_error() == pytest.approx(0.5 / 4)
    assert number.image_std_error() == pytest.approx(VALUE.std().item() / 2)
    assert PerImage(VALUE, 0 * ERROR).mean_std_error() == 0


def test_image_error_covers_other_images() -> None:
    """Over fresh images, the mean moves as much as the image error says; not as the other does."""
    generator = torch.Generator().manual_seed(0)
    means, errors = [], []
    for _ in range(400):
        number = PerImage(torch.randn(50, generator=generator), torch.full((50,), 0.01))
        means.append(number.mean())
        errors.append(number.image_std_error())
    spread = torch.tensor(means).std().item()
    assert spread == pytest.approx(sum(errors) / 400, rel=4.5 / math.sqrt(800))
    assert spread > 10 * number.mean_std_error()


def test_draws_of_one_image_are_averaged_before_the_images_spread() -> None:
    two_draws = PerImage(torch.tensor([1.0, 5.0, 3.0, 7.0]), torch.zeros(4))  # images: 2 and 6
    assert two_draws.image_std_error(draws=2) == pytest.approx(math.sqrt(8) / math.sqrt(2))
    assert two_draws.mean_std_error(draws=2) == pytest.approx(math.sqrt(2) / 2)
    with pytest.raises(ValueError, match="4 values are not 3 draws"):
        two_draws.image_std_error(draws=3)


def test_one_image_has_no_spread() -> None:
    assert math.isnan(PerImage(VALUE[:1], ERROR[:1]).image_std_error())


def test_numeric_errors_do_not_average_out() -> None:
    estimate = Estimate(VALUE, torch.full((4,), 0.1).double(), Bound.NUMERIC)
    assert estimate.mean_std_error() == pytest.approx(0.1)
    by_draw = PerImage(VALUE, ERROR).mean_std_error(draws=2)
    assert estimate.mean_std_error(draws=2) == pytest.approx(math.hypot(0.1, by_draw))
    lower = Estimate(VALUE, torch.full((4,), 0.1).double(), Bound.LOWER)
    assert lower.mean_std_error() == pytest.approx(0.05)


def test_parts_are_put_together_and_taken_apart() -> None:
    whole = Estimate(VALUE, ERROR, Bound.UPPER, {"k": 2 * VALUE}, 10.0)
    first, last = whole.select(torch.tensor([0])), whole.select(torch.tensor([1, 2, 3]))
    again = concatenate([first, last])
    assert again.bound is Bound.UPPER
    assert torch.equal(again.value, VALUE)
    assert torch.equal(again.std_error, ERROR)
    assert torch.equal(again.diagnostics["k"], 2 * VALUE)
    cheap = Estimate(VALUE[:1], ERROR[:1], Bound.UPPER, {}, 2.0)
    assert concatenate([cheap, whole]).evaluations == pytest.approx((2 + 4 * 10) / 5)


def test_a_parts_progress_is_the_wholes() -> None:
    seen: list[float] = []
    report = part_of(lambda share, _: seen.append(share), 0.5, 0.9)
    report(0.0, "")
    report(1.0, "")
    assert seen == pytest.approx([0.5, 0.9])


@pytest.mark.parametrize(
    ("value", "std_error", "words"),
    [
        (-23.4987, 0.0092, "-23.499 ± 0.009"),
        (-23.4987, 0.0112, "-23.499 ± 0.011"),
        (-23.4987, 0.0987, "-23.50 ± 0.10"),
        (-23.4987, 0.0297, "-23.50 ± 0.03"),
        (-523.4987, 14.3, "-523 ± 14"),
        (-5234.987, 230.0, "-5200 ± 200"),
        (-23.4987, 0.0, "-23.50"),
        (-23.4987, math.nan, "-23.50"),
        (-23.4987, math.inf, "-23.50"),
    ],
)
def test_a_number_has_as_many_digits_as_its_error_allows(
    value: float, std_error: float, words: str
) -> None:
    assert with_error(value, std_error) == words


def test_an_estimate_prints_in_one_line() -> None:
    k = {"pareto_k": torch.tensor([0.1, 0.8, 0.2, math.inf])}
    assert str(Estimate(VALUE, ERROR, Bound.LOWER, k)) == (
        "3.00 ± 0.12 nats per image (lower bound)"
    )
    assert str(Estimate(VALUE, ERROR, Bound.LOWER, k, num_weights=5000)) == (
        "≥ 3.0 nats per image (lower bound), untrusted: 50% of the images"
    )
    unknown = {"pareto_k": torch.full((4,), math.nan)}
    assert str(Estimate(VALUE, ERROR, Bound.UPPER, unknown)) == (
        "3.00 ± 0.12 nats per image (upper bound)"
    )
    assert str(Estimate(VALUE, 0 * ERROR, Bound.EXACT)) == "3.00 nats per image (exact)"
    numeric = Estimate(VALUE, torch.full((4,), 0.3).double(), Bound.NUMERIC)
    assert str(numeric) == "3.0 ± 0.3 nats per image (numeric)"
    assert repr(numeric) == f"<Estimate of 4 images: {numeric}>"
    assert repr(TimedEstimate(numeric, 1.23)) == f"<TimedEstimate of 4 images: {numeric}, 1.2 s>"
    assert repr(PerImage(VALUE, ERROR)) == "<PerImage of 4 images: 3.00 ± 0.12 per image>"


def test_a_second_value_that_is_far_away_costs_the_trust() -> None:
    """5 standard errors of the difference are the limit; what was not repeated is not judged."""
    once = Estimate(VALUE, torch.full_like(ERROR, 0.1), Bound.LOWER)
    assert once.num_checked == 0
    assert once.untrusted_share == 0
    limit = 5 * 0.1 * math.sqrt(2)
    index = torch.tensor([2, 0])
    moved = once.value[index] + torch.tensor([0.99 * limit, -1.01 * limit])
    second = Estimate(moved, once.std_error[index], Bound.LOWER)
    twice = once.checked_by(second, index)
    assert twice.disagreeing.tolist() == [True, False, False, False]
    assert twice.trusted.tolist() == [False, True, True, True]
    assert twice.num_checked == 2
    assert twice.untrusted_share == 0.5
    assert not twice.is_trusted
    assert str(twice) == "≥ 3.0 nats per image (lower bound), untrusted: 50% of the images"
    assert torch.equal(twice.value, once.value)
    # An image of which the weights raise a doubt is counted once.
    k = torch.tensor([0.9, 0.1, 0.1, 0.1])
    doubtful = Estimate(VALUE, once.std_error, Bound.LOWER, {"pareto_k": k}, num_weights=5000)
    assert doubtful.checked_by(second, index).untrusted_share == 0.25


def test_equal_values_without_an_error_agree() -> None:
    exact = Estimate(VALUE, 0 * ERROR, Bound.LOWER)
    assert exact.checked_by(exact, torch.arange(4)).is_trusted


def test_an_estimate_is_a_table_with_one_row_per_image() -> None:
    table = Estimate(VALUE, ERROR, Bound.LOWER, {"pareto_k": 2 * VALUE}).to_dataframe()
    assert list(table.columns) == ["value", "std_error", "pareto_k"]
    assert table.index.name == "image"
    assert table["value"].tolist() == VALUE.tolist()
    assert table["pareto_k"].tolist() == (2 * VALUE).tolist()
