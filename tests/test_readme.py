"""What the README says is done, command by command, in a fresh copy of the tracked files."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forkserver
from tests.conftest import MNIST_ROOT, QUICK, ROOT, needs_mnist

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    for line in block.splitlines()
]
PYTHON_COMMANDS = [line for line in COMMANDS if line.startswith("python run.py")]
FILES = re.findall(r"`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", README, flags=re.DOTALL)
TESTED_ELSEWHERE = {
    "make sweep": "tests/test_sweep.py",
    "make ui": "tests/test_sweep.py",
    "make experiments": "tests/test_experiments.py",
    "make test": "this is it",
    ". .venv/bin/activate": "the environment of every command here",
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for name in ("run.py", "conf", "vae_pyro"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for name, content in FILES:
        (folder / name).write_text(content)
    return folder


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    assert command[0] == "python"
    done = forkserver.run(
        [sys.executable, *command[1:]], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_every_command_is_known() -> None:
    assert set(COMMANDS) - set(PYTHON_COMMANDS) == set(TESTED_ELSEWHERE)
    assert len(PYTHON_COMMANDS) >= 7
    assert [name for name, _ in FILES] == [
        "my_likelihoods.py",
        "conf/likelihood/noisy_bernoulli.yaml",
        "my_estimators.py",
        "conf/evaluation/estimators/chi.yaml",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(line, marks=[needs_mnist] if "mnist" in line else [])
        for line in PYTHON_COMMANDS
    ],
)
def test_command(copy: Path, command: str) -> None:
    program, *arguments = shlex.split(command.removeprefix("python "))
    extra = () if "--help" in arguments else QUICK
    if "evaluation" in command:
        extra = (*extra, "evaluation.num_images=5")
    if "evaluation=full" in arguments:
        extra = (*extra, "evaluation.iwae_samples=[5]", "evaluation.simulated_images=5")
    if "data=mnist" in arguments:
        extra = ("training.epochs=1", *QUICK[1:], f"data.root={MNIST_ROOT}")
    done = run(copy, "python", program, *extra, *arguments)
    assert "latent_dim" in done.stdout


@pytest.mark.slow
def test_python_snippet(copy: Path) -> None:
    run(copy, "python", "run.py", *QUICK, "latent_dim=2", "hydra.run.dir=my_run")
    (snippet,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
        if "vae_pyro.load" in block
    ]
    printed = run(copy, "python", "-c", snippet).stdout.splitlines()
    assert len(printed) == 15
    assert all(
        re.match(r"log p\(x\) = -\d+\.\d\d ± \d\.\d\d nats, (LOWER|NUMERIC)", line)
        for line in printed
    )


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)h][^)]*)\)", README):
        assert (ROOT / target).is_file(), target
