"""A file is replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from vae_pyro.files import write_atomically
from vae_pyro.runs.fingerprint import Fingerprint


def test_writing_replaces_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.timeout(20)
def test_a_fingerprint_that_is_none_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "fingerprint.json"
    Fingerprint({"seed": 1}, {}, "data").write(path)
    assert Fingerprint.read(path) == Fingerprint({"seed": 1}, {}, "data")
    path.write_text("[" * 100_000)
    assert Fingerprint.read(path) is None
    os.truncate(path, 2**36)  # of zeros, which take no room on the disk
    assert Fingerprint.read(path) is None
    path.unlink()
    os.mkfifo(path)
    assert Fingerprint.read(path) is None
