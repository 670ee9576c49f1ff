"""The sweep's table and its file."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from vae_pyro.errors import ReportError
from vae_pyro.reporting.configurations import Group, grouped
from vae_pyro.reporting.results import (
    JobResult,
    bound_label,
    bound_names,
    groups,
    varying_settings,
)
from vae_pyro.reporting.sweep_data import comparison_csv, runs_csv, summary_csv
from vae_pyro.reporting.sweeps import (
    DIFFERENCE,
    print_sweep,
    sweep_chart,
    sweep_markdown,
    sweep_table,
)
from vae_pyro.reporting.tables import print_run, run_table, to_csv

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


IMAGES = 40


def on_disk(folder: Path, result: JobResult, seed: int = 0, draws: int = 1) -> JobResult:
    """With the values of every image, whose mean is that of the result."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    value = 3 * torch.randn(IMAGES, generator=torch.Generator().manual_seed(0))
    value = value + 0.1 * torch.randn(draws, IMAGES, generator=generator)
    value = (value - value.mean() + result.metrics["test/log_px"]).double()
    value = value - value.mean() + result.metrics["test/log_px"]
    rows: list[dict[str, object]] = [
        {"image": i, "draw": d, "elbo": 0.0, "log_px": value[d, i].item(), "log_px_std_error": 0.03}
        for d in range(draws)
        for i in range(IMAGES)
    ]
    (folder / "per_image.csv").write_text(to_csv(rows, list(rows[0])))
    result.write(folder)
    read = JobResult.read(folder)
    assert read is not None
    return read


@pytest.fixture
def results(tmp_path: Path) -> list[JobResult]:
    finished = JobResult(
        "latent_dim=2, seed=7",
        {"latent_dim": "2", "seed": "7"},
        2,
        None,
        "digits: binary pixels",
        "abc",
        0.0,
        METRICS,
    )
    return [
        on_disk(tmp_path / "0", finished),
        JobResult("latent_dim=0, seed=7", {"latent_dim": "0", "seed": "7"}, error="too small"),
    ]


def seeded(
    tmp_path: Path, latent_dim: int, values: Sequence[float], **more: float
) -> list[JobResult]:
    """One configuration, trained with several seeds."""
    return [
        on_disk(
            tmp_path / f"{latent_dim}-{seed}",
            JobResult(
                f"latent_dim={latent_dim}, seed={seed}",
                {"latent_dim": str(latent_dim), "seed": str(seed)},
                latent_dim,
                None,
                "digits: binary pixels",
                "abc",
                0.0,
                METRICS | {"test/log_px": value} | more,
            ),
            100 * latent_dim + seed,
        )
        for seed, value in enumerate(values)
    ]


@pytest.fixture
def sweep(tmp_path: Path) -> list[JobResult]:
    """Two that cannot be told apart, and one that is worse."""
    return [
        *seeded(tmp_path, 2, [-24.9, -25.0, -25.1]),
        *seeded(tmp_path, 10, [-23.0, -23.1, -22.9]),
        *seeded(tmp_path, 20, [-23.2, -22.8, -23.15]),
    ]


def test_round_trip(tmp_path: Path, results: list[JobResult]) -> None:
    for result in results:
        result.write(tmp_path)
        read = JobResult.read(tmp_path)
        assert read == result
        assert read is not None
        assert read.folder == tmp_path
    assert "folder" not in (tmp_path / "result.json").read_text()


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


def test_a_run_has_a_row_with_every_metric(results: list[JobResult]) -> None:
    (row,) = csv.DictReader(io.StringIO(runs_csv(grouped(results))))
    assert row.pop("latent_dim") == "2"
    assert row.pop("seed") == "7"
    assert row.pop("x") == "digits: binary pixels"
    assert row.pop("images") == "abc"
    assert float(row.pop("log_cell_volume")) == 0
    assert {name: float(value) for name, value in row.items()} == pytest.approx(METRICS, rel=1e-6)


def test_seeds_of_one_configuration_are_one_row(sweep: list[JobResult]) -> None:
    groups = grouped(sweep)
    rows = list(csv.DictReader(io.StringIO(summary_csv(groups))))
    assert [(row["latent_dim"], row["seeds"]) for row in rows] == [
        ("2", "3"),
        ("10", "3"),
        ("20", "3"),
    ]
    assert [float(row["test/log_px"]) for row in rows] == pytest.approx([-25, -23, -23.05])
    assert float(rows[0]["log_px_seed_std"]) == pytest.approx(0.1)
    assert not any(name.endswith("_std_error") and "difference" not in name for name in rows[0])
    assert [row["difference_to_highest"] for row in rows] == ["-2.0", "", "-0.05"]
    assert [(row["rank_first"], row["rank_last"]) for row in rows] == [
        ("3", "3"),
        ("1", "2"),
        ("1", "2"),
    ]
    assert [row["in_best_set"] for row in rows] == ["False", "True", "True"]
    assert len(list(csv.DictReader(io.StringIO(runs_csv(groups))))) == 9


def test_every_pair_is_compared(sweep: list[JobResult]) -> None:
    (group,) = grouped(sweep)
    rows = list(csv.DictReader(io.StringIO(comparison_csv([group]))))
    assert [(row["first"], row["second"], row["verdict"]) for row in rows] == [
        ("latent_dim=2", "latent_dim=10", "lower"),
        ("latent_dim=2", "latent_dim=20", "lower"),
        ("latent_dim=10", "latent_dim=20", "undecided"),
    ]
    for row in rows:
        d = group.comparison.difference(row["first"], row["second"])
        assert float(row["difference"]) == pytest.approx(d.value, rel=1e-6)
        assert float(row["std_error"]) == pytest.approx(d.std_error, rel=1e-6)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(d.interval(), rel=1e-5)
        assert row["is_about"] == "configurations"
        monte_carlo = 0.03 * (2 / (3 * IMAGES)) ** 0.5
        assert float(row["monte_carlo_std_error"]) == pytest.approx(monte_carlo, rel=1e-6)


def test_the_table_has_ties_and_marks_the_best_set(sweep: list[JobResult]) -> None:
    (group,) = grouped(sweep)
    table = sweep_table(group)
    assert table.header[:2] == ["latent_dim", "seeds"]
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert [rows[d]["rank"] for d in ("2", "10", "20")] == ["3", "1-2 *", "1-2 *"]
    assert rows["10"][DIFFERENCE] == ""
    assert rows["2"][DIFFERENCE].startswith("-2.00 ± 0.0")
    assert rows["2"]["log p(x)"] == "-25.00"
    text = printed([group], 100)
    assert "other training seeds and other images" in " ".join(text.split())
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 100
    assert sweep_chart([group])[:4] == b"\x89PNG"


def test_one_seed_speaks_of_the_trained_weights(tmp_path: Path) -> None:
    runs = [run for d, v in ((2, -25.0), (10, -23.0)) for run in seeded(tmp_path, d, [v])]
    assert "for these trained weights" in printed(grouped(runs), 140)
    (row,) = csv.DictReader(io.StringIO(comparison_csv(grouped(runs))))
    assert row["is_about"] == "weights"


def test_a_configuration_is_trusted_by_its_images_over_all_seeds(tmp_path: Path) -> None:
    good = seeded(tmp_path, 10, [-23.0, -23.1, -22.9])
    one = seeded(tmp_path, 2, [-24.9, -25.0]) + [
        replace(run, settings={"latent_dim": "2", "seed": "9"})
        for run in seeded(tmp_path / "bad", 2, [-25.1], **{"test/untrusted": 0.12})
    ]
    (group,) = grouped([*one, *good])
    assert group.configurations[0].scores.untrusted_share == pytest.approx(0.04)
    assert "≥" not in printed([group], 140)
    bad = seeded(tmp_path / "bad", 2, [-24.9, -25.0], **{"test/untrusted": 0.12})
    text = printed(grouped([*bad, *good]), 140)
    assert "≥ -24.95" in text
    assert "≥ -2.0" in text
    assert "1-2 *" in text
    assert "may be higher by" in text


def test_a_configuration_that_ran_twice_with_one_seed_counts_once(tmp_path: Path) -> None:
    runs = seeded(tmp_path, 2, [-24.9, -25.0])
    (group,) = grouped([*runs, runs[0]])
    assert group.configurations[0].scores.num_seeds == 2


def test_samples_of_x_are_averaged_for_every_image(tmp_path: Path) -> None:
    (run,) = seeded(tmp_path, 2, [-24.9])
    run = on_disk(tmp_path / "draws", replace(run, log_cell_volume=-2.0), draws=4)
    (group,) = grouped([run])
    scores = group.configurations[0].scores
    assert scores.num_images == IMAGES
    assert scores.mean() == pytest.approx(-26.9)
    assert scores.std_error.numpy() == pytest.approx(0.03 / 2)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: "", "EmptyData|No columns"),
        (lambda text: text.replace("log_px,", "log_qx,"), "log_px"),
        (lambda text: text.replace("\n0,0,", "\n0,zero,"), "zero"),
        (lambda text: text.rpartition("\n0,0,")[0] + text.rpartition("\n0,0,")[2], "."),
        (lambda text: "\n".join(text.splitlines()[:-3]), "not that of result.json"),
        (lambda text: "\n".join([*text.splitlines()[:1], *text.splitlines()[:0:-1]]), "in order"),
        (lambda text: text.replace("\n0,0,0.0,-", "\n0,0,0.0,-1"), "not that of result.json"),
    ],
)
def test_a_damaged_table_of_images_is_named(
    tmp_path: Path, damage: Callable[[str], str], words: str
) -> None:
    (run,) = seeded(tmp_path, 2, [-24.9])
    path = tmp_path / "2-0" / "per_image.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ReportError, match=words) as refused:
        grouped([run])
    assert str(path) in str(refused.value)
    path.unlink()
    with pytest.raises(ReportError, match="run that job again"):
        grouped([run])


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


def printed(groups: list[Group], width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    print_sweep(groups, console)
    return console.export_text()


def test_table_and_markdown_show_the_numbers(results: list[JobResult]) -> None:
    for text in (printed(grouped(results), 140), sweep_markdown(grouped(results))):
        for cell in ("-24.50", "-24.10", "-23.90", "-23.80", "0.70", "0.5360", "10%"):
            assert cell in text
        assert "nats" in text


def test_lists_of_names_are_printed(results: list[JobResult], tmp_path: Path) -> None:
    """rich takes [ais] for markup, and prints nothing of it."""
    key = "evaluation/estimators"
    lists = ("[ais]", "[prior,local]")
    jobs = [
        on_disk(tmp_path / name, replace(results[0], name=name, settings={key: name}))
        for name in lists
    ]
    text = printed(grouped(jobs), 200)
    assert all(name in text for name in lists)


def test_a_run_alone_shows_its_own_errors(results: list[JobResult]) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    print_run(results[0], console)
    text = console.export_text()
    for cell in ("-24.50", "-24.10", "-23.90", "-23.800 ± 0.004", "0.31", "0.5360", "10%"):
        assert cell in text


def test_a_narrow_terminal_loses_columns_but_no_digits(results: list[JobResult]) -> None:
    console = Console(width=76, record=True, file=io.StringIO())
    print_run(results[0], console)
    text = console.export_text()
    for cell in ("-24.50", "-23.90", "-23.800 ± 0.004", "0.5360"):
        assert cell in text
    assert "ESS" not in text
    assert "…" not in text


def job(likelihood: str, log_px: float, x: str, volume: float | None) -> JobResult:
    metrics = METRICS | {"test/log_px": log_px, "test/elbo": log_px - 1}
    if volume is None:
        metrics = {k: v for k, v in metrics.items() if "bits_per_dim" not in k}
    return JobResult(likelihood, {"likelihood": likelihood}, 2, None, x, "abc", volume, metrics)


@pytest.fixture
def mixed(tmp_path: Path) -> list[JobResult]:
    """A density of 80 nats bounds a probability of -101.3: better than one of -110."""
    made = [
        job("bernoulli", -24.0, "digits: binary pixels", 0.0),
        job("categorical", -110.0, "digits: 17 levels", 0.0),
        job("beta", 80.0, "digits: 17 levels", -64 * math.log(17)),
        job("normal", 70.0, "digits: 17 levels", -64 * math.log(17)),
    ]
    return [on_disk(tmp_path / one.name, one, number) for number, one in enumerate(made)]


def test_ranks_are_within_what_x_is(mixed: list[JobResult]) -> None:
    tables = {group.x: sweep_table(group) for group in grouped(mixed)}
    assert set(tables) == {"digits: binary pixels", "digits: 17 levels"}
    assert "rank" not in tables["digits: binary pixels"].header  # it stands alone
    grey = tables["digits: 17 levels"]
    rows = [dict(zip(grey.header, row, strict=True)) for row in grey.rows]
    # A density is a bound, so that the probability may only be overtaken.
    assert [(row["likelihood"], row["rank"]) for row in rows] == [
        ("categorical", "2-3"),
        ("beta", "1 *"),
        ("normal", "2-3"),
    ]
    assert rows[1]["log p(x)"] == "≥ -101.33"
    assert rows[0]["log p(x)"] == "-110.00"
    assert rows[1]["ELBO"] == "-102.33"
    assert rows[0][DIFFERENCE] == "≤ -8.7"
    assert rows[2][DIFFERENCE].startswith("-10.00 ± 0.0")  # of two densities


def test_a_mixed_sweep_says_why_it_is_not_ranked_as_one(mixed: list[JobResult]) -> None:
    for text in (printed(grouped(mixed), 160), sweep_markdown(grouped(mixed))):
        assert "not to be compared" in text
        assert "≥ marks a density" in text
        assert text.index("binary pixels") < text.index("17 levels")
    alone = printed(grouped(mixed[:1]), 160)
    assert "not to be compared" not in alone
    assert "≥" not in alone


def test_long_names_leave_the_difference_and_the_rank(mixed: list[JobResult]) -> None:
    name = "discretized_logistic_mixture"
    runs = [replace(run, settings=run.settings | {"likelihood": name}) for run in mixed[1:2]]
    text = printed(grouped([*runs, *mixed[2:]]), 100)
    assert max(map(len, text.splitlines())) <= 100
    for words in (name, "≥ -101.33", "-10.00 ± 0.0", "1 *", "2-3", DIFFERENCE):
        assert words in text
    assert "…" not in text


def test_real_valued_data_have_no_bits(mixed: list[JobResult]) -> None:
    real = job("normal", -3.0, "linear_gaussian: real-valued pixels", None)
    table = run_table(real)
    assert "bits/dim" not in table.header
    assert "-3.000 ± 0.004" in table.rows[0]
    assert [len(group) for group in groups([*mixed, real])] == [1, 3, 1]


def test_other_images_are_another_x(mixed: list[JobResult]) -> None:
    """Two synthetic data sets, say, of the same kind of pixel."""
    other = replace(mixed[1], images="def")
    assert [len(group) for group in groups([*mixed, other])] == [1, 3, 1]


def test_the_truth_stands_beside_the_estimate_where_it_is_known() -> None:
    result = job("normal", -3.0, "linear_gaussian: real-valued pixels", None)
    known = replace(result, metrics=result.metrics | {"test/log_px_true": -2.875})
    table = run_table(known)
    assert table.rows[0][table.header.index("true log p(x)")] == "-2.88"
