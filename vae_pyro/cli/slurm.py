"""Jobs on a SLURM cluster: whether one was started again, and whether it should be."""

import os
import subprocess


def is_restart() -> bool:
    """Whether SLURM queued this job again and started it anew, in the same folder."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0


def requeue_if_preempted() -> bool:
    """Queue this job again, where SLURM ends it because another job needs its place.

    SLURM does so by itself where it ends the job; but one that ends by itself within the time that
    it is granted (``GraceTime``) counts as done. A job that the user cancelled stays cancelled.

    Returns:
        whether it will be started again.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job:
        return False
    shown = _scontrol("--oneliner", "show", "job", job)
    about = dict(word.split("=", 1) for word in shown.split() if "=" in word)
    is_preempted = about.get("PreemptTime", "None") not in ("None", "Unknown", "(null)")
    if (
        about.get("JobState") not in ("RUNNING", "SIGNALING")
        or not is_preempted
        or about.get("Requeue") != "1"
    ):
        return False
    _scontrol("requeue", job)
    return True


def _scontrol(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["scontrol", *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
