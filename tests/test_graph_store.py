"""Compiled graphs on disk: read by later processes, checked, limited in size, and private."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vae_pyro.compilation import compile_program, store
from vae_pyro.compilation.identity import UnknownPartError, graph_digest
from vae_pyro.compilation.tape import Step, Tape, View
from vae_pyro.files import private_folder
from vae_pyro.guide import DiagNormal, Flow, FullRankNormal
from vae_pyro.likelihoods import Bernoulli, Categorical, Normal
from vae_pyro.networks import MLP, Conv
from vae_pyro.objectives import ELBO, IWAE, BetaELBO
from vae_pyro.training.svi import graph_of
from vae_pyro.vae import VAE, build_vae

SHAPE = (1, 4, 4)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of graphs."""
    monkeypatch.setenv("VAE_PYRO_GRAPHS", str(tmp_path / "graphs"))
    return tmp_path / "graphs"


def affine(module: nn.Module, x: Tensor) -> tuple[Tensor]:
    return (torch.tanh(module(x)) + torch.randn(len(x), 1),)


def quadratic(module: nn.Module, x: Tensor) -> tuple[Tensor]:
    return (module(x).square(),)


def run(program: Callable[..., tuple[Tensor]], seed: int = 0) -> Tensor:
    """The program's output by its graph, on fixed weights and noise."""
    torch.manual_seed(seed)
    module, x = nn.Linear(3, 2), torch.randn(5, 3)
    graph = compile_program(program, module, [x], key="this test")
    torch.manual_seed(seed + 1)
    found = graph(x)[0].clone()
    torch.manual_seed(seed + 1)
    torch.testing.assert_close(found, program(module, x)[0])
    return found


def files(home: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.glob("*.safetensors")}


PROGRAM = """
import sys, torch, vae_pyro as vp
from vae_pyro.training.svi import graph_of
vae = vp.build_vae(3, (1, 4, 4), vp.networks.MLP((20,)), vp.likelihoods.Bernoulli(17), seed=4)
x = vae.sample(12, seed=0)
graph = graph_of(vae, vp.objectives.ELBO().estimator(), x)
torch.manual_seed(1)
losses, *gradients = graph(x)
made = "torch._inductor.compile_fx" in sys.modules, "torch._dynamo.eval_frame" in sys.modules
print(*made, losses.item().hex(), sum(g.double().sum() for g in gradients).item().hex())
"""


@pytest.mark.slow
def test_the_next_process_needs_no_compiler_and_gets_the_same_bits(home: Path) -> None:
    """It finds no compiler either: what is on disk is enough."""
    told = []
    for environment in ({}, {"CXX": os.environ.get("CXX", ""), "PATH": ""}):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | {"VAE_PYRO_GRAPHS": str(home)} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        told.append(done.stdout.split())
    assert told[0][0] == "True"
    assert told[1][:2] == ["False", "False"]
    assert told[0][2:] == told[1][2:]
    assert len(files(home)) == 1


@pytest.mark.slow
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the processor has no AVX-512"
)
@pytest.mark.parametrize("unknown", ["*-mavx512*|*-mamx*", "*-mavx512bf16*|*-mamx-fp16*"])
def test_a_compiler_may_be_older_than_the_processor(
    home: Path, tmp_path: Path, unknown: str
) -> None:
    """It compiles for what it knows, and the numbers agree: graphs are compared."""
    compiler = tmp_path / "old"
    compiler.write_text(
        "#!/bin/sh\n"
        f'case "$*" in {unknown}) echo "error: unrecognized option" >&2; exit 1;; esac\n'
        'exec g++ "$@"\n'
    )
    compiler.chmod(0o700)
    environment = {"VAE_PYRO_GRAPHS": str(home), "CXX": str(compiler)}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "code")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("True")
    assert len(files(home)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "one byte", "another program's", "nonsense"])
def test_what_is_damaged_or_foreign_is_made_anew(home: Path, damage: str) -> None:
    expected = run(affine)
    ((name, content),) = files(home).items()
    path = home / name
    whole = store.read(path.stem)
    assert whole is not None
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one byte":
        path.write_bytes(content[:-99] + bytes([content[-99] ^ 1]) + content[-98:])
    elif damage == "another program's":
        run(quadratic)
        (other,) = files(home).keys() - {name}
        path.write_bytes((home / other).read_bytes())
    else:
        steps = (Step("no_such_operation.out", (), {}), *whole.tape.steps)
        store.write(path.stem, replace(whole, tape=replace(whole.tape, steps=steps)))
    assert torch.equal(run(affine), expected)
    again = store.read(path.stem)
    assert again is not None
    assert (again.tape, again.library) == (whole.tape, whole.library)
    assert torch.equal(run(affine), expected)


def test_a_folder_that_others_can_write_is_not_used(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert private_folder() == home
    assert home.stat().st_mode & 0o777 == 0o700
    home.chmod(0o720)
    with caplog.at_level(logging.WARNING):
        assert private_folder() is None
        assert private_folder() is None
    assert caplog.text.count("chmod 700") == 1, "told once"
    home.chmod(0o700)
    (tmp_path / "link").symlink_to(home)
    for place in (tmp_path / "link", "", "/proc/no/such/folder"):
        monkeypatch.setenv("VAE_PYRO_GRAPHS", str(place))
        assert private_folder() is None
    assert "/proc/no/such/folder is not a folder that can be made" in caplog.text
    monkeypatch.delenv("VAE_PYRO_GRAPHS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert private_folder() == tmp_path / "cache/vae-pyro/graphs"


def graph(size: int) -> store.StoredGraph:
    view = View(1, (2,), (1,), 0, "float32")
    step = Step("fill_.Scalar", (view, 1.5), {"dtype": torch.float32}, (None, view))
    return store.StoredGraph(Tape(1, (8,), (step,), (view,)), bytes(size), [torch.ones(2)])


def test_what_is_written_is_read(home: Path) -> None:
    written = graph(10)
    store.write("some", written)
    read = store.read("some")
    assert read is not None
    assert (read.tape, read.library) == (written.tape, written.library)
    assert torch.equal(read.constants[0], written.constants[0])
    assert Tape.from_json(json.loads(json.dumps(written.tape.as_json()))) == written.tape
    assert store.read("other") is None
    store.forget("some")
    assert store.read("some") is None
    assert list(home.iterdir()) == []


def test_the_least_recently_used_graphs_go(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write("a", graph(400))
    monkeypatch.setattr(store, "_MOST_BYTES", int(3.5 * (home / "a.safetensors").stat().st_size))
    for number, name in enumerate("abc"):
        store.write(name, graph(400))
        os.utime(home / f"{name}.safetensors", (number, number))
    assert store.read("a") is not None  # used again
    store.write("d", graph(400))
    assert {path.stem for path in home.iterdir()} == {"a", "c", "d"}


def vae(latent_dim: int = 3, **parts: object) -> VAE:
    settings = {"network": MLP((20,)), "likelihood": Bernoulli(17), "guide": DiagNormal} | parts
    return build_vae(latent_dim, SHAPE, **settings, seed=None)  # type: ignore[arg-type]


def digest(
    module: nn.Module, key: object = None, x: tuple[int, ...] = (12, *SHAPE), name: str = "elbo"
) -> str:
    return graph_digest(name, module, [torch.zeros(x)], key, gradients=True)


@pytest.mark.parametrize(
    "parts", [{}, {"guide": Flow}, {"network": Conv((3, 4))}, {"likelihood": Normal(17)}]
)
def test_equal_parts_have_one_digest_whatever_their_weights(parts: dict[str, object]) -> None:
    found = {digest(vae(**parts), ELBO().estimator()) for _ in range(3)}
    assert len(found) == 1


class Tilted(Bernoulli):
    """A user's likelihood with a setting of its own."""

    def __init__(self, num_levels: int, tilt: float = 0.5) -> None:
        super().__init__(num_levels)
        self.tilt = tilt


def test_whatever_the_graph_depends_on_changes_the_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = vae()
    digests = [
        digest(base),
        digest(base, ELBO().estimator()),
        digest(base, IWAE(3).estimator()),
        digest(base, IWAE(4).estimator()),
        digest(base, BetaELBO(beta=2.0).estimator()),
        digest(base, BetaELBO(beta=3.0).estimator()),
        digest(base, name="other"),
        digest(base, x=(11, *SHAPE)),
        digest(vae(4)),
        digest(vae(guide=FullRankNormal)),
        digest(vae(likelihood=Categorical(17))),
        digest(vae(likelihood=Categorical(16))),
        digest(vae(network=MLP((20,), "tanh"))),
        digest(vae(network=MLP((21,)))),
        digest(vae(likelihood=Tilted(17))),
        digest(vae(likelihood=Tilted(17, 0.6))),
        digest(vae().eval()),
        digest(vae().requires_grad_(requires_grad=False)),
        digest(vae().double()),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    digests.append(digest(base))
    torch.set_num_threads(threads)
    monkeypatch.setattr(torch, "__version__", "0.0")
    from vae_pyro.compilation import identity

    identity._machine.cache_clear()
    digests.append(digest(base))
    identity._machine.cache_clear()
    assert len(set(digests)) == len(digests)


def test_integers_of_a_module_are_constants_of_its_graph() -> None:
    """Real numbers are read as they are."""
    module = nn.Linear(3, 2)
    module.register_buffer("order", torch.tensor([0, 1, 2]))
    module.register_buffer("scale", torch.ones(2))
    first = digest(module)
    module.scale = torch.tensor([2.0, 3.0])  # type: ignore[assignment]
    assert digest(module) == first
    module.order = torch.tensor([2, 1, 0])  # type: ignore[assignment]
    assert digest(module) != first


def test_what_cannot_be_described_is_not_kept(home: Path) -> None:
    """Its graph is made anew in every process."""
    module = nn.Linear(3, 2)
    module.generator = torch.Generator()  # type: ignore[assignment]
    with pytest.raises(UnknownPartError, match="Generator"):
        digest(module)
    here: dict[str, type] = {"__name__": "a_notebook"}  # type: ignore[dict-item]
    sys.modules["a_notebook"] = type(sys)("a_notebook")
    try:
        exec("import torch\nclass Own(torch.nn.Linear):\n    pass", here)
        with pytest.raises(UnknownPartError, match="a_notebook has no file"):
            digest(here["Own"](3, 2))
    finally:
        del sys.modules["a_notebook"]
    assert not home.exists()


def test_the_code_of_a_users_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of one that it imports."""
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number in (1, 2):
        (tmp_path / "inner_code.py").write_text(f"def scale(x):\n    return {number} * x\n")
        (tmp_path / "outer_code.py").write_text(
            "import torch\nfrom inner_code import scale\n"
            "class Scaled(torch.nn.Linear):\n    def forward(self, x):\n"
            "        return scale(super().forward(x))\n"
        )
        for name in ("inner_code", "outer_code"):
            sys.modules.pop(name, None)
        import outer_code  # type: ignore[import-not-found]

        found.append(digest(outer_code.Scaled(3, 2)))
    assert len(set(found)) == 2


@pytest.mark.slow
def test_a_stored_training_step_is_the_same_graph(home: Path) -> None:
    """Read back in the same process, for other weights of the same shapes."""
    x = vae().sample(12, seed=0)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        graph = graph_of(vae(), ELBO().estimator(), x)
        torch.manual_seed(5)
        results.append([output.clone() for output in graph(x)])
    assert len(files(home)) == 1
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
