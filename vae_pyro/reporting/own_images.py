"""How probable one's own images are under a trained VAE: as a table, and as rows for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vae_pyro.log_marginal import Estimate
from vae_pyro.log_marginal.estimate import shown
from vae_pyro.reporting.tables import SummaryTable

_SHOWN = 40  # images in a table


@dataclass(frozen=True)
class ImageScores:
    """How probable images are under a trained VAE.

    Attributes:
        x: what log p(x) is of, for instance ``digits: binary pixels``.
        files: of the images.
        elbo, log_px: nats per image.
        log_cell_volume: to be added to both; see ``JobResult``.
        is_bound: whether log p(x) is then a lower bound on log P(image), of a density.
        bits_per_dim: log p(x) as bits per pixel and channel, lower is better, ``(N,)``.
        percentile: share of the run's test images whose log p(x) is lower, in percent, ``(N,)``.
        num_test: how many test images those are.
    """

    x: str
    files: Sequence[Path]
    elbo: Estimate
    log_px: Estimate
    log_cell_volume: float
    is_bound: bool
    bits_per_dim: Tensor
    percentile: Tensor
    num_test: int


def score_rows(scores: ImageScores) -> list[dict[str, str | float | bool | None]]:
    """One row for each image; no error bar where it cannot be trusted."""
    trusted = scores.log_px.trusted.tolist()
    errors = scores.log_px.std_error.tolist()
    return [
        {
            "file": str(path),
            "elbo": scores.elbo.value[index].item() + scores.log_cell_volume,
            "log_px": scores.log_px.value[index].item() + scores.log_cell_volume,
            "log_px_std_error": errors[index] if trusted[index] else None,
            "trusted": trusted[index],
            "bits_per_dim": scores.bits_per_dim[index].item(),
            "percentile": scores.percentile[index].item(),
        }
        for index, path in enumerate(scores.files)
    ]


def score_table(scores: ImageScores) -> SummaryTable:
    """The first images, in words."""
    values = (scores.log_px.value + scores.log_cell_volume).tolist()
    rows = [
        [
            str(path),
            f"{scores.elbo.value[index].item() + scores.log_cell_volume:.2f}",
            shown(
                values[index],
                scores.log_px.std_error[index].item(),
                bool(scores.log_px.trusted[index]),
                sign="≥ " * scores.is_bound,
            ),
            f"{scores.bits_per_dim[index].item():.3f}",
            f"{scores.percentile[index].item():.0f}",
        ]
        for index, path in enumerate(scores.files[:_SHOWN])
    ]
    return SummaryTable(scores.x, ["file", "ELBO", "log p(x)", "bits/dim", "percentile"], rows)


def score_notes(scores: ImageScores) -> list[str]:
    """What the columns mean, and which images are not shown."""
    more = len(scores.files) - _SHOWN
    return [
        *([f"{more:,} more images: --format csv"] if more > 0 else []),
        "nats per image, higher is better; ± is one Monte Carlo standard error; ≥ marks a lower "
        "bound, or a value whose error bar cannot be trusted",
        f"percentile: share of the run's {scores.num_test:,} test images with a lower log p(x)",
    ]
