"""The sweep's table and its file."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from vae_pyro.reporting.results import (
    JobResult,
    bound_label,
    bound_names,
    groups,
    shared_settings,
    varying_settings,
)
from vae_pyro.reporting.tables import (
    print_summary,
    summary_csv,
    summary_markdown,
    summary_tables,
    to_csv,
)

METRICS = {
    "test/elbo": -24.5,
    "test/elbo_std_error": 0.01,
    "test/iwae_1": -24.5,
    "test/iwae_1_std_error": 0.01,
    "test/iwae_50": -23.9,
    "test/iwae_50_std_error": 0.02,
    "test/iwae_5": -24.1,
    "test/iwae_5_std_error": 0.015,
    "test/log_px": -23.8,
    "test/log_px_std_error": 0.004,
    "test/log_px_image_std_error": 0.31,
    "test/gap": 0.7,
    "test/bits_per_dim": 0.536,
    "test/bits_per_dim_std_error": 0.001,
    "test/effective_sample_size": 200.0,
    "test/pareto_k_high": 0.1,
    "test/untrusted": 0.0,
    "test/active_units": 2.0,
    "time/train_seconds": 10.0,
    "time/evaluate_seconds": 1.0,
}


@pytest.fixture
def results() -> list[JobResult]:
    return [
        JobResult(
            "latent_dim=2, seed=7",
            {"latent_dim": "2", "seed": "7"},
            2,
            None,
            "digits: binary pixels",
            "abc",
            0.0,
            METRICS,
        ),
        JobResult("latent_dim=0, seed=7", {"latent_dim": "0", "seed": "7"}, error="too small"),
    ]


def test_round_trip(tmp_path: Path, results: list[JobResult]) -> None:
    for result in results:
        result.write(tmp_path)
        assert JobResult.read(tmp_path) == result


def test_columns_are_what_varies(results: list[JobResult]) -> None:
    assert varying_settings(results) == ["latent_dim"]
    swept = [
        JobResult("a", {"likelihood": "bernoulli", "seed": "1"}, 10),
        JobResult("b", {"likelihood": "normal", "seed": "1"}, 10),
    ]
    assert varying_settings(swept) == ["latent_dim", "likelihood"]


def test_bounds_stand_in_order_and_iwae_1_is_the_elbo(results: list[JobResult]) -> None:
    names = bound_names(results)
    assert names == ["test/elbo", "test/iwae_5", "test/iwae_50", "test/log_px"]
    assert [bound_label(name) for name in names] == ["ELBO", "IWAE-5", "IWAE-50", "log p(x)"]


def test_csv_holds_every_metric_of_what_finished(results: list[JobResult]) -> None:
    (row,) = csv.DictReader(io.StringIO(summary_csv(results)))
    assert row.pop("latent_dim") == "2"
    assert row.pop("x") == "digits: binary pixels"
    assert row.pop("images") == "abc"
    assert float(row.pop("log_cell_volume")) == 0
    assert {name: float(value) for name, value in row.items()} == METRICS


def test_csv_has_the_bytes_that_the_standard_library_writes() -> None:
    rows: list[dict[str, object]] = [
        {"a": 0, "b,c": 0.1, 'd"': math.nan, "e": "x, y"},
        {"a": 1, "b,c": -math.inf, 'd"': 1e-07, "e": 'say "x"'},
        {"a": 2, "b,c": math.inf, 'd"': 1e22, "e": ""},
        {"a": 10**17, "b,c": 1 / 3},
        {"a": -0.0, "b,c": 1e16, 'd"': 123456789.0, "e": "two\nlines"},
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    assert to_csv(rows, list(rows[0])) == text.getvalue()
    assert to_csv([], ["a", "b"]) == "a,b\n"


def printed(results: list[JobResult], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_summary(results, console)
    return console.export_text()


def test_table_and_markdown_show_the_numbers(results: list[JobResult]) -> None:
    for text in (printed(results, 140), summary_markdown(results)):
        for cell in (
            "-24.50",
            "-24.10",
            "-23.90",
            "-23.800 ± 0.004",
            "0.31",
            "0.70",
            "0.5360",
            "10%",
        ):
            assert cell in text
        assert "nats" in text


def test_a_narrow_terminal_loses_columns_but_no_digits(results: list[JobResult]) -> None:
    text = printed(results, 80)
    for cell in ("-24.50", "-24.10", "-23.90", "-23.800 ± 0.004", "0.5360"):
        assert cell in text
    assert "ESS" not in text
    assert "…" not in text


def job(likelihood: str, log_px: float, x: str, volume: float | None) -> JobResult:
    metrics = METRICS | {"test/log_px": log_px, "test/elbo": log_px - 1}
    if volume is None:
        metrics = {k: v for k, v in metrics.items() if "bits_per_dim" not in k}
    return JobResult(likelihood, {"likelihood": likelihood}, 2, None, x, "abc", volume, metrics)


@pytest.fixture
def mixed() -> list[JobResult]:
    """A density of 80 nats bounds a probability of -101.3: better than one of -110."""
    return [
        job("bernoulli", -24.0, "digits: binary pixels", 0.0),
        job("categorical", -110.0, "digits: 17 levels", 0.0),
        job("beta", 80.0, "digits: 17 levels", -64 * math.log(17)),
        job("normal", 70.0, "digits: 17 levels", -64 * math.log(17)),
    ]


def test_ranks_are_within_what_x_is(mixed: list[JobResult]) -> None:
    tables = {table.title: table for table in summary_tables(mixed)}
    assert set(tables) == {"digits: binary pixels", "digits: 17 levels"}
    assert "rank" not in tables["digits: binary pixels"].header  # it stands alone
    grey = tables["digits: 17 levels"]
    rows = [dict(zip(grey.header, row, strict=True)) for row in grey.rows]
    assert [(row["likelihood"], row["rank"]) for row in rows] == [
        ("categorical", "2"),
        ("beta", "1"),
        ("normal", "3"),
    ]
    assert rows[1]["log p(x)"] == "≥ -101.326 ± 0.004"
    assert rows[0]["log p(x)"] == "-110.000 ± 0.004"
    assert rows[1]["ELBO"] == "-102.33"


def test_a_mixed_sweep_says_why_it_is_not_ranked_as_one(mixed: list[JobResult]) -> None:
    for text in (printed(mixed, 160), summary_markdown(mixed)):
        assert "not to be compared" in text
        assert "≥ marks a density" in text
        assert text.index("binary pixels") < text.index("17 levels")
    alone = printed(mixed[:1], 160)
    assert "not to be compared" not in alone
    assert "≥" not in alone


def test_real_valued_data_have_no_bits(mixed: list[JobResult]) -> None:
    real = job("normal", -3.0, "linear_gaussian: real-valued pixels", None)
    (table,) = summary_tables([real])
    assert "bits/dim" not in table.header
    assert "-3.000 ± 0.004" in table.rows[0]
    assert [len(group) for group in groups([*mixed, real])] == [1, 3, 1]


def test_other_images_are_another_x(mixed: list[JobResult]) -> None:
    """Two synthetic data sets, say, of the same kind of pixel."""
    other = replace(mixed[1], images="def")
    assert [len(group) for group in groups([*mixed, other])] == [1, 3, 1]


def test_what_a_group_shares_is_said_where_it_has_no_column(mixed: list[JobResult]) -> None:
    assert shared_settings(mixed[:1], mixed) == "likelihood=bernoulli"
    assert shared_settings(mixed[1:], mixed) == ""


def test_the_truth_stands_beside_the_estimate_where_it_is_known() -> None:
    result = job("normal", -3.0, "linear_gaussian: real-valued pixels", None)
    known = replace(result, metrics=result.metrics | {"test/log_px_true": -2.875})
    (table,) = summary_tables([known])
    assert table.rows[0][table.header.index("true log p(x)")] == "-2.88"
