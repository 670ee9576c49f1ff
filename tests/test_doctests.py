"""The ``>>>`` examples in docstrings run, and print what they show."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests.conftest import ROOT

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def with_examples() -> list[str]:
    """Dotted names of the modules that hold an example."""
    paths = [path for path in ROOT.glob("vae_pyro/**/*.py") if ">>> " in path.read_text()]
    return sorted(dotted(path.relative_to(ROOT)) for path in paths)


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", with_examples())
def test_examples_print_what_they_show(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # an example may write files
    tests = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    assert any(test.examples for test in tests), "an example that doctest does not find"
    runner = doctest.DocTestRunner(verbose=False, optionflags=FLAGS)
    report: list[str] = []
    for test in tests:
        runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)
