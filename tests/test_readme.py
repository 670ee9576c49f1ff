"""The commands and blocks of README and guides, run in a fresh copy of the tracked files."""

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
GUIDES = ("reading_the_table", "command_line", "resuming", "notebooks", "adding_one_thing")
PAGES = README + "".join((ROOT / "docs" / f"{name}.md").read_text() for name in GUIDES)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGES, flags=re.DOTALL)
    for line in block.splitlines()
]
PYTHON_COMMANDS = list(dict.fromkeys(c for c in COMMANDS if c.startswith("python run.py")))
FILES = re.findall(r"`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", PAGES, flags=re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)
TESTED_ELSEWHERE = {
    "make sweep": "tests/test_sweep.py",
    "make ui": "tests/test_sweep.py",
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
    assert len(PYTHON_COMMANDS) >= 14
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
    extra: tuple[str, ...] = () if "--help" in arguments else QUICK
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
    (snippet,) = [block for block in SNIPPETS if "vae_pyro.load" in block]
    printed = run(copy, "python", "-c", snippet).stdout.splitlines()
    assert len(printed) == 15
    assert all(
        re.match(r"log p\(x\) = -\d+\.\d\d ± \d\.\d\d nats, (LOWER|NUMERIC)", line)
        for line in printed
    )


@pytest.mark.slow
def test_five_lines(copy: Path) -> None:
    """Those of the README and of the guide, with two epochs; their output has the printed form."""
    form = r"-\d+\.\d+ ± \d\.\d+ nats per image \(lower bound\), k-hat > 0.7: \d+%"
    assert re.search(rf"```text\n{form}\n```", README)
    blocks = [block for block in SNIPPETS if "vp.fit" in block]
    assert len(blocks) == 2
    for block in blocks:
        assert "epochs=60" in block
        printed = run(copy, "python", "-c", block.replace("epochs=60", "epochs=2")).stdout
        assert re.fullmatch(form, printed.splitlines()[-1])


def test_the_readme_is_one_screen_and_links() -> None:
    assert len(README.split()) <= 900


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{g}.md" for g in GUIDES)]
)
def test_pictures_and_links_exist(page: str) -> None:
    for target in re.findall(r"\]\(([^)h#][^)#]*)(?:#[^)]*)?\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).is_file(), target
