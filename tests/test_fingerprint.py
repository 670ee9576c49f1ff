"""What makes a stopped run another one: code that computes does, words do not."""

from pathlib import Path

import pytest

from vae_pyro.files import COMPUTING, code, without_words
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
    return 2 * x
'''


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("What this module is about", "Other words"),
        ("Twice x.", "2 x, for x from 0 up."),
        ("# Why it is done.", "# For another reason, over\n    # two lines."),
        ("negative: %s", "x is negative (%s)"),
        ("x: must be positive, got {x}", "x: choose a positive number"),
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


def test_reports_and_messages_are_not_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a copy of the package: every module that reports may change, none that computes."""
    original = Path(code.__file__).parents[1]
    for path in original.rglob("*.py"):
        copy = tmp_path / path.relative_to(original)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    digest = digest_of_copy(tmp_path, monkeypatch)
    changed: list[str] = []
    unchanged: list[str] = []
    for path in sorted(tmp_path.rglob("*.py")):
        text = path.read_text()
        path.write_text(text + "\n_another = 1\n")
        same = digest_of_copy(tmp_path, monkeypatch) == digest
        (unchanged if same else changed).append(path.relative_to(tmp_path).as_posix())
        path.write_text(text)
    assert {"model.py", "training/svi.py", "log_marginal/estimate.py", "vae.py"} <= set(changed)
    assert {name.partition("/")[0] for name in unchanged} >= {"reporting", "tracking", "cli"}
    assert not [name for name in changed if name.startswith(("reporting", "tracking", "cli"))]
    assert all(name.startswith(COMPUTING) for name in changed)


def test_what_a_job_leaves_behind_is_listed_once() -> None:
    assert len(set(LEFT_BEHIND)) == len(LEFT_BEHIND)
    assert LEFT_BEHIND[-1] == "fingerprint.json"  # it says whose the others are
