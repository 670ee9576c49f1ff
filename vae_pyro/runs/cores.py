"""Free cores of this machine.

All of it is known on Linux: what other programs use, and the limits of a container. On other
systems less is known; then the whole machine counts as free.
"""

import math
import os
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath

from vae_pyro.tracking.apart import process_number

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_STATISTICS = Path("/proc/stat")
_ROUNDING = 0.5  # cores that come and go


def available_cores() -> float:
    """Cores that this process may use: those it is bound to, at most its CPU quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(bound or 1, quota())


def quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float:
    """Cores that the process's control groups grant it; infinity if none limits them.

    Args:
        root: where the control groups are mounted, of version 1 or 2.
        membership: the file that lists the groups of this process.
    """
    granted = math.inf
    with suppress(OSError, ValueError):
        for line in membership.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            hierarchy = root / "cpu" if "cpu" in controllers.split(",") else root
            path = PurePosixPath(group.lstrip("/"))
            for parent in (path, *path.parents):  # a limit above holds below, too
                granted = min(granted, _limit(hierarchy / parent))
    return granted


def _limit(group: Path) -> float:
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (group / "cpu.max").exists():
            allowed, period = (group / "cpu.max").read_text().split()
        else:
            allowed, period = (
                (group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
            )
        if float(allowed) > 0:
            return float(allowed) / float(period)
    return math.inf


class CoreMeter:
    """Measures how many cores other programs have kept busy since it was made."""

    def __init__(self) -> None:
        self._start = _times()

    def others(self) -> float:
        """Cores that other programs kept busy, on average; 0 if that is unknown."""
        if self._start is None or (now := _times()) is None:
            return 0.0
        wall, busy, own = (after - before for after, before in zip(now, self._start, strict=True))
        return max(0.0, busy - own) / wall if wall > 0.1 else 0.0


def _times() -> tuple[float, float, float] | None:
    """Seconds: of the clock, of all cores at work, of this process with the one that records."""
    try:
        fields = _STATISTICS.read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _wait, irq, soft, steal = map(int, fields)
    except (OSError, ValueError, IndexError):
        return None
    busy = user + nice + system + irq + soft + steal
    recording = 0
    with suppress(OSError, ValueError, IndexError):
        about = Path(f"/proc/{process_number()}/stat").read_text().rpartition(")")[2].split()
        recording = int(about[11]) + int(about[12])  # utime and stime, as proc(5) counts them
    second = os.sysconf("SC_CLK_TCK")
    return time.monotonic(), busy / second, time.process_time() + recording / second


def crowding(threads: int, others: float) -> str | None:
    """A warning if a job has more threads than there are free cores; otherwise None.

    Args:
        threads: that compute.
        others: cores that other programs keep busy.
    """
    total = available_cores()
    free = max(0.0, total - others)
    if threads <= free + _ROUNDING:
        return None
    line = (
        f"{threads} {'thread has' if threads == 1 else 'threads share'} about {free:.1f} free cores"
        f" (this job may use {total:g}, other programs keep {others:.1f} busy), so it may take "
        "several times as long as alone"
    )
    fewer = max(1, int(free))
    return f"{line}; OMP_NUM_THREADS={fewer} is often faster then" if fewer < threads else line
