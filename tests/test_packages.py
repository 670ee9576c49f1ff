"""What is installed is pinned in one way: constraints.txt, and requirements.lock with hashes."""

import re
import tomllib
from pathlib import Path

from tests.conftest import ROOT

PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^ \\\n]+)", re.MULTILINE)


def pins(path: Path) -> dict[str, str]:
    return {canonical(name): version for name, version in PINNED.findall(path.read_text())}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_file_has_the_versions_of_the_constraints() -> None:
    assert len(pins(ROOT / "constraints.txt")) > 150
    assert pins(ROOT / "requirements.lock") == pins(ROOT / "constraints.txt")


def test_every_package_of_the_lock_file_has_a_hash_and_none_a_place() -> None:
    text = (ROOT / "requirements.lock").read_text()
    head, *entries = re.split(r"^(?=[^ #])", text, flags=re.MULTILINE)
    assert head.count("\n") == 2  # what it is, and what makes it
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+( \\\n    --hash=sha256:[0-9a-f]{64})+\n", entry), entry
    assert "://" not in text


def test_what_builds_the_package_and_what_it_needs_are_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pinned = pins(ROOT / "constraints.txt")
    assert project["build-system"]["requires"] == [f"setuptools=={pinned['setuptools']}"]
    extras = project["project"]["optional-dependencies"].values()
    for needed in (
        *project["project"]["dependencies"],
        *(one for extra in extras for one in extra),
    ):
        assert canonical(re.split(r"[<>=\[]", needed)[0]) in pinned
