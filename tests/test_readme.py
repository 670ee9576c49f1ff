"""The commands and blocks of README and guides, run in a fresh copy of the tracked files."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests import forkserver
from tests.conftest import MNIST_ROOT, QUICK, ROOT, needs_mnist

README = (ROOT / "README.md").read_text()
GUIDES = (
    "reading_the_table",
    "comparing_models",
    "command_line",
    "browsing_runs",
    "resuming",
    "notebooks",
    "own_images",
    "adding_one_thing",
)
PAGES = README + "".join((ROOT / "docs" / f"{name}.md").read_text() for name in GUIDES)
COMMANDS = [
    line
    for block in re.findall(r"```sh\n(.*?)```", PAGES, flags=re.DOTALL)
    for line in block.splitlines()
]
PYTHON_COMMANDS = list(dict.fromkeys(c for c in COMMANDS if c.startswith("python run.py")))
FILES = re.findall(r"`([\w/]+\.\w+)`:\n\n```\w+\n(.*?)```", PAGES, flags=re.DOTALL)
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGES, flags=re.DOTALL)
ALL_PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "experiments/**/*.md")
    for path in ROOT.glob(pattern)
)
TESTED_ELSEWHERE = {
    "make sweep": "tests/test_sweep.py",
    "make ui": "tests/test_sweep.py",
    "make test": "this is it",
    "python -m benchmarks calibration": "tests/test_comparison.py",
    "vae-pyro compare multirun/2026-01-31/12-00-00 outputs/2026-01-31/13-00-00": (
        "tests/test_compare.py"
    ),
    "vae-pyro compare 7f3c...e1 a09b...42 --format latex": "tests/test_compare.py",
    **dict.fromkeys(
        [
            "vae-pyro score outputs/2026-01-31/12-00-00 my_images",
            "vae-pyro sample outputs/2026-01-31/12-00-00 -n 64 samples.png",
            "vae-pyro reconstruct outputs/2026-01-31/12-00-00 my_images --out reconstructions.png",
            "vae-pyro encode outputs/2026-01-31/12-00-00 my_images > codes.csv",
            "vae-pyro evaluate outputs/2026-01-31/12-00-00 evaluation=full",
        ],
        "tests/test_trained.py",
    ),
    **dict.fromkeys(
        [
            "vae-pyro register outputs/2026-01-31/12-00-00 --name digits",
            "MLFLOW_TRACKING_URI=sqlite:///mlflow.db mlflow models serve -m models:/digits/1 "
            "--env-manager local --host 127.0.0.1 --port 5001",
        ],
        "tests/test_serving.py",
    ),
    **dict.fromkeys(
        [
            "make report",
            "vae-pyro report multirun/2026-01-31/12-00-00 --out sweep.html",
            "vae-pyro report multirun/2026-01-31/12-00-00 --format latex",
        ],
        "tests/test_sweep.py",
    ),
    "vae-pyro plan latent_dim=2,10,20 -m": "tests/test_plan.py",
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
    (folder / "my_images").mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (30, 40, 50, 3), dtype=np.uint8)
    for number, one in enumerate(levels):
        Image.fromarray(one).save(folder / f"my_images/{number}.png")
    small = levels[:, :8, :8, 0]
    np.savez(folder / "my_images.npz", images=small)
    column = datasets.Features({"image": datasets.Image()})
    saved = datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in small]}, column)
    saved.save_to_disk(folder / "my_dataset")
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
        pytest.param(line, marks=[needs_mnist] if "mnist" in line or "recipe" in line else [])
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
        few = "data.classes=[0]"  # a tenth of the images
        extra = ("training.epochs=1", *QUICK[1:], f"data.root={MNIST_ROOT}", few)
    if "recipe=" in command:
        small = ("data.split=400/50", "data.classes=[0]", "evaluation.iwae_samples=[1,50]")
        extra = (*QUICK, f"data.root={MNIST_ROOT}", *small, "evaluation.num_images=2")
    done = run(copy, "python", program, *extra, *arguments)
    assert "latent_dim" in done.stdout


@pytest.mark.slow
def test_python_snippet(copy: Path) -> None:
    run(copy, "python", "run.py", *QUICK, "latent_dim=2", "hydra.run.dir=my_run")
    (loading,) = [block for block in SNIPPETS if "vae_pyro.load(" in block]
    (together,) = [block for block in SNIPPETS if "estimate_together(" in block]
    printed = run(copy, "python", "-c", f"{loading}\n{together}").stdout.splitlines()
    assert len(printed) == 17
    assert all(
        re.match(r"log p\(x\) = -\d+\.\d\d ± \d\.\d\d nats, (LOWER|NUMERIC)", line)
        for line in printed[:15]
    )
    for name, line in zip(("importance", "quadrature"), printed[15:], strict=True):
        assert re.match(rf"{name} -\d+\.\d+ ± \S+ nats per image ", line)


@pytest.mark.slow
def test_own_images_in_a_notebook(copy: Path) -> None:
    (loading,) = [block for block in SNIPPETS if "ImageFolder(" in block]
    assert run(copy, "python", "-c", loading).stdout == "(3, 32, 32) 21 6\n"


@pytest.mark.slow
def test_five_lines(copy: Path) -> None:
    """Those of the README and of the guide, with two epochs; their output has the printed form."""
    form = r"-\d+\.\d+ ± \d\.\d+ nats per image \(lower bound\)(, untrusted: \d% of the images)?"
    assert re.search(rf"```text\n{form}\n```", README)
    comparing, *blocks = sorted(
        (block for block in SNIPPETS if "vp.fit" in block), key=lambda block: -len(block)
    )
    assert len(blocks) == 2
    quick = comparing.replace("epochs=60", "epochs=2").replace("range(3)", "range(2)")
    printed = run(copy, "python", "-c", quick).stdout
    assert re.search(r"d=10 +2 +-\d+\.\d\d", printed)
    assert "300 images" in printed
    for block in blocks:
        assert "epochs=60" in block
        printed = run(copy, "python", "-c", block.replace("epochs=60", "epochs=2")).stdout
        assert re.fullmatch(form, printed.splitlines()[-1])


def test_the_readme_is_one_screen_and_links() -> None:
    assert len(README.split()) <= 900


def test_all_pages_are_found() -> None:
    pages = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "experiments/README.md"}
    assert pages | {f"docs/{guide}.md" for guide in GUIDES} <= set(ALL_PAGES)


@pytest.mark.parametrize("page", ALL_PAGES)
def test_pictures_and_links_exist(page: str) -> None:
    """Every file that a page links to is there, and so is the heading, if the link names one."""
    folder = (ROOT / page).parent
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        target, _, anchor = link.partition("#")
        if "://" in target:
            continue
        path = folder / target if target else ROOT / page
        assert path.is_file(), link
        if anchor:
            assert anchor in anchors(path.read_text()), link


def anchors(page: str) -> set[str]:
    """The names by which GitHub links to the headings of a page."""
    without_blocks = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+)$", without_blocks, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
