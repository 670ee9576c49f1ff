"""A file is replaced whole or not at all; a lock is held by one process at a time."""

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from tests.conftest import ROOT
from vae_pyro.data import MNIST
from vae_pyro.errors import DataError, ResumeError, StorageError
from vae_pyro.files import lock, write_atomically
from vae_pyro.runs.fingerprint import Fingerprint
from vae_pyro.runs.folder import claim


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


HOLD = """
import sys
from pathlib import Path
from vae_pyro.files import lock
held = lock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_loses_its_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError):
            lock(path, wait=False)
        with pytest.raises(ResumeError, match="another process is at work in"):
            claim(tmp_path)
        other.kill()
    claim(tmp_path).close()


def test_a_lock_is_waited_for_and_its_file_stays(tmp_path: Path) -> None:
    """If the file were removed, one could lock a new file while another holds the old one."""
    path = tmp_path / ".lock"
    order: list[str] = []
    first = lock(path)
    number = path.stat().st_ino

    def wait() -> None:
        with lock(path):
            order.append("second")

    second = threading.Thread(target=wait)
    second.start()
    second.join(0.3)
    assert order == []
    order.append("first")
    first.close()
    second.join(60)
    assert order == ["first", "second"]
    assert path.stat().st_ino == number
    assert path.read_bytes() == b""


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
@pytest.mark.timeout(60)
def test_a_lock_file_that_is_none_is_not_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(path: Path) -> None:
        if kind == "link":
            path.symlink_to(tmp_path / "new")
        elif kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()

    put(tmp_path / ".lock")
    with pytest.raises(OSError, match=r"\.lock"):
        lock(tmp_path / ".lock")
    with pytest.raises(StorageError, match="cannot be written"):
        claim(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    (tmp_path / "data/MNIST/raw").mkdir(parents=True)
    for name in MNIST.md5:  # so that nothing is downloaded
        (tmp_path / "data/MNIST/raw" / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match="MNIST"):
        MNIST(str(tmp_path / "data")).load()
    (path,) = temporary.glob("vae-pyro-*.lock")
    path.unlink()
    put(path)
    with pytest.raises(DataError, match="cannot be used as a lock file"):
        MNIST(str(tmp_path / "data")).load()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_nothing_is_locked(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path / "a"), lock(tmp_path / "a", wait=False), claim(tmp_path / "job"):
        claim(tmp_path / "job").close()
