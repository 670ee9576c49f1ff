"""How many cores are free: the system's own files, and a program that keeps one busy."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vae_pyro.runs.cores import CoreMeter, available_cores, crowding, quota


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "cores"),
    [
        ({"cpu.max": "max 100000"}, "0::/", math.inf),
        ({"cpu.max": "150000 100000"}, "0::/", 1.5),
        ({"a/cpu.max": "50000 100000", "a/b/cpu.max": "max 100000"}, "0::/a/b", 0.5),
        ({"a/cpu.max": "200000 100000", "cpu.max": "100000 100000"}, "0::/a", 1.0),
        (
            {"cpu/a/cpu.cfs_quota_us": "300000", "cpu/a/cpu.cfs_period_us": "100000"},
            "4:memory:/x\n3:cpu,cpuacct:/a\n0::/",
            3.0,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "1:cpu:/", math.inf),
        ({"cpu.max": "damaged"}, "0::/", math.inf),
        ({}, "no colons", math.inf),
    ],
)
def test_the_quota_is_the_smallest_on_the_way_up(
    files: dict[str, str], membership: str, cores: float, tmp_path: Path
) -> None:
    for name, text in files.items():
        write(tmp_path / "cgroup" / name, text)
    write(tmp_path / "membership", membership)
    assert quota(tmp_path / "cgroup", tmp_path / "membership") == cores


def test_what_others_keep_busy_is_measured() -> None:
    """Own work does not count, and that of another process does."""
    loop = "import time\nend = time.time() + 60\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", loop]) as other:
        time.sleep(0.5)
        meter, end = CoreMeter(), time.monotonic() + 2
        while time.monotonic() < end:
            pass
        busy = meter.others()
        other.kill()
    # Of a machine with one core it had half; of what other tests do nothing is known.
    assert busy > 0.3
    assert busy < (os.cpu_count() or 1)
    assert available_cores() >= 1


def test_a_crowded_machine_is_told() -> None:
    cores = available_cores()
    assert crowding(int(cores), 0.0) is None
    assert crowding(0, cores) is None
    line = crowding(8, cores)
    assert line is not None
    assert "8 threads share about 0.0 free cores" in line
    assert "OMP_NUM_THREADS=1 is often faster" in line
    assert crowding(int(cores) + 1, 0.0) is not None
    alone = crowding(1, cores)
    assert alone is not None
    assert "OMP_NUM_THREADS" not in alone
