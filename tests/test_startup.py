"""What each program sets up first: the output's characters and reader, arguments, threads."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import QUICK, ROOT

RunPy = Callable[..., subprocess.CompletedProcess[str]]
LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, LOCALE], ids=str)
@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ((), "+- is one Monte Carlo standard error"),
        (("latent_dim=2,3", "-m"), "+- and [95% interval] of a difference"),
    ],
    ids=["job", "sweep"],
)
def test_an_output_without_our_characters_gets_others(
    environment: dict[str, str], mode: tuple[str, ...], words: str, run_py: RunPy
) -> None:
    done = run_py(*QUICK, *mode, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert words in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_that_goes_away_does_not_end_a_sweep(closed: str, tmp_path: Path) -> None:
    """As ``python run.py ... -m | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: writer}
    sweep = forkserver.run(
        [sys.executable, str(ROOT / "run.py"), "latent_dim=2,3", *QUICK, "-m"],
        cwd=tmp_path,
        timeout=200,
        text=True,
        **streams,
    )
    os.close(writer)
    assert sweep.returncode == 0, sweep.stderr
    (summary,) = tmp_path.glob("multirun/*/*/summary.csv")
    assert len(summary.read_text().splitlines()) == 3


PROBE = """
from vae_pyro.cli import startup
startup.prepare()
startup.prepare()  # as in a job of a sweep, once more
import os, sys, torch
print(os.environ.get("OMP_WAIT_POLICY"), os.environ.get("GOMP_SPINCOUNT"), "torch" in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "own", [{}, {"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}], ids=str
)
def test_threads_sleep_unless_the_user_wants_them_to_spin(own: dict[str, str]) -> None:
    waiting = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {k: v for k, v in os.environ.items() if k not in waiting}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "true", **own}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=100
    )
    expected = own or {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
    assert done.stdout == f"{' '.join(str(expected.get(name)) for name in waiting)} True\n"
    policy = expected.get("OMP_WAIT_POLICY", "passive").upper()
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr  # as OpenMP itself read it


COLLECTOR = """
import gc
from vae_pyro.cli import startup
with startup.importing():
    imported = gc.isenabled(), [object]
first = gc.get_freeze_count()
with startup.importing():  # a second job
    later = gc.isenabled(), [object]
print(imported[0], later[0], gc.isenabled(), first > 1000, gc.get_freeze_count() <= first)
print(any(found is imported for found in gc.get_objects()))
print(any(found is later for found in gc.get_objects()))
"""


def test_what_is_imported_and_nothing_else_is_kept_from_the_collector() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTOR], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert done.stdout.split() == ["False", *["True"] * 4, "False", "True"], done.stderr


def test_what_was_imported_is_cleared_at_the_end() -> None:
    """Else libraries with modules of their own in C++ print what was left of them."""
    imports = """
from vae_pyro.cli import startup
with startup.importing():
    import vae_pyro.cli.app
"""
    done = subprocess.run(
        [sys.executable, "-c", imports], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("", "")


UNCOMPILED = """
import sys
from vae_pyro.cli import main
sys.argv[1:] = "latent_dim=1", "training.epochs=1", "tracking=none", "evaluation.compile=false"
sys.argv += "evaluation/estimators=[quadrature]", "evaluation.num_images=20"
main.main()
print({"torch._dynamo", "triton"} & sys.modules.keys())
"""


@pytest.mark.slow
def test_a_job_that_compiles_nothing_imports_no_compiler(tmp_path: Path) -> None:
    """The compiler takes seconds of a process; many functions of PyTorch import it unasked."""
    done = subprocess.run(
        [sys.executable, "-c", UNCOMPILED],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.endswith("\nset()\n"), done.stdout + done.stderr


@pytest.mark.parametrize(
    "program",
    [
        "vae_pyro/cli/main.py",
        "experiments/__init__.py",
        "benchmarks/__main__.py",
        "vae_pyro/cli/deliver.py",
    ],
)
def test_every_program_prepares(program: str) -> None:
    assert "startup.prepare()" in (ROOT / program).read_text()


def test_without_its_packages_run_py_names_the_way_to_them() -> None:
    """As before the environment was activated: ``-S`` hides what is installed."""
    done = subprocess.run(
        [sys.executable, "-S", str(ROOT / "run.py"), "--help"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the package ")
    assert ".venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr
