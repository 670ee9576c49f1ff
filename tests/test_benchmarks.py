"""The contestants do equal work, and what is written down is what was measured."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import accuracy, digits, importance, training, workload
from benchmarks import contest as contest_module
from benchmarks.contest import Contestant, Times, Unit, contest, ratio, write
from benchmarks.peers import torch_vae
from tests.conftest import ROOT
from vae_pyro.errors import DataError
from vae_pyro.log_marginal import Bound, Estimate, ImportanceSampling

CPU = torch.device("cpu")
PAGES = {"accuracy": "accuracy", "calibration": "comparing_models", "serving": "own_images"}


@pytest.fixture
def images() -> Tensor:
    """Grey blots in place of digits: two batches of them."""
    torch.manual_seed(0)
    blots = torch.randint(0, 256, (2 * workload.BATCH_SIZE, 1, 28, 28), dtype=torch.uint8)
    return blots * (torch.rand(blots.shape) < 0.2)


def peer(name: str, images: Tensor) -> Callable[[], float]:
    if name == "stock Pyro":
        return torch_vae.stock_pyro(images)
    if name == "NumPyro":
        pytest.importorskip("numpyro")
        from benchmarks.peers import jax_vae

        return jax_vae.numpyro_epoch(images)
    return torch_vae.by_hand(images, compiled=False)


@pytest.mark.parametrize("name", ["stock Pyro", "by hand", "NumPyro"])
def test_all_train_the_same(name: str, images: Tensor) -> None:
    """Epoch by epoch; what differs is the noise, whose standard error is a few tenths here."""
    epoch = peer(name, images)
    data = workload.Workload(images, images)
    records = training.records(data, workload.build(CPU), compiled=False)
    for _ in range(3):
        assert epoch() == pytest.approx(next(records).elbo, abs=4)


def test_numpyro_trains_digits_the_same() -> None:
    """Epoch 20 and 40; the ELBO differs by the noise of training."""
    pytest.importorskip("numpyro")
    ours, theirs = digits.ours(num_threads=1), digits.numpyro()
    for _ in range(2):
        assert theirs() == pytest.approx(ours(), abs=1)


@pytest.mark.parametrize("name", ["Pyro's own", "JAX"])
def test_all_estimate_the_same(name: str, monkeypatch: pytest.MonkeyPatch, images: Tensor) -> None:
    vae, x = workload.build(CPU).eval(), (images[:5] > 128).float()
    monkeypatch.setattr(importance, "trained", lambda: (vae, x))
    if name == "JAX":
        pytest.importorskip("jax")
        unit = importance.in_jax(images_at_once=5, samples_at_once=100)
    else:
        unit = importance.pyros_own()
    ours = ImportanceSampling(importance.NUM_SAMPLES)(vae, x)
    assert unit() == pytest.approx(ours.mean(), abs=6 * ours.mean_std_error())


def counter(step: float) -> Unit:
    numbers = iter(range(100))
    return lambda: step * next(numbers)


def absent() -> Unit:
    raise ImportError("No module named 'peerless'")


def dataless() -> Unit:
    raise DataError("MNIST is not in /nowhere")


@pytest.mark.slow
def test_missing_data_end_a_contest_with_their_message() -> None:
    with pytest.raises(DataError, match="MNIST is not in /nowhere"):
        contest({"ones": Contestant(counter, {"step": 1.0}), "none": Contestant(dataless)}, 1)


@pytest.mark.slow
def test_a_contest_takes_turns_and_names_who_is_absent() -> None:
    contestants = {
        "ones": Contestant(counter, {"step": 1.0}),
        "peerless": Contestant(absent),
        "tens": Contestant(counter, {"step": 10.0}),
    }
    times, skipped = contest(contestants, rounds=2)
    assert {name: list(t.values) for name, t in times.items()} == {
        "ones": [0, 1, 2],
        "tens": [0, 10, 20],
    }
    assert all(len(t.seconds) == 2 for t in times.values())
    assert skipped["peerless"].startswith("No module named 'peerless'; pip install")


def test_the_accuracy_of_estimates_with_known_errors_is_found() -> None:
    """30 seeds, 100 images: right error bars; ones that are half as wide; and a bias."""
    truth = Estimate(torch.randn(100).double(), torch.full((100,), 1e-6).double(), Bound.NUMERIC)
    found = {}
    for name, stated, bias in (("right", 0.1, 0.0), ("narrow", 0.05, 0.0), ("biased", 0.1, 0.3)):
        estimates = []
        for _ in range(30):
            value = truth.value + bias + 0.1 * torch.randn(100).double()
            extra = {
                "pareto_k": torch.full((100,), 0.8).index_fill_(0, torch.arange(90), 0.2),
                "effective_sample_size": torch.full((100,), 500.0),
            }
            error = torch.full((100,), stated).double()
            estimates.append(Estimate(value, error, Bound.LOWER, extra, num_weights=1000))
        found[name] = accuracy.summary(estimates, [1.0], truth)
    right, narrow, biased = found.values()
    of_the_mean = 0.1 / math.sqrt(3000)
    assert abs(right.difference) < 4.5 * of_the_mean
    assert right.difference_std_error == pytest.approx(of_the_mean, rel=0.6)
    assert biased.difference == pytest.approx(0.3, abs=4.5 * of_the_mean)
    assert right.pareto_k_high == right.untrusted == pytest.approx(0.1)
    assert right.disagreeing < 1e-3  # 5 standard errors
    assert narrow.disagreeing > 0.005  # 2.5
    assert right.effective == pytest.approx(0.5)
    for measured, expected in ((right, 1.0), (narrow, 2.0)):
        for number in (measured.z, measured.spread, measured.median_spread):
            assert number == pytest.approx(expected, rel=0.08)


def test_the_ratio_is_that_of_the_same_rounds() -> None:
    times = {"slow": Times([2.0, 20.0, 6.0], []), "fast": Times([1.0, 10.0, 2.0], [])}
    assert ratio(times, "slow", "fast") == 2.0


def test_a_table_replaces_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n<!-- speed -->\nold\n<!-- end of speed -->\nafter\n")
    monkeypatch.setattr(contest_module, "PAGE", page)
    monkeypatch.setattr(contest_module, "RESULTS", tmp_path / "results")
    for seconds in ("1.00", "2.00"):
        write("speed", {"seconds": float(seconds)}, [["", "s"], ["ours", seconds]])
    assert page.read_text() == (
        "before\n<!-- speed -->\n|  | s |\n| --- | ---: |\n| ours | 2.00 |\n"
        "<!-- end of speed -->\nafter\n"
    )
    kept = json.loads((tmp_path / "results" / "speed.json").read_text())
    assert kept["seconds"] == 2.0
    assert kept["machine"]["cores"] >= 1


def test_a_page_has_a_place_for_every_benchmark() -> None:
    names = [path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")]
    assert sorted(names) == [
        "accuracy",
        "calibration",
        "digits",
        "importance",
        "scaling",
        "serving",
        "startup",
        "training",
    ]
    for name in names:
        page = (ROOT / "docs" / f"{PAGES.get(name, 'performance')}.md").read_text()
        assert page.count(f"<!-- {name} -->\n| ") == page.count(f"<!-- end of {name} -->") == 1


@pytest.mark.slow
def test_an_unknown_benchmark_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "trainign"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == (
        "error: no benchmark 'trainign'; there are training, digits, importance, scaling, startup, "
        "serving, accuracy, calibration\n"
    )
