"""Every experiment runs in quick mode, and what its page says is what it measured."""

import importlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from mlflow import MlflowClient
from scipy import stats

from experiments.__main__ import main
from experiments.command import load, run_experiment
from experiments.context import OUTPUTS, Context, Experiment, Options, Result
from experiments.numbers import (
    NONE,
    Number,
    Verdict,
    above,
    all_of,
    below,
    lowest,
    over_both,
    over_images,
    over_seeds,
    within,
)
from experiments.pages import HERE, NAMES, fill, fill_table, read_results
from experiments.which_likelihood import experiment as which_likelihood
from tests.conftest import ROOT
from vae_pyro.cli.console import make_console
from vae_pyro.errors import ConfigError

QUICK = ("training.epochs=2", "evaluation.num_samples=50", "seed=0", "experiment.workers=1")
# As few different VAEs as the questions allow: those that are alike are trained once.
BUDGETS = {
    "what_is_p_of_an_image": ("experiment.images=3",),
    "how_to_estimate_p_of_x": (
        "experiment.large=3",
        "experiment.images=2",
        "experiment.draws=[1,100]",
        "experiment.temperatures=[2]",
        "experiment.reference_draws=100",
        "experiment.reference_temperatures=3",
        "experiment.shown_draws=50",
    ),
    "is_two_dimensions_enough": (
        "experiment.latent_dims=[2,3]",
        "experiment.test_images=50",
        "experiment.draws=2",
        "experiment.rate_samples=2",
    ),
    "autoencoder_pca_vae": (
        "experiment.latent_dim=3",
        "experiment.test_images=30",
        "experiment.temperatures=3",
        "experiment.generated=30",
    ),
    "prior_or_aggregated_posterior": (
        "experiment.latent_dims=[2]",
        "experiment.grey_latent_dim=3",
        "experiment.images=50",
        "experiment.latents=2",
        "experiment.prior_draws=50",
        "experiment.generated=30",
    ),
    "why_approximate_the_posterior": (
        "experiment.large=3",
        "experiment.images=3",
        "experiment.grid=21",
        "experiment.local_steps=3",
        "experiment.draws=200",
        "experiment.nuts_images=1",
        "experiment.nuts_samples=10",
        "experiment.nuts_warmup=10",
    ),
    "moving_in_latent_space": (
        "experiment.latent_dim=3",
        "experiment.test_images=30",
        "experiment.pairs=2",
        "experiment.temperatures=2",
        "experiment.noise=[0.0,0.3]",
    ),
    "can_the_error_bars_be_trusted": (
        "experiment.images=3",
        "experiment.repetitions=3",
        "experiment.num_samples=50",
        "experiment.groups=[1,5,50]",
        "experiment.bias_samples=200",
        "experiment.tail_samples=100",
        "experiment.inflations=[0.5,1.0]",
        "experiment.temperatures=3",
        "experiment.early_epochs=1",
    ),
    "which_likelihood": (
        "experiment.latent_dim=2",
        "experiment.likelihoods=[bernoulli,categorical,beta]",
        "experiment.images=20",
    ),
    "do_networks_output_distributions": (
        "experiment.likelihoods=[bernoulli,categorical,beta]",
        "experiment.inputs=1",
        "experiment.steps=2",
        "experiment.radii=[0,8]",
        "experiment.grid=51",
        "experiment.points=101",
    ),
    "generate_and_classify": ("experiment.images=30", "experiment.samples=25"),
}
SECTIONS = ["Question", "Prediction", "Method", "Command", "Result", "What would change our mind"]


PROGRAM = (sys.executable, "-m", "experiments")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where experiments that need the same VAE find it, and one MLflow database."""
    return tmp_path_factory.mktemp("experiments")


def test_budgets_are_known() -> None:
    assert set(BUDGETS) == set(NAMES)
    folders = {path.parent.name for path in HERE.glob("*/experiment.py")}
    assert folders == set(NAMES)


@pytest.mark.slow
@pytest.mark.xdist_group("experiments")  # which share the trained VAEs
@pytest.mark.parametrize("name", NAMES)
def test_quick_mode(name: str, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outputs)
    before = (HERE / name / "results.json").read_bytes()
    main([name, *QUICK, *BUDGETS[name], f"tracking.uri=sqlite:///{outputs}/mlflow.db"])
    assert (HERE / name / "results.json").read_bytes() == before  # it is of the plain command
    left = outputs / OUTPUTS / name
    results = read_results(left)
    assert (left / "figure.png").read_bytes().startswith(b"\x89PNG")
    numbers = {key: Number(**number) for key, number in results["numbers"].items()}
    assert all(math.isfinite(number.value) for number in numbers.values())
    assert set(read_results(HERE / name)["predictions"]) == set(results["predictions"])
    assert set(results["predictions"].values()) <= set(Verdict)
    client = MlflowClient(f"sqlite:///{outputs}/mlflow.db")
    (found,) = client.search_experiments(filter_string="name = 'vae-pyro'")
    (run,) = client.search_runs([found.experiment_id], f"tags.experiment = '{name}'")
    assert run.info.status == "FINISHED"
    for key, number in numbers.items():
        assert run.data.metrics[key] == pytest.approx(number.value, nan_ok=True)
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {
        "results.json",
        "figure.png",
    }


class SumOptions(Options):
    """No further ones."""


def test_the_plain_command_rewrites_its_page_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = tmp_path / "pages"
    (pages / "sum").mkdir(parents=True)
    (pages / "README.md").write_text("<!-- table -->\n<!-- end -->\n")
    (pages / "sum" / "README.md").write_text("It is <!--sum-->0<!---->: <!--is_four-->?<!---->.\n")
    monkeypatch.setattr("experiments.command.HERE", pages)
    monkeypatch.chdir(tmp_path)

    def add(context: Context) -> Result:
        number = over_seeds([2.0 + seed for seed in context.seeds], "apples")
        return Result({"sum": number}, {"is_four": above(number, 4)}, "More.", Figure())

    experiment = Experiment("sum", "How much is 2 + 2?", add, SumOptions, seeds=(2, 3, 4))
    # MLflow keeps the connection of a relative address, whatever the folder is later.
    run_experiment(experiment, [f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"])
    assert (pages / "sum" / "README.md").read_text() == (
        "It is <!--sum-->5.00 ± 0.58<!---->: <!--is_four-->**undecided**<!---->.\n"
    )
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_experiments(filter_string="name = 'vae-pyro'")
    (run,) = client.search_runs([found.experiment_id])
    assert run.data.metrics == {"sum": 5.0, "sum_std_error": pytest.approx(3**-0.5)}
    assert {f.path for f in client.list_artifacts(run.info.run_id)} >= {
        "results.json",
        "figure.png",
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_was_measured(name: str) -> None:
    folder, results = HERE / name, read_results(HERE / name)
    page = (folder / "README.md").read_text()
    assert fill(page, results) == page
    assert "-->none<!--" not in page
    assert re.findall(r"^## (.*)$", page, flags=re.MULTILINE) == SECTIONS
    assert page.startswith(f"# {results['question']}\n")
    assert results["command"] == f"python -m experiments {name}"
    assert f"python -m experiments {name}\n" in page
    for mark in (*results["predictions"], "answer"):
        assert f"<!--{mark}-->" in page
    for target in re.findall(r"\]\(([^)h][^)]*)\)", page):
        assert (folder / target).is_file(), target


@pytest.mark.parametrize("name", NAMES)
def test_means_are_over_seeds(name: str) -> None:
    for number in read_results(HERE / name)["numbers"].values():
        if number["seeds"]:
            assert number["value"] == pytest.approx(mean(number["seeds"]))
        if len(number["seeds"]) > 1:
            error = stdev(number["seeds"]) / math.sqrt(len(number["seeds"]))
            assert number["std_error"] == pytest.approx(error)


def test_the_table_of_all() -> None:
    page = (HERE / "README.md").read_text()
    assert fill_table(page, NAMES) == page
    rows = [line for line in page.splitlines() if line.startswith("| [")]
    assert len(rows) == len(NAMES)
    for name, row in zip(NAMES, rows, strict=True):
        assert f"]({name}/README.md)" in row
        assert len(re.split(r"(?<!\\)\|", row)) == 5  # three cells between four bars


def test_a_density_can_beat_a_probability_and_cannot_lose_to_it() -> None:
    """Its bits are an upper bound of those that it needs for the levels."""

    def predict(beta: float, normal: float) -> dict[str, Verdict]:
        bits = {"categorical": 2.0, "beta": beta, "normal": normal}
        names = list(bits)
        numbers = {
            f"{kind}.{name}": over_seeds([value - 0.01, value, value + 0.01])
            for name, value in bits.items()
            for kind in ("bits_per_dim", "told_apart.draw")
        }
        return which_likelihood.predict(numbers, names, {"beta", "normal"})

    behind = predict(3.0, 4.0)
    assert behind["probabilities_beat_densities"] is Verdict.UNDECIDED
    assert behind["best_bits_look_most_real"] is Verdict.UNDECIDED
    assert behind["fixed_scale_is_worst"] is Verdict.UNDECIDED
    ahead = predict(1.0, 0.5)
    assert ahead["probabilities_beat_densities"] is Verdict.REFUTED
    assert ahead["best_bits_look_most_real"] is Verdict.HELD
    assert predict(4.0, 3.0)["fixed_scale_is_worst"] is Verdict.REFUTED  # two densities


SEEDS = st.lists(st.floats(-100, 100), min_size=2, max_size=6)


def _predicted(name: str, numbers: Mapping[str, Number]) -> dict[str, Verdict]:
    """The verdicts on an experiment's numbers, with its default options."""
    module = importlib.import_module(f"experiments.{name}.experiment")
    options: Any = load(name).options()
    if name in ("how_to_estimate_p_of_x", "can_the_error_bars_be_trusted"):
        return module.predict(numbers, options)
    if name in ("is_two_dimensions_enough", "prior_or_aggregated_posterior"):
        return module.predict(numbers, options.latent_dims)
    if name == "which_likelihood":
        grey = [n for n in options.likelihoods if n != "bernoulli"]
        densities = set(grey) - {"categorical", "discretized_logistic_mixture"}
        return module.predict(numbers, grey, densities)
    if name == "moving_in_latent_space":
        return {
            f"{key}_{kind}": verdict
            for kind in ("binary", "grey")
            for key, verdict in module.predict(numbers, kind, options).items()
        }
    return module.predict(numbers)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "do_networks_output_distributions"])
def test_recorded_verdicts_are_those_of_the_recorded_numbers(name: str) -> None:
    results = read_results(HERE / name)
    numbers = {key: Number(**number) for key, number in results["numbers"].items()}
    assert _predicted(name, numbers) == results["predictions"]


def test_numbers_of_other_seeds_are_not_paired() -> None:
    numbers = read_results(HERE / "can_the_error_bars_be_trusted")["numbers"]
    some = {key: Number(**number) for key, number in numbers.items()}
    some["warned_2"] = over_seeds(some["warned_2"].seeds[1:])
    verdicts = _predicted("can_the_error_bars_be_trusted", some)
    assert verdicts["warned_are_worse"] is Verdict.UNDECIDED


@given(SEEDS, st.floats(-100, 100))
def test_verdicts_are_those_of_a_t_test(values: list[float], threshold: float) -> None:
    number = over_seeds(values)
    if not number.std_error or number.std_error < 1e-6:
        return
    p = stats.ttest_1samp(values, threshold).pvalue
    if abs(p - 0.05) < 1e-6:
        return
    decided = Verdict.HELD if mean(values) > threshold else Verdict.REFUTED
    assert above(number, threshold) is (decided if p < 0.05 else Verdict.UNDECIDED)
    opposite = {Verdict.HELD: Verdict.REFUTED, Verdict.REFUTED: Verdict.HELD}
    verdict = above(number, threshold)
    assert below(number, threshold) is opposite.get(verdict, verdict)


def test_known_verdicts() -> None:
    near, far = over_seeds([0.9, 1.0, 1.1, 1.2, 0.8]), over_seeds([3.0, 5.0, 4.0])
    assert above(near, 0.5) is Verdict.HELD
    assert above(near, 1.5) is Verdict.REFUTED
    assert above(near, 1.1) is Verdict.UNDECIDED  # the mean is below, the interval is not
    assert within(near, 0.7, 1.3) is Verdict.HELD
    assert within(near, 1.3, 9.0) is Verdict.REFUTED
    assert within(near, 0.9, 1.3) is Verdict.UNDECIDED
    assert lowest("near", {"near": near, "far": far}) is Verdict.HELD
    assert lowest("far", {"near": near, "far": far}) is Verdict.REFUTED
    one_seed, exact = over_seeds([7.0]), Number(7.0)
    assert above(one_seed, 0) is above(one_seed - one_seed, 0) is Verdict.UNDECIDED
    assert above(one_seed - exact, 0) is above(NONE, 0) is below(NONE, 0) is Verdict.UNDECIDED
    assert above(exact, 7.0) is below(exact, 7.0) is Verdict.REFUTED
    assert above(exact - Number(6.0), 0) is Verdict.HELD


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ("HELD HELD", "HELD"),
        ("HELD UNDECIDED", "UNDECIDED"),
        ("HELD UNDECIDED REFUTED", "REFUTED"),
        ("REFUTED REFUTED", "REFUTED"),
        ("", "UNDECIDED"),
    ],
)
def test_a_prediction_of_several_numbers(verdicts: str, expected: str) -> None:
    assert all_of(Verdict[name] for name in verdicts.split()) is Verdict[expected]


@given(SEEDS, SEEDS, st.floats(-5, 5))
def test_differences_are_paired_by_seed_or_independent(
    first: list[float], second: list[float], factor: float
) -> None:
    paired = over_seeds(first) - factor * over_seeds(first[::-1])
    assert paired.seeds == pytest.approx(
        [a - factor * b for a, b in zip(first, first[::-1], strict=True)]
    )
    exact = Number(factor)
    assert (over_seeds(first) - exact).seeds == pytest.approx([a - factor for a in first])
    assert (exact - over_seeds(first)).seeds == pytest.approx([factor - a for a in first])
    one, other = over_images(first), over_images(second)
    welch = one - other
    if min(one.std_error or 0.0, other.std_error or 0.0) > 1e-3:
        found = stats.ttest_ind(first, second, equal_var=False)
        assert (welch.seeds, welch.freedom) == ((), pytest.approx(found.df))
        ends = found.confidence_interval()
        assert welch.interval == pytest.approx((ends.low, ends.high))


def test_a_difference_for_other_images_and_seeds() -> None:
    generator = torch.Generator().manual_seed(0)
    image, difference = torch.randn(2, 400, generator=generator)
    first, second = image + 0.1 * torch.randn(2, 5, 400, generator=generator)
    second += 0.2 * difference
    assert above(over_both(first + 1, second)) is Verdict.HELD
    assert below(over_both(first + 1, second)) is Verdict.REFUTED
    alike = over_both(first, second)
    assert above(alike) is Verdict.UNDECIDED
    assert alike.std_error == pytest.approx((0.2**2 / 400 + 2 * 0.1**2 / 2000) ** 0.5, rel=0.1)
    assert above(over_both(first[:1] + 1, second[:1])) is Verdict.UNDECIDED


@given(st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=6))
def test_a_number_is_shown_to_its_error(values: list[float]) -> None:
    number = over_seeds(values)
    value, _, error = str(number).replace(",", "").partition(" ± ")
    if error:
        assert float(error) == pytest.approx(number.std_error, rel=0.51)
        assert abs(float(value) - number.value) <= 0.51 * abs(float(error)) + 1e-2 * abs(
            number.value
        ) * (number.std_error > 100 or number.std_error < 1e-5)
    assert float(number.brief.replace(",", "")) == pytest.approx(
        number.value, abs=max(number.std_error or 0, 1e-2 * abs(number.value), 1e-9)
    )


def test_marks() -> None:
    results = {
        "numbers": {"log_px": {"value": -23.4567, "std_error": 0.0213, "freedom": 4}},
        "predictions": {"higher": "did not hold"},
        "answer": "No.",
        "cost": "12 s on 2 cores",
    }
    page = "It is <!--log_px--><!----> (<!--log_px.brief-->old<!---->), <!--higher-->held<!---->."
    filled = fill(page, results)
    assert filled == (
        "It is <!--log_px-->-23.457 ± 0.021<!----> (<!--log_px.brief-->-23.457<!---->), "
        "<!--higher-->**did not hold**<!---->."
    )
    assert fill("<!--log_px.interval--><!---->", results) == (
        "<!--log_px.interval-->[-23.516, -23.398]<!---->"
    )
    assert fill(filled, results) == filled
    tiny = Number(1.33e-12, 9e-14, freedom=4)
    assert tiny.shown_interval == "[1.08e-12, 1.58e-12]"
    assert fill("<!--unknown--><!---->", results) == "<!--unknown-->none<!---->"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("latent_dim=2,3", "one value at a time"),
        ("seed=-1", "whole numbers"),
        ("seed=a", "whole numbers"),
        ("seed=0,0", "each seed once"),
        ("latent_dims=3", "latent_dims: no such key; did you mean latent_dim?"),
        ("training.epoch=3", "did you mean training.epochs?"),
        ("data=unknown", "Could not find 'data/unknown' Available options in 'data': cifar10"),
        ("experiment.imags=3", "did you mean experiment.images"),
        ("experiment.images=many", "experiment.images=many"),
        ("experiment.workers=-1", "at least 0"),
        ("resume=true", "always continues"),
        ("latent_dim", "key=value"),
        ("device=tpu", "device=tpu"),
    ],
)
def test_wrong_overrides(typed: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        Context(load("what_is_p_of_an_image"), [typed], make_console())


def test_what_the_experiment_chooses_is_not_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["what_is_p_of_an_image", *QUICK, "latent_dim=5", "tracking=none"])
    assert end.value.code == 1
    said = capsys.readouterr().err
    assert "latent_dim=5: this experiment chooses latent_dim itself" in said
    assert "Traceback" not in said
    assert list(tmp_path.rglob("results.json")) == []


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["is_two_dimension_enough", "seed=0"],
            "error: no experiment 'is_two_dimension_enough'; did you mean "
            f"is_two_dimensions_enough? There are: {', '.join(NAMES)}\n",
        ),
        (
            ["--hlep"],
            "error: no option '--hlep'; python -m experiments --help shows what there is\n",
        ),
    ],
)
def test_a_wrong_name_ends_at_once(typed: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, *typed], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    assert list(tmp_path.iterdir()) == []


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert capsys.readouterr().out.split()[-len(NAMES) :] == list(NAMES)
    main(["which_likelihood", "-h"])
    said = capsys.readouterr().out
    assert said.startswith("Which likelihood should p(x | z) be?\n")
    assert "python -m experiments which_likelihood [key=value ...]\n  seed=0,1,2,3,4\n" in said
    assert "experiment.latent_dim=10\n" in said


def test_of_several_each_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["what_is_p_of_an_image", "latent_dim=5", "which_likelihood", "tracking=none"])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == ["what_is_p_of_an_image:", "which_likelihood:"]
    assert err.count("this experiment chooses latent_dim itself") == 2
    assert err.endswith(
        "error: 2 of 2 experiments failed: what_is_p_of_an_image, which_likelihood\n"
    )


@pytest.mark.slow
def test_vaes_are_trained_at_once_and_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "is_two_dimensions_enough"
    command = [name, *QUICK[:3], "experiment.workers=2", *BUDGETS[name], "tracking=none"]
    main(command)
    numbers = read_results(tmp_path / OUTPUTS / name)["numbers"]
    vaes = sorted((tmp_path / OUTPUTS / "vaes").iterdir())
    written = [(path / "result.json").stat().st_mtime_ns for path in vaes]
    assert len(vaes) == 2
    main(command)
    assert read_results(tmp_path / OUTPUTS / name)["numbers"] == numbers
    assert sorted((tmp_path / OUTPUTS / "vaes").iterdir()) == vaes
    assert [(path / "result.json").stat().st_mtime_ns for path in vaes] == written


@pytest.mark.slow
def test_interrupted_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches the processes that train; nothing of theirs is trained twice."""
    name = "is_two_dimensions_enough"
    command = (
        name,
        "seed=0",
        "training.epochs=40",
        "training.checkpoint_seconds=0",
        "training.compile=false",
        "evaluation.num_samples=50",
        "experiment.workers=2",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        *BUDGETS[name],
    )
    with subprocess.Popen(
        [*PROGRAM, *command],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        until = time.monotonic() + 200
        while len(list(tmp_path.glob(f"{OUTPUTS}/vaes/*/checkpoint/*"))) < 2:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.1)
        process.terminate()
        said, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "interrupted by SIGTERM; the same command continues" in said
    assert "Traceback" not in said
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (found,) = client.search_experiments(filter_string="name = 'vae-pyro'")

    def statuses() -> list[str]:
        runs = client.search_runs([found.experiment_id], order_by=["start_time ASC"])
        return [run.info.status for run in runs]

    assert set(statuses()) == {"KILLED"}
    monkeypatch.chdir(tmp_path)
    main(list(command))
    assert statuses().count("KILLED") == 1  # the experiment's own; the VAEs' runs went on
    assert statuses().count("FINISHED") == 3


COMMANDS = re.findall(
    r"^python -m experiments (\w+) ?(.*)$", (HERE / "README.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("name", "overrides"), COMMANDS)
def test_commands_of_the_page_of_all_are_understood(name: str, overrides: str) -> None:
    """Quick mode runs them with other budgets; here their overrides are taken at their word."""
    context = Context(load(name), overrides.split(), make_console())
    assert context.command == f"python -m experiments {name} {overrides}".rstrip()
    assert context.is_default == (not overrides)
