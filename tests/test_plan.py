"""``vae-pyro plan``: the jobs are those that Hydra would start, and their times add up."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from tests.test_config import composed
from vae_pyro.cli.command_line import jobs_of
from vae_pyro.errors import ConfigError
from vae_pyro.runs.forecast import forecast

VALUES = {
    "latent_dim": ["2", "2,10", "range(2,9,3)", "choice(4,5)"],
    "seed": ["0", "0,1,2", "range(3)"],
    "likelihood": ["beta", "bernoulli,beta"],
    "network.hidden": ["[100,100]", "[100],[200,200]"],
    "+data.classes": ["[0,1]"],
}


@given(
    st.permutations(list(VALUES)).flatmap(
        lambda keys: st.tuples(*(st.tuples(st.just(k), st.sampled_from(VALUES[k])) for k in keys))
    ),
    st.integers(0, len(VALUES)),
)
def test_the_jobs_are_those_of_hydras_sweeper(chosen: list[tuple[str, str]], number: int) -> None:
    words = [f"{key}={value}" for key, value in chosen[:number]]
    parsed = OverridesParser.create().parse_overrides(words)
    (expected,) = BasicSweeper.split_arguments(parsed, None)
    assert jobs_of([*words, "hydra/launcher=joblib", "-m"]) == expected


def test_jobs_of_a_search_are_not_known() -> None:
    with pytest.raises(ConfigError, match="hydra/sweeper=optuna chooses jobs by the results"):
        jobs_of(["hydra/sweeper=optuna", "latent_dim=2,10", "-m"])
    with pytest.raises(ConfigError, match="only a search tries an interval"):
        jobs_of(["training.learning_rate=interval(0,1)", "-m"])


def test_no_job_is_left_out_of_many() -> None:
    assert len(jobs_of(["seed=range(1500)", "latent_dim=2,10", "-m"])) == 3000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Training and evaluation whose seconds are known; they are simulated, not computed."""
    seconds = {"now": 0.0, "once": 7.0, "batch": 0.5, "valid": 0.01, "start": 3.0, "image": 0.2}

    def fit(_vae: Any, data: Any, _objective: Any, **options: Any) -> None:
        options["on_epoch"](None)
        for epoch in range(options["epochs"]):
            seconds["now"] += seconds["once"] * (epoch == 0)
            seconds["now"] += seconds["batch"] * -(-len(data.train) // options["batch_size"])
            seconds["now"] += seconds["valid"] * len(data.valid)
            options["on_epoch"](None)

    def estimate_together(_estimators: Any, _vae: Any, x: Any, **options: Any) -> None:
        with options["progress"]("evaluating", len(x)) as report:
            seconds["now"] += seconds["start"]
            for image in range(len(x)):
                seconds["now"] += seconds["image"]
                report(image + 1, "")

    monkeypatch.setattr("vae_pyro.runs.forecast.fit", fit)
    monkeypatch.setattr("vae_pyro.runs.forecast.estimate_together", estimate_together)
    monkeypatch.setattr("vae_pyro.runs.forecast.time.perf_counter", lambda: seconds["now"])
    return seconds


@pytest.mark.parametrize("batch_size", [64, 16, 300])
def test_what_is_repeated_is_counted_as_often(clock: dict[str, float], batch_size: int) -> None:
    """Digits have 1,197 training images, 300 for validation and 300 for the test."""
    config = composed(f"training.batch_size={batch_size}", "training.epochs=200")
    found = forecast(config, {"data": "digits"})
    batches = -(-1197 // batch_size)
    expected = 7.0 + 200 * (0.5 * batches + 0.01 * 300)
    assert found.training == pytest.approx(expected, rel=0.02)  # images do not fill whole batches
    assert found.evaluation == pytest.approx(2 * 3.0 + 0.2 * (300 + 300 + 50))  # in two passes
    assert found.together == found.training + found.evaluation


def test_a_density_is_evaluated_for_each_dequantisation(clock: dict[str, float]) -> None:
    config = composed("likelihood=normal", "evaluation.dequantisations=4")
    found = forecast(config, {"data": "digits"})
    assert found.evaluation == pytest.approx(2 * 3.0 + 0.2 * (2 * 4 * 300 + 50))


@pytest.mark.parametrize(
    ("settings", "seconds_each", "images"),
    [
        (["evaluation/estimators=[ais]"], 0.4, 70),
        (["evaluation/estimators=[ais]", "evaluation.simulated_images=9"], 0.4, 70 + 2 * 9),
        (["evaluation/estimators=[exact]"], 0.05, 1000),  # less than a minute for all
        (["evaluation/estimators=[exact]"], 0.07, 70),
        (["evaluation/estimators=[prior,local]", "evaluation.num_images=null"], 0.4, 2 * 1000),
    ],
)
def test_further_estimators_are_counted_for_the_images_they_are_run_on(
    settings: list[str], seconds_each: float, images: int, clock: dict[str, float]
) -> None:
    """Of the 1,000 test images, the first 70 where nothing else is set."""
    clock.update(start=0.0, image=seconds_each)
    config = composed("data=linear_gaussian", "evaluation.num_images=70", *settings)
    found = forecast(config, {"data": "linear_gaussian"})
    assert found.evaluation == pytest.approx(seconds_each * (2 * 1000 + 50 + images))


def test_a_pass_is_stopped_when_it_was_measured_long_enough(clock: dict[str, float]) -> None:
    clock.update(once=0.0, batch=0.0, valid=0.0, start=0.0, image=1.0)
    assert forecast(composed(), {"data": "digits"}).together == pytest.approx(650.0)
    assert clock["now"] == 2 * 5  # the first image, and more than three seconds after it


@pytest.mark.slow
def test_nothing_is_left_behind(
    run_py: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = run_py("plan", "latent_dim=2,3", "seed=0,1", "evaluation.num_samples=50", "-m")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    names = ["d=2 seed=0", "d=2 seed=1", "d=3 seed=0", "d=3 seed=1"]
    assert [" ".join(row[:2]) for row in rows if row and row[0].startswith("d=")] == names
    assert "4 jobs, one after another: about " in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_a_job_refuses_is_refused(
    run_py: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    for words, message in (
        (["latent_dim=2,10"], "several values make a sweep, which needs -m; try: "),
        (["data=numpy", "data.path=none.npz"], "there is no file"),
    ):
        done = run_py("plan", *words)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert message in line
    assert not list(tmp_path.iterdir())
