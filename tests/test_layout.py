"""The shape of the tree: imports go downward only, and heavy packages stay in their places."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_pyro.files import COMPUTING

PACKAGE = ROOT / "vae_pyro"

# From the bottom up: a module imports only what stands before it.
LAYERS = [
    "errors",
    "interruption",
    "credentials",
    "files",
    "config",
    "randomness",
    "progress",
    "compilation",
    "likelihoods",
    "data",
    "networks",
    "model",
    "guide",
    "vae",
    "saving",
    "log_marginal",
    "objectives",
    "evaluation",
    "training",
    "reporting",
    "tracking",
    "runs",
    "cli",
]
INNER_LAYERS = {
    "compilation": [
        "functions",
        "operations",
        "precision",
        "processes",
        "tape",
        "recorder",
        "inductor",
        "store",
        "identity",
        "graph",
        "scope",
    ],
    "files": ["disk", "tensors", "private", "code"],
    "data": [
        "dataset",
        "source",
        "folders",
        "pixels",
        "splits",
        "larochelle",
        "encoded",
        "images",
        "arrays",
        "hugging_face",
        "digits",
        "linear_gaussian",
        "files",
        "mnist",
        "omniglot",
        "omniglot_burda",
        "cifar10",
    ],
    "likelihoods": [
        "preparation",
        "checks",
        "base",
        "binary",
        "distributions",
        "unit_interval",
        "normal",
        "levels",
    ],
    "log_marginal": [
        "diagnostics",
        "program",
        "estimate",
        "estimator",
        "proposals",
        "running",
        "weights",
        "pair",
        "sites",
        "program_pair",
        "drawing",
        "chunking",
        "summary",
        "importance",
        "elbo",
        "exact",
        "quadrature",
        "hamiltonian",
        "annealed",
        "match",
        "climb",
        "mixture",
        "target",
        "adaptive",
        "local",
        "cache",
        "together",
    ],
    "objectives": ["base", "elbo", "importance_weighted", "beta_elbo"],
    "evaluation": [
        "latent",
        "names",
        "plan",
        "validation",
        "agreement",
        "scores",
        "difference",
        "comparison",
        "metrics",
    ],
    "training": [
        "checkpoints",
        "divergence",
        "optimizers",
        "schedules",
        "updates",
        "trial",
        "svi",
        "state",
        "early_stopping",
        "history",
        "fit",
    ],
    "reporting": [
        "figures",
        "chart",
        "results",
        "configurations",
        "tables",
        "naming",
        "sweep_data",
        "sweeps",
        "estimators",
        "own_images",
        "plots",
        "html_report",
    ],
    "tracking": [
        "base",
        "reasons",
        "reach",
        "apart",
        "outbox",
        "embedded",
        "view",
        "mlflow_run",
        "mlflow_store",
        "reading",
        "serving",
    ],
    "tracking.outbox": ["journal", "entries", "delivery", "run"],
    "runs": [
        "cores",
        "manifest",
        "fingerprint",
        "preparation",
        "recording",
        "pictures",
        "trainer",
        "evaluator",
        "report",
        "folder",
        "weights",
        "job",
        "finding",
        "trained",
        "service",
        "forecast",
    ],
    "cli": [
        "search",
        "slurm",
        "startup",
        "console",
        "presets",
        "command_line",
        "app",
        "compare",
        "deliver",
        "evaluate",
        "plan",
        "register",
        "report",
        "served_model",
        "trained",
        "ui",
        "sweep",
        "main",
    ],
}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts
    assert own[0] in LAYERS, f"{path} has no layer yet: put it into this test's list"
    for name in imports(path):
        if not name.startswith("vae_pyro."):
            continue
        other = tuple(name.split(".")[1:])
        shared = 0  # folders that both lie in
        while shared < len(own) - 1 and other[shared] == own[shared]:
            shared += 1
        order = INNER_LAYERS[".".join(own[:shared])] if shared else LAYERS
        assert order.index(other[shared]) < order.index(own[shared]), f"{path} imports {name}"


def room_of(dotted: str) -> str:
    return dotted.split(".")[1]


def rooms() -> dict[str, set[str]]:
    """The top-level modules and folders, and which others each of them imports."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        others = {room_of(name) for name in imports(path) if name.startswith("vae_pyro.")}
        found.setdefault(own, set()).update(others - {own})
    return found


def test_the_house_is_small_and_its_arrows_few() -> None:
    arrows = rooms()
    assert arrows.keys() == set(LAYERS)
    floors: dict[str, int] = {}
    for room in LAYERS:  # from the bottom up
        floors[room] = 1 + max((floors[other] for other in arrows[room]), default=0)
    assert len(arrows) <= 23
    assert max(floors.values()) <= 10
    assert sum(map(len, arrows.values())) <= 90


def test_what_computes_is_known() -> None:
    """The fingerprint covers what computes, and that imports nothing else but plain tools."""
    tools = {"errors", "files", "progress", "interruption", "config"}
    writers = {"reporting", "tracking", "runs"}  # of the parts of a run that only record
    computing = {name.partition("/")[0].removesuffix(".py") for name in COMPUTING}
    assert computing | tools | writers | {"cli", "credentials"} == set(LAYERS)
    for path in MODULES:
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(COMPUTING):
            allowed = computing | tools | (writers if name.startswith("runs/") else set())
            used = {room_of(n) for n in imports(path) if n.startswith("vae_pyro.")}
            assert used <= allowed, name


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("mlflow", {"tracking/mlflow_store.py", "tracking/mlflow_run.py", "tracking/serving.py"}),
        (
            "hydra",
            {
                "cli/app.py",
                "cli/command_line.py",
                "cli/main.py",
                "cli/plan.py",
                "cli/presets.py",
                "cli/sweep.py",
            },
        ),
        (
            "omegaconf",
            {
                "cli/app.py",
                "cli/command_line.py",
                "cli/main.py",
                "cli/plan.py",
                "cli/sweep.py",
                "runs/recording.py",
            },
        ),
        ("matplotlib", {"reporting/chart.py", "reporting/figures.py"}),
        (
            "pandas",
            {
                "evaluation/comparison.py",
                "log_marginal/estimate.py",
                "reporting/configurations.py",
                "reporting/tables.py",
                "tracking/serving.py",
                "training/history.py",
            },
        ),
        ("datasets", {"data/hugging_face.py"}),
        ("jinja2", {"reporting/html_report.py"}),
        ("plotly", set()),  # only its script is read
        ("scipy", {"data/omniglot_burda.py", "evaluation/difference.py"}),
        ("statsmodels", {"evaluation/comparison.py"}),
        ("pydantic", {"config.py", "files/disk.py", "tracking/outbox/journal.py"}),
        ("filelock", {"files/disk.py"}),
        ("fcntl", set()),
        ("optuna", {"cli/search.py"}),
        ("sklearn", set()),
        ("torchvision", {"data/cifar10.py", "data/mnist.py", "data/omniglot.py"}),
    ],
)
def test_packages_stay_in_their_places(package: str, allowed: set[str]) -> None:
    users = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(name.split(".")[0] == package for name in imports(path))
    }
    assert users == allowed


def test_modules_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    assert {path for path, length in lengths.items() if length > 320} == set()


def test_every_group_option_is_one_class_and_one_file() -> None:
    """A YAML names its class; two YAMLs of one group name different classes.

    A variant names none, and begins with the option that it changes.
    """
    for group in [*sorted((ROOT / "conf").iterdir()), ROOT / "conf" / "evaluation" / "estimators"]:
        if group.is_dir() and group.name not in ("evaluation", "recipe"):
            texts = {path.stem: path.read_text() for path in group.glob("*.yaml")}
            variants = {
                name: re.findall(r"^defaults:\n  - (\w+)\n\n", text, re.MULTILINE)
                for name, text in texts.items()
                if "_target_" not in text
            }
            assert all(bases and bases[0] in texts for bases in variants.values()), group
            targets = [
                re.findall(r"_target_: (\S+)", text)
                for name, text in texts.items()
                if name not in variants
            ]
            assert all(len(found) == 1 for found in targets)
            if group.name != "estimators":  # the guide as a proposal, plain and defensive
                assert len({found[0] for found in targets}) == len(targets)


def test_no_two_public_classes_share_a_name() -> None:
    homes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}
