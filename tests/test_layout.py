"""The shape of the tree: imports go downward only, and heavy packages stay in their places."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "vae_pyro"

# From the bottom up: a module imports only what stands before it.
LAYERS = [
    "errors",
    "interruption",
    "credentials",
    "hardware",
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
    "compilation": ["functions", "precision", "graph", "scope"],
    "data": ["dataset", "digits", "linear_gaussian", "files", "mnist", "omniglot", "cifar10"],
    "likelihoods": [
        "preparation",
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
        "local",
        "cache",
        "together",
    ],
    "evaluation": ["latent", "metrics"],
    "training": ["checkpoints", "divergence", "optimizer", "svi", "state"],
    "reporting": ["figures", "tables", "estimators"],
    "tracking": ["base", "reasons", "reach", "journal", "delivery", "record", "store"],
    "runs": ["manifest", "fingerprint", "folder", "trainer", "job"],
    "cli": ["search", "slurm", "startup", "app", "deliver", "sweep"],
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


def layer(dotted: str, depth: int) -> str:
    return dotted.split(".")[depth]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts
    assert own[0] in LAYERS, f"{path} has no layer yet: put it into this test's list"
    for name in imports(path):
        if not name.startswith("vae_pyro."):
            continue
        other = layer(name, 1)
        if other == own[0] and len(own) > 1:
            order = INNER_LAYERS[other]
            assert order.index(layer(name, 2)) < order.index(own[1]), f"{path} imports {name}"
        else:
            assert LAYERS.index(other) < LAYERS.index(own[0]), f"{path} imports {name}"


@pytest.mark.parametrize(
    ("package", "allowed"),
    [
        ("mlflow", {"tracking/store.py"}),
        ("hydra", {"cli/app.py", "cli/sweep.py"}),
        ("omegaconf", {"cli/app.py", "cli/sweep.py", "runs/job.py"}),
        ("matplotlib", {"reporting/figures.py"}),
        ("pydantic", {"config.py", "tracking/journal.py"}),
        ("optuna", {"cli/search.py"}),
        ("sklearn", {"data/digits.py"}),
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
    """A YAML names its class; two YAMLs of one group name different classes."""
    for group in [*sorted((ROOT / "conf").iterdir()), ROOT / "conf" / "evaluation" / "estimators"]:
        if group.is_dir() and group.name != "evaluation":
            targets = [
                re.findall(r"_target_: (\S+)", path.read_text()) for path in group.glob("*.yaml")
            ]
            assert all(len(found) == 1 for found in targets)
            assert len({found[0] for found in targets}) == len(targets)
