"""Pictures of a job, in its folder and in its run."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from vae_pyro.evaluation import posterior_means
from vae_pyro.files import write_atomically
from vae_pyro.log_marginal.estimate import MOST_UNTRUSTED
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting import figures
from vae_pyro.tracking import Run
from vae_pyro.vae import VAE

SERIES = ("samples", "reconstructions", "latent_space")
BOUNDS_FILE = "elbo_vs_iwae.png"
FILES = (*(f"{key}.png" for key in SERIES), BOUNDS_FILE)
"""What this module writes into a job's folder."""


def draw_vae(
    vae: VAE, test_x: Tensor, labels: Tensor, epoch: int, *, seed: int, run: Run, folder: Path
) -> None:
    """Samples, reconstructions and latent space of one epoch.

    Args:
        vae: as it is after this epoch.
        test_x: prepared test images, ``(N, C, H, W)``.
        labels: of the test images, ``(N,)``.
        epoch: the step under which the pictures are recorded.
        seed: of the samples that are shown.
        run: where they are recorded.
        folder: where the latest of each kind is kept.
    """
    means = posterior_means(vae, test_x)
    with RandomStream("pictures", seed, test_x.device).active():
        drawn = {
            "samples": figures.sample_grid(vae),
            "reconstructions": figures.reconstruction_grid(vae, test_x[:64]),
            "latent_space": figures.latent_figure(vae, means, labels),
        }
    for key, figure in drawn.items():
        pixels = figures.render(figure)
        run.log_image(key, pixels, epoch)
        write_atomically(folder / f"{key}.png", figures.png(pixels))


def draw_bounds(
    metrics: Mapping[str, float],
    iwae_samples: Sequence[int],
    num_samples: int,
    *,
    run: Run,
    folder: Path,
) -> None:
    """ELBO, IWAE-K and log p(x) of the test set against the number of samples."""

    def with_error(name: str) -> tuple[float, float]:
        return metrics[f"test/{name}"], metrics[f"test/{name}_std_error"]

    log_px = with_error("log_px")
    if metrics["test/untrusted"] > MOST_UNTRUSTED:
        log_px = log_px[0], 0.0  # no bar where it cannot be trusted

    bounds = {k: with_error(f"iwae_{k}") for k in iwae_samples}
    figure = figures.bounds_figure({**bounds, 1: with_error("elbo")}, log_px, num_samples)
    path = folder / BOUNDS_FILE
    write_atomically(path, figures.png(figures.render(figure)))
    run.log_file(path)


def snapshot_epochs(epochs: int, snapshots: int) -> set[int]:
    """Epochs at which pictures are drawn: 0 (before training) and ``snapshots`` from 1 to the last.

    Their distances grow, because most changes are early.
    """
    steps = snapshots - 1
    return {0, epochs} | {round(epochs ** (i / steps)) for i in range(steps)}
