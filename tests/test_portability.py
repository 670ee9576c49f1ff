"""The package can be imported, and handles its files, where Python lacks what only Unix has."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Other packages are loaded as they are; vae_pyro is then loaded a second time, without.
PROGRAM = """
import builtins, importlib, math, os, pkgutil, sys
from pathlib import Path

import vae_pyro

names = [m.name for m in pkgutil.walk_packages(vae_pyro.__path__, "vae_pyro.")]
for name in names:
    importlib.import_module(name)
for name in [n for n in sys.modules if n.partition(".")[0] == "vae_pyro"]:
    del sys.modules[name]
for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "getuid", "sched_getaffinity", "sysconf"):
    delattr(os, name)
whole = builtins.__import__


def without_unix(name, globals=None, *arguments):
    by = (globals or {}).get("__name__", "")
    if by.startswith("vae_pyro") and name in ("fcntl", "grp", "pwd", "resource", "termios"):
        raise ModuleNotFoundError(f"{by} imports {name}")
    return whole(name, globals, *arguments)


builtins.__import__ = without_unix
for name in names:
    importlib.import_module(name)

import torch

from vae_pyro import files, saving
from vae_pyro.data import MNIST
from vae_pyro.errors import DataError
from vae_pyro.runs import cores
from vae_pyro.runs.folder import claim

files.write_atomically(Path("a.json"), b"[1]")
assert files.parse_json(files.read_regular(Path("a.json"), 10)) == [1]
with claim(Path("job")):
    files.write_tensors(Path("job/t"), {"x": torch.ones(2)}, {"y": 1})
assert files.read_tensors(Path("job/t"))[1] == {"y": 1}
assert cores.available_cores() >= 1
assert saving.available_memory(torch.device("cpu")) > 10**8
saving._MEMORY = Path("none")
assert saving.available_memory(torch.device("cpu")) == math.inf
Path("MNIST/raw").mkdir(parents=True)
for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
    Path(f"MNIST/raw/{name}-ubyte").write_bytes(b"damaged")
try:
    MNIST(root=".").load()
except DataError as error:
    assert "MNIST" in str(error)  # of the data, not of the lock file
    print(len(names), "modules")
"""


@pytest.mark.slow
def test_nothing_but_unix_has_is_needed(tmp_path: Path) -> None:
    home = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "USERNAME": "me", "HOME": home, "TMPDIR": home},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    count = len(list((ROOT / "vae_pyro").rglob("*.py")))
    assert done.stdout.split() == [str(count - 1), "modules"]  # all but the package itself
