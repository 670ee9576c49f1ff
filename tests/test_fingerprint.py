"""What makes a stopped run another one: code that computes does, words do not."""

import shutil
from pathlib import Path

import pytest

from vae_pyro.files import code, without_words
from vae_pyro.runs.folder import LEFT_BEHIND

CODE = '''
"""What this module is about."""

import logging

logger = logging.getLogger(__name__)


def double(x: float) -> float:
    """Twice x."""
    # Why it is done.
    if x < 0:
        logger.info("negative: %s", x)
        raise ValueError(f"x: must be positive, got {x}")
    why = f"because {x} is small" if x < 1 else "it is large"
    notes.append(f"doubled ({why})")
    return 2 * x


def broken(site: str) -> Exception:
    return DivergenceError(f"the objective became infinite at {site}")


def start(seed: int) -> None:
    RandomStream("initial weights", seed)
    in_chunks(label="evaluating the ELBO", stream=f"evaluating elbo {seed}")
    log_metrics({"valid/elbo": 1.0})
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("What this module is about", "Other words"),
        ("Twice x.", "2 x, for x from 0 up."),
        ("# Why it is done.", "# For another reason, over\n    # two lines."),
        ("negative: %s", "x is negative (%s)"),
        ("x: must be positive, got {x}", "x: choose a positive number"),
        ("because {x} is small", "as {x} is little"),
        ("it is large", "it is so large"),
        ("doubled ({why})", "twice as much: {why}"),
        ("became infinite at {site}", "is no longer finite ({site})"),
        ("evaluating the ELBO", "estimating the ELBO"),
    ],
)
def test_words_do_not_change_the_code(before: str, after: str) -> None:
    assert before in CODE
    assert without_words(CODE) == without_words(CODE.replace(before, after))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("2 * x", "3 * x"),
        ("x < 0", "x <= 0"),
        ("ValueError", "KeyError"),
        ("import logging", "import logging, math"),
        ("initial weights", "first weights"),
        ("evaluating elbo {seed}", "estimating elbo {seed}"),
        ("valid/elbo", "valid/bound"),
        ("return DivergenceError", "return UserError"),
        ("def double(x: float)", "def double(x: float = 1.0)"),
    ],
)
def test_a_change_of_code_changes_it(before: str, after: str) -> None:
    assert without_words(CODE) != without_words(CODE.replace(before, after))


def digest_of_copy(package: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(code, "__file__", str(package / "files" / "code.py"))
    code.code_digest.cache_clear()
    try:
        return code.code_digest()
    finally:
        code.code_digest.cache_clear()


def test_reports_and_records_are_not_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a copy of the package."""
    original = Path(code.__file__).parents[1]
    for path in original.rglob("*.py"):
        copy = tmp_path / path.relative_to(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    digest = digest_of_copy(tmp_path, monkeypatch)

    def is_seen(name: str) -> bool:
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text + "\n_another = 1\n")
        seen = digest_of_copy(tmp_path, monkeypatch) != digest
        (tmp_path / name).write_text(text)
        return seen

    for name in ("model.py", "vae.py", "training/svi.py", "log_marginal/estimate.py"):
        assert is_seen(name), name
    for name in ("reporting/tables.py", "tracking/base.py", "cli/app.py", "runs/job.py"):
        assert not is_seen(name), name


def test_a_digest_that_is_kept_is_that_of_the_files_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, home = tmp_path / "package", tmp_path / "kept"
    shutil.copytree(Path(code.__file__).parents[1], package)
    monkeypatch.setenv("VAE_PYRO_GRAPHS", "")
    digest = digest_of_copy(package, monkeypatch)
    monkeypatch.setenv("VAE_PYRO_GRAPHS", str(home))
    assert digest_of_copy(package, monkeypatch) == digest
    (kept,) = home.iterdir()
    assert kept.read_text() == digest
    kept.write_text("f" * 64)
    assert digest_of_copy(package, monkeypatch) == "f" * 64, "it was read"
    for damaged in ("", "f" * 63, "f" * 65, "z" * 64, "é" * 32):
        kept.write_text(damaged)
        assert digest_of_copy(package, monkeypatch) == digest
        assert kept.read_text() == digest
    model = package / "model.py"
    model.write_text(model.read_text() + "\n_another = 1\n")
    assert digest_of_copy(package, monkeypatch) != digest
    assert len(list(home.iterdir())) == 2


def test_what_a_job_leaves_behind_is_listed_once() -> None:
    assert len(set(LEFT_BEHIND)) == len(LEFT_BEHIND)
    assert LEFT_BEHIND[-1] == "fingerprint.json"  # it says whose the others are
