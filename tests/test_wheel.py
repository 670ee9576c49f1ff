"""The wheel, installed outside the clone: its files, the command and the library."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT

pytestmark = pytest.mark.slow

BUILT_FROM = ["vae_pyro", "conf", "experiments", "benchmarks", "tests", "run.py"]
BUILT_FROM += ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves files in the folder that it builds from."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel, which borrows all other packages from this one.

    The line of a ``.pth`` file adds this environment's packages, but not what their own ``.pth``
    files would add: an editable installation of the clone stays out.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-compile", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "borrowed.pth").write_text("\n".join(sorted(borrowed)))
    return folder


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """``run("vae-pyro", "latent_dim=2")``: a program of that environment, in an empty folder."""

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [environment / "bin" / program, *arguments],
            cwd=tmp_path,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    return run


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PIP_NO_INDEX": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_holds_the_package_and_its_configurations_alone(wheel: Path) -> None:
    package = [
        path for kind in ("py", "json", "html") for path in ROOT.glob(f"vae_pyro/**/*.{kind}")
    ]
    package.append(ROOT / "vae_pyro" / "py.typed")
    expected = {str(path.relative_to(ROOT)) for path in package}
    expected |= {f"vae_pyro/{path.relative_to(ROOT)}" for path in ROOT.glob("conf/**/*.yaml")}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == expected
    assert {"vae_pyro/cli/presets.py", "vae_pyro/conf/config.yaml"} <= found


def test_the_installed_package_is_what_is_imported(run: Run, environment: Path) -> None:
    place = run("python", "-c", "import vae_pyro; print(vae_pyro.__file__)").stdout
    assert Path(place).is_relative_to(environment)


def test_help_names_the_installed_command(run: Run) -> None:
    page = run("vae-pyro", "--help").stdout
    assert "vae-pyro latent_dim=2,10,20 -m" in page
    assert "run.py" not in page
    assert "data: cifar10, digits" in page


def test_a_job(run: Run, tmp_path: Path) -> None:
    done = run("vae-pyro", "latent_dim=2", *QUICK)
    assert "log p(x)" in done.stdout
    (folder,) = tmp_path.glob("outputs/*/*")
    assert {"run.log", "result.json", "model"} <= {path.name for path in folder.iterdir()}
    assert (tmp_path / "mlflow.db").is_file()
    assert run("vae-pyro", "report").stdout == "report.html\n"
    assert "the ELBO" in (tmp_path / "report.html").read_text()


OWN_CLASS = '''
from vae_pyro.likelihoods import Bernoulli


class Own(Bernoulli):
    """A user's own likelihood."""
'''


def test_a_parallel_sweep_with_a_class_and_a_choice_of_the_user(run: Run, tmp_path: Path) -> None:
    """Both are in the current folder; the launcher's processes find them too."""
    (tmp_path / "own_likelihoods.py").write_text(OWN_CLASS)
    (tmp_path / "conf" / "likelihood").mkdir(parents=True)
    (tmp_path / "conf" / "likelihood" / "own.yaml").write_text("_target_: own_likelihoods.Own\n")
    arguments = ["likelihood=bernoulli,own", "latent_dim=2", "tracking=none", *QUICK]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    done = run("vae-pyro", "--config-dir", "conf", *arguments, *launcher, "-m")
    (summary,) = tmp_path.glob("multirun/*/*/summary.csv")
    assert len(summary.read_text().splitlines()) == 3, done.stdout
    assert "own" in summary.read_text()


WITHOUT_COMMAND_LINE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("hydra", "omegaconf", "mlflow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_the_lines_for_a_notebook_run_without_hydra_and_mlflow(run: Run) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    block = next(block for block in blocks if "import vae_pyro as vp" in block)
    printed = run("python", "-c", WITHOUT_COMMAND_LINE + block).stdout
    assert re.search(r"-2[34]\.\d+ ± 0\.\d+ nats per image", printed), printed
