"""Compiled graphs against the programs that they stand in for, on equal noise."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.conftest import ROOT
from vae_pyro.compilation import (
    CompilationError,
    accelerated,
    compile_program,
    compiled,
    functions,
    scope,
    store,
)
from vae_pyro.compilation.graph import _require_equal
from vae_pyro.compilation.precision import Precision, threads
from vae_pyro.errors import DataError
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal, Guide
from vae_pyro.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogisticMixture,
    Likelihood,
    Normal,
    NormalHeteroscedastic,
    NormalLearnedScale,
)
from vae_pyro.log_marginal import AIS, ImportanceSampling, Quadrature
from vae_pyro.log_marginal.drawing import drawing_log_weights, log_weights
from vae_pyro.log_marginal.proposals import Proposal
from vae_pyro.networks import MLP, Conv, Linear, Network
from vae_pyro.objectives import ELBO, IWAE, BetaELBO, DReG, ELBOAnalyticKL, Objective
from vae_pyro.randomness import RandomStream
from vae_pyro.training import svi
from vae_pyro.training.svi import EpochRecord, graph_of, train
from vae_pyro.vae import VAE, build_vae

SHAPE = (1, 4, 4)
LEVELS = 17


def small(
    likelihood: type[Likelihood] = Bernoulli,
    guide: type[Guide] = DiagNormal,
    network: Network = MLP((20,)),  # noqa: B008
) -> tuple[VAE, Tensor]:
    torch.manual_seed(0)
    vae = build_vae(3, SHAPE, network, likelihood(LEVELS), guide, seed=None)
    images = torch.randint(0, LEVELS, (12, *SHAPE), dtype=torch.uint8)
    return vae, vae.model.likelihood.prepare(images, torch.Generator().manual_seed(1))


# Every likelihood, guide, network and objective at least once.
EVERYTHING: list[tuple[type[Likelihood], type[Guide], Network, Objective]] = [
    (Bernoulli, DiagNormal, MLP((20,), "softplus"), ELBO()),
    (Categorical, FullRankNormal, Conv((3, 4)), IWAE(3)),
    (Beta, Flow, Linear(), DReG(3)),
    (ContinuousBernoulli, DiagNormal, MLP((20,), "tanh"), ELBOAnalyticKL()),
    (Normal, DiagNormal, MLP((20,)), BetaELBO(beta=3.0, free_bits=0.1)),
    (NormalLearnedScale, FullRankNormal, Linear(), ELBOAnalyticKL(2)),
    (Bernoulli, FullRankNormal, Linear(), BetaELBO(2, beta=3.0, analytic_kl=True)),
    (NormalHeteroscedastic, Flow, MLP((20,), "elu"), ELBO(3)),
    (DiscretizedLogisticMixture, DiagNormal, MLP((20,), "silu"), IWAE(2)),
]


@pytest.mark.slow
@pytest.mark.parametrize(("likelihood", "guide", "network", "objective"), EVERYTHING)
def test_losses_and_gradients_are_pyros(
    likelihood: type[Likelihood], guide: type[Guide], network: Network, objective: Objective
) -> None:
    """``loss_and_grads`` of Pyro's own estimator, and the graph, which never calls it.

    Pyro's gradients are sums over images, the graph's are means.
    """
    vae, x = small(likelihood, guide, network)
    graph = graph_of(vae, objective.estimator(), x)
    torch.manual_seed(5)
    with pyro.get_param_store().scope():
        losses = objective.estimator().loss_and_grads(vae.model, vae.guide, x)
    torch.manual_seed(5)
    found, *gradients = graph(x)
    expected = torch.tensor(losses).reshape(-1)
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-5, atol=1e-4)
    for weight, gradient in zip(vae.parameters(), gradients, strict=True):
        theirs = torch.zeros_like(weight) if weight.grad is None else weight.grad / len(x)
        scale = theirs.abs().max().item()
        torch.testing.assert_close(gradient, theirs, rtol=1e-4, atol=1e-5 * scale + 1e-7)


@pytest.fixture
def notes(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The package's notes so far, where a test expects some."""
    # Read at each call: pytest starts a new list of records after the fixtures are set up.
    return lambda: [
        record.getMessage()
        for record in caplog.get_records("call")
        if record.name.startswith("vae_pyro")
    ]


@pytest.fixture(autouse=True)
def _all_is_compiled(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Where a test expects no note, there is none."""
    yield
    if "notes" not in request.fixturenames:
        assert [r.getMessage() for r in caplog.get_records("call") if "without" in r.msg] == []


def epochs(
    vae: VAE,
    x: Tensor,
    *,
    compiled: bool,
    batch_size: int = 12,
    objective: Objective | None = None,
    precision: Precision = "float32",
    last_batch: int = 0,
) -> Iterator[EpochRecord]:
    return train(
        vae,
        objective or ELBO(),
        lambda: x.split(batch_size),
        epochs=4,
        learning_rate=1e-2,
        noise=RandomStream("training", 0),
        compiled=compiled,
        precision=precision,
        last_batch=last_batch,
    )


def weights(vae: VAE) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in vae.parameters()])


@dataclass(frozen=True)
class Cyclical(BetaELBO):
    """beta falls and rises: one graph is called with either."""

    def at_epoch(self, epoch: int) -> "Cyclical":
        return replace(self, beta=self.beta / 2) if epoch % 2 else self


@dataclass(frozen=True)
class Thawing(BetaELBO):
    """Free bits in every other epoch: a graph that is made without them does not fit these."""

    def at_epoch(self, epoch: int) -> "Thawing":
        return self if epoch % 2 else replace(self, free_bits=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "batch_size", "network", "short_too", "graphs", "uncompiled"),
    [
        (Cyclical(beta=2.0), 12, MLP((20,)), False, 1, 0),
        (Cyclical(beta=2.0), 5, Conv((3, 4)), False, 1, 4),
        (Cyclical(beta=2.0), 5, MLP((20,)), True, 2, 0),
        (Thawing(beta=2.0), 12, MLP((20,)), False, 1, 2),
    ],
)
def test_training_gives_the_same_numbers_compiled(
    objective: Objective,
    batch_size: int,
    network: Network,
    short_too: bool,
    graphs: int,
    uncompiled: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Also where the last batch is a shorter one, and the objective changes between epochs."""
    monkeypatch.setenv("VAE_PYRO_GRAPHS", str(tmp_path / "graphs"))
    (eager, x), (graph, _) = small(network=network), small(network=network)
    how: dict[str, Any] = {"batch_size": batch_size, "objective": objective}
    how["last_batch"] = len(x) % batch_size if short_too else 0
    slow = list(epochs(eager, x, compiled=False, **how))
    eager_steps: list[Tensor] = []
    step = pyro.infer.SVI.step

    def noted(svi: Any, batch: Tensor) -> Any:
        eager_steps.append(batch)
        return step(svi, batch)

    monkeypatch.setattr(pyro.infer.SVI, "step", noted)
    fast = list(epochs(graph, x, compiled=True, **how))
    assert len(eager_steps) == uncompiled
    assert [r.elbo for r in fast] == pytest.approx([r.elbo for r in slow], rel=1e-5)
    assert [r.objective for r in fast] == pytest.approx([r.objective for r in slow], rel=1e-5)
    torch.testing.assert_close(weights(graph), weights(eager), rtol=1e-4, atol=1e-5)
    assert len(list((tmp_path / "graphs").glob("*.safetensors"))) == graphs


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_the_graph_of_a_last_batch_is_made_by_another_process(
    is_killed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The numbers are the same bits as with one process, also where that one is killed."""
    records: list[list[EpochRecord]] = []
    kept_here: list[str] = []
    write, here = store.write, os.getpid()

    def noted(digest: str, graph: store.StoredGraph) -> None:
        if os.getpid() != here and is_killed:
            os.kill(os.getpid(), signal.SIGKILL)
        kept_here.append(digest)
        write(digest, graph)

    monkeypatch.setattr(store, "write", noted)
    # A step runs on one thread, and a process could have the other core.
    monkeypatch.setattr(svi, "num_processes", lambda _device: len(records) + 1)
    for folder in ("alone", "shared"):
        monkeypatch.setenv("VAE_PYRO_GRAPHS", str(tmp_path / folder))
        vae, x = small(network=MLP((20,)))
        with threads(1):
            last = len(x) % 5
            records.append(list(epochs(vae, x, compiled=True, batch_size=5, last_batch=last)))
        assert len(list((tmp_path / folder).glob("*.safetensors"))) == 2
    alone, shared = ([record.elbo for record in each] for each in records)
    assert shared == alone
    assert len(kept_here) == 2 + (2 if is_killed else 1)


@pytest.mark.slow
def test_compiled_training_repeats_to_the_bit_and_leaves_nothing_behind() -> None:
    """Three jobs in one process; the one in between is of another likelihood."""
    pyro.clear_param_store()  # of what other tests left
    precision = torch.get_float32_matmul_precision()
    (first, x), (other, levels), (second, _) = small(), small(Categorical), small()
    a = list(epochs(first, x, compiled=True))
    list(epochs(other, levels, compiled=True))
    b = list(epochs(second, x, compiled=True))
    assert [r.elbo for r in a] == [r.elbo for r in b]
    assert torch.equal(weights(first), weights(second))
    assert torch.get_float32_matmul_precision() == precision
    assert not list(pyro.get_param_store())
    assert scope._scope.get() is None


def test_a_graph_reads_the_weights_as_they_are() -> None:
    vae, x = small()
    graph = compile_program(lambda vae, x: (vae.guide.posterior_mean(x),), vae, [x])
    before = graph(x)[0].clone()
    with torch.no_grad():
        vae.guide.encoder[-1].bias[0] += 1
    torch.testing.assert_close(graph(x)[0][:, 0], before[:, 0] + 1)


def drawn_in_place(module: nn.Module, x: Tensor) -> tuple[Tensor]:
    """The graph has the std in the memory of a matrix product, whose numbers may be negative."""
    product = module(x)
    return (torch.normal(torch.zeros_like(product), product.exp()),)


def test_numbers_left_in_memory_do_not_stop_a_recording() -> None:
    module, x = nn.Linear(4, 3), torch.randn(16, 4)
    assert (module(x) < 0).any()
    run = compile_program(drawn_in_place, module, (x,))
    torch.manual_seed(0)
    (found,) = run(x)
    torch.manual_seed(0)
    torch.testing.assert_close(found, drawn_in_place(module, x)[0].detach())


class LooksAtNumbers(Bernoulli):
    """Cannot be traced: which way it goes depends on what the decoder says."""

    def forward(self, parameters: Tensor) -> pyro.distributions.TorchDistribution:
        if parameters.max() > 1e6:
            parameters = parameters / 2
        return super().forward(parameters)


def test_what_cannot_be_traced_is_run_and_said_once(
    notes: Callable[[], list[str]],
) -> None:
    vae, x = small(LooksAtNumbers)
    eager, _ = small(LooksAtNumbers)
    records = train(
        vae,
        ELBO(),
        lambda: [x],
        epochs=3,
        learning_rate=1e-2,
        noise=RandomStream("training", 0),
        compiled=True,
    )
    elbos = [record.elbo for record in records]
    assert elbos == [record.elbo for record in epochs(eager, x, compiled=False)][:3]
    (told,) = notes()
    assert told.startswith("trained without compiling: ")
    assert "\n" not in told
    with accelerated(x.device, mode=True):
        for num_samples in (30, 40):
            ImportanceSampling(num_samples)(vae, x)
    assert len(notes()) == 2
    assert notes()[1].startswith("evaluated without compiling: ")


def test_a_difference_at_one_place_is_a_kink_and_at_two_an_error() -> None:
    def numbers(*wrong: int) -> Callable[[int], tuple[Tensor]]:
        return lambda attempt: (torch.tensor([1.0 + (attempt in wrong), float(attempt)]),)

    cpu = torch.device("cpu")
    _require_equal(numbers(), numbers(), cpu)
    _require_equal(numbers(0), numbers(), cpu)
    for wrong in ((0, 1), (0, 2), (0, 1, 2)):
        with pytest.raises(CompilationError, match="differs by 1 in numbers of up to"):
            _require_equal(numbers(*wrong), numbers(), cpu)


@pytest.mark.slow
def test_bfloat16_trains_to_nearly_the_same_elbo() -> None:
    """Compiled and not; where the processor has no units for it, float32 takes its place."""
    (eager, x), (graph, _), (exact, _) = small(), small(), small()
    slow, fast, float32 = (
        [record.elbo for record in epochs(vae, x, compiled=compiled, precision=precision)]
        for vae, compiled, precision in (
            (eager, False, "bfloat16"),
            (graph, True, "bfloat16"),
            (exact, True, "float32"),
        )
    )
    assert fast == pytest.approx(slow, rel=1e-2)
    assert fast == pytest.approx(float32, rel=1e-2)


@pytest.mark.slow
def test_a_graph_that_gives_other_numbers_is_refused() -> None:
    """A program that counts its calls: the tracer sees one of them, for ever."""
    calls = []

    def program(module: nn.Module, x: Tensor) -> tuple[Tensor]:
        calls.append(1)
        return (x * len(calls),)

    with pytest.raises(CompilationError, match="differs by"):
        compile_program(program, nn.Linear(1, 1), [torch.ones(3)])


@pytest.mark.slow
def test_without_a_compiler_training_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "run.py"),
            "training.epochs=2",
            "training.compile=true",
            "evaluation.compile=true",
            "evaluation.num_samples=25",
            "evaluation.iwae_samples=[5]",
            "tracking=none",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "CXX": "/nowhere/c++",
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        },
    )
    assert done.returncode == 0, done.stderr
    notes = [line for line in done.stdout.splitlines() if "without compiling" in line]
    why = "without compiling: no C++ compiler was found (CXX names one)"
    # Training, validating on the way, and testing.
    assert notes == [f"note: trained {why}", *[f"note: evaluated {why}"] * 2]


@pytest.mark.slow
def test_grey_pixels_are_refused_by_compiled_programs_too() -> None:
    vae, x = small()
    grey = x.clone()
    grey[0, 0, 0, 0] = 0.5
    with accelerated(x.device, mode=True), pytest.raises(DataError, match="Bernoulli"):
        ImportanceSampling(30)(vae.eval(), grey)
    batches = iter([[x], [grey]])
    records = train(
        vae,
        ELBO(),
        lambda: next(batches),
        epochs=2,
        learning_rate=1e-2,
        noise=RandomStream("training", 0),
        compiled=True,
    )
    next(records)
    with pytest.raises(DataError, match="Bernoulli"):
        next(records)


@pytest.mark.slow
def test_a_graph_is_of_one_module_for_as_long_as_it_is_kept() -> None:
    """Modules come and go within a scope, and one may be made where another one was."""
    x = torch.ones(2, 3)
    with accelerated(x.device, mode=True):
        for number in range(8):
            module = nn.Linear(3, 1)
            with torch.no_grad():
                module.weight.fill_(number)
                module.bias.zero_()
            run = compiled(lambda m, x: (m(x),), module, [x], key="affine", calls=1)
            assert run(x)[0].flatten().tolist() == [3.0 * number] * 2
            del module, run


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [Proposal(), Proposal(1.5, 0.2), Proposal(prior_share=1.0)])
def test_weights_are_the_same_compiled(proposal: Proposal) -> None:
    vae, x = small(guide=FullRankNormal)
    vae.eval()
    torch.manual_seed(3)
    with torch.no_grad():
        expected = log_weights(vae, x, 7, proposal).total
    with accelerated(x.device, mode=True), torch.no_grad():
        draw = drawing_log_weights(vae, x, 7, 1, proposal)
        torch.manual_seed(3)
        torch.testing.assert_close(draw(x).total, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator",
    [ImportanceSampling(40), AIS(3, 4, 2), AIS(3, 4, 2, start="guide"), Quadrature(1e-2)],
)
def test_estimates_are_the_same_compiled(
    estimator: ImportanceSampling | AIS | Quadrature,
) -> None:
    torch.manual_seed(0)
    vae = build_vae(2, SHAPE, MLP((20,), "tanh"), Bernoulli(LEVELS), DiagNormal, seed=None).eval()
    _, x = small()
    answers = []
    for mode in (False, True):
        torch.manual_seed(7)
        with accelerated(x.device, mode=mode):
            answers.append(estimator(vae, x))
    slow, fast = answers
    torch.testing.assert_close(fast.value, slow.value, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(fast.std_error, slow.std_error, rtol=1e-2, atol=1e-4)


def test_only_what_is_repeated_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def noted(
        program: Callable[..., tuple[Tensor, ...]],
        module: nn.Module,
        inputs: list[Tensor],
        key: object,
    ) -> object:
        made.append(tuple(inputs[0].shape))
        return lambda *inputs: program(module, *inputs)

    monkeypatch.setattr(scope, "compile_program", noted)
    module, x = nn.Linear(2, 2), torch.ones(3, 2)

    def call(x: Tensor, calls: int) -> None:
        compiled(lambda m, x: (m(x),), module, [x], key="affine", calls=calls)(x)

    least = scope.MIN_CALLS
    call(x, 10 * least)
    assert not made, "outside of any scope nothing is kept, so nothing is compiled"
    with accelerated(x.device):
        call(x, least - 1)
        assert not made
        call(x, least)
        call(x, least)
        call(x[:2], least)
        assert made == [(3, 2), (2, 2)]
        with accelerated(x.device, repeats=2):
            call(x[:1], least // 2)
        assert made[2:] == [(1, 2)]
    with accelerated(x.device, mode=False):
        call(x, 10 * least)
    assert len(made) == 3


finite = st.floats(-80, 80, width=32)


@given(st.lists(finite, min_size=1, max_size=30))
def test_functions_are_exact_to_float32(numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    exact = [math.log1p(math.exp(-abs(v))) + max(v, 0) for v in x.tolist()]
    torch.testing.assert_close(
        functions.softplus(x),
        torch.tensor(exact, dtype=torch.float64).float(),
        rtol=5e-7,
        atol=1e-37,
    )
    doubled = [math.log1p(math.exp(-abs(2 * v))) / 2 + max(v, 0) for v in x.tolist()]
    torch.testing.assert_close(
        functions.softplus(x, beta=2.0),
        torch.tensor(doubled, dtype=torch.float64).float(),
        rtol=5e-7,
        atol=1e-37,
    )
    torch.testing.assert_close(
        functions.expm1(x), torch.expm1(x.double()).float(), rtol=5e-7, atol=1e-37
    )
    above = x[x > -1]
    torch.testing.assert_close(
        functions.log1p(above), torch.log1p(above.double()).float(), rtol=5e-7, atol=1e-37
    )


def test_functions_are_exact_where_they_change_their_ways() -> None:
    tiny = torch.tensor([0.0, 1e-30, -1e-30, 1e-8, -1e-8, 6e-8, 1e-4, -1e-4, 0.5, -0.5])
    torch.testing.assert_close(
        functions.log1p(tiny), torch.log1p(tiny.double()).float(), rtol=5e-7, atol=0
    )
    torch.testing.assert_close(
        functions.expm1(tiny), torch.expm1(tiny.double()).float(), rtol=5e-7, atol=0
    )
    ends = torch.tensor([-200.0, 200.0, -math.inf, math.inf])
    torch.testing.assert_close(functions.expm1(ends), torch.expm1(ends))
    wide = torch.linspace(-30, 30, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        functions.softplus(wide), torch.logaddexp(wide, torch.zeros(())), rtol=1e-14, atol=0
    )
