"""The result of one job, as ``result.json`` in its folder, and how the results of jobs compare."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from vae_pyro.files import parse_file, write_atomically

RESULT_FILE = "result.json"
_SHOWN = {
    "test/elbo",
    "test/log_px",
    "test/log_px_std_error",
    "test/log_px_image_std_error",
    "test/gap",
    "test/effective_sample_size",
    "test/pareto_k_high",
    "test/untrusted",
    "test/active_units",
    "time/train_seconds",
    "time/evaluate_seconds",
}


@dataclass(frozen=True)
class JobResult:
    """The result of one job.

    Attributes:
        name: the job's overrides in a sweep, its main choices otherwise.
        settings: what the user set for it, by key.
        latent_dim: the latent dimension; None where the configuration was refused.
        error: why it failed; None where it finished. Only finished jobs write a result.
        x: what log p(x) is the probability of, for instance ``digits: 17 levels``.
        images: identifies the set of test images.
        log_cell_volume: nats that make log p(x) (a lower bound on) the log probability of the
            image as levels: 0 for probabilities; None for real-valued data.
        metrics: final metrics by their contract names.
        sweep: token of the sweep that the job belongs to, see ``manifest.Sweep``.
        folder: where it was read from, with the job's other files; not written.
    """

    name: str
    settings: dict[str, str]
    latent_dim: int | None = None
    error: str | None = None
    x: str = ""
    images: str = ""
    log_cell_volume: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    sweep: str | None = None
    folder: Path | None = field(default=None, compare=False)

    def write(self, folder: Path) -> None:
        """Write ``result.json``.

        Raises:
            StorageError: where the folder cannot be written.
        """
        written = {name: value for name, value in asdict(self).items() if name != "folder"}
        write_atomically(folder / RESULT_FILE, json.dumps(written, indent=2).encode())

    def nats(self, name: str) -> float:
        """A metric, in nats per image; for a density, as a lower bound on log P(image).

        >>> result = JobResult("a", {}, log_cell_volume=-181.3, metrics={"test/log_px": 80.0})
        >>> round(result.nats("test/log_px"), 1)
        -101.3
        """
        return self.metrics[name] + (self.log_cell_volume or 0.0)

    @property
    def is_bound(self) -> bool:
        """Whether ``nats`` is a bound on log P(image) that was taken from a density."""
        return bool(self.log_cell_volume)

    @property
    def is_complete(self) -> bool:
        """Whether it has all metrics that tables show."""
        return self.metrics.keys() >= _SHOWN

    @property
    def is_trusted(self) -> bool:
        """Whether the error bar of log p(x) can be trusted; see ``Estimate.is_trusted``."""
        from vae_pyro.log_marginal.estimate import MOST_UNTRUSTED  # imports torch

        return self.metrics["test/untrusted"] <= MOST_UNTRUSTED

    @classmethod
    def read(cls, folder: Path) -> "JobResult | None":
        """Read ``result.json``; None where there is none, or metrics of the table are missing."""
        result = parse_file(cls, folder / RESULT_FILE)
        if result is None or (result.error is None and not result.is_complete):
            return None
        return replace(result, folder=folder)


def varying_settings(results: Sequence[JobResult]) -> list[str]:
    """``latent_dim``, and the keys whose value is not the same in all jobs."""
    keys = {key: None for result in results for key in result.settings}
    varying = [key for key in keys if len({result.settings.get(key) for result in results}) > 1]
    return varying if "latent_dim" in varying else ["latent_dim", *varying]


def setting(result: JobResult, key: str) -> str:
    """One job's value of a key, as the user would write it."""
    if key == "latent_dim" and result.latent_dim is not None:
        return str(result.latent_dim)
    return result.settings.get(key, "")


def bound_names(results: Sequence[JobResult]) -> list[str]:
    """Metrics from the loosest bound to log p(x): elbo, iwae_K in order of K, log_px.

    IWAE-1 is left out, because it is the ELBO.
    """
    iwae = {
        int(found[1])
        for result in results
        for name in result.metrics
        if (found := re.fullmatch(r"test/iwae_(\d+)", name))
    }
    return ["test/elbo", *(f"test/iwae_{k}" for k in sorted(iwae - {1})), "test/log_px"]


def bound_label(name: str) -> str:
    """The metric's name in a table.

    >>> bound_label("test/iwae_50")
    'IWAE-50'
    """
    short = name.removeprefix("test/")
    return {"elbo": "ELBO", "log_px": "log p(x)"}.get(short, short.upper().replace("_", "-"))


def groups(results: Sequence[JobResult]) -> list[list[JobResult]]:
    """The finished jobs, grouped by kind of x and test images.

    Compare log p(x) only within a group.
    """
    by_x: dict[tuple[str, str], list[JobResult]] = {}
    for result in results:
        if result.error is None:
            by_x.setdefault((result.x, result.images), []).append(result)
    return list(by_x.values())
