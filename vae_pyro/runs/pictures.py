"""Pictures of a job, in its folder and in its run."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from vae_pyro.compilation.processes import Aside, num_processes
from vae_pyro.errors import WorkerError
from vae_pyro.evaluation import posterior_means
from vae_pyro.files import write_atomically
from vae_pyro.log_marginal.estimate import MOST_UNTRUSTED
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting import figures
from vae_pyro.tracking import FINAL, Run
from vae_pyro.vae import VAE

logger = logging.getLogger(__name__)

SERIES = ("samples", "reconstructions", "latent_space")
BOUNDS_FILE = "elbo_vs_iwae.png"
TRAINING_FILE = "training.png"
_PATIENCE = 60.0  # seconds; drawing takes half of one
FILES = (*(f"{key}.png" for key in SERIES), BOUNDS_FILE, TRAINING_FILE)
"""What this module writes into a job's folder."""


class Pictures:
    """Samples, reconstructions and latent space of a VAE, after one epoch or another.

    From the second time on, and where there is a core for it, they are drawn by another process, so
    that training goes on meanwhile.

    Args:
        vae: drawn with the weights that it has when ``draw`` is called.
        test_x: prepared test images, ``(N, C, H, W)``.
        labels: of the test images, ``(N,)``.
        seed: of the samples that are shown.
        run: where they are recorded.
        folder: where the latest of each kind is kept.
    """

    def __init__(
        self, vae: VAE, test_x: Tensor, labels: Tensor, *, seed: int, run: Run, folder: Path
    ) -> None:
        self._vae = vae
        self._test_x = test_x
        self._labels = labels
        self._seed = seed
        self._run = run
        self._folder = folder
        self._epoch = 0
        self._aside: Aside[dict[str, np.ndarray]] = Aside()
        self._is_first = True
        self._kept: tuple[int, Mapping[str, np.ndarray]] | None = None

    @property
    def are_awaited(self) -> bool:
        """Whether some are being drawn, and not recorded yet."""
        return self._aside.is_busy

    def draw(self, epoch: int) -> None:
        """Begin to draw those of this epoch, the step under which they are recorded."""
        self.record()
        self._epoch = epoch
        if not self._is_first and num_processes(self._test_x.device) > 1:
            with suppress(WorkerError):  # no room for another process
                self._aside.begin(self._drawn)
                return
        self._is_first = False  # it loads the libraries, which further processes then share
        self._keep(self._drawn())

    def record(self, *, wait: bool = True) -> None:
        """Record those that are drawn.

        Args:
            wait: for those that are being drawn.
        """
        if self._aside.is_busy and (wait or self._aside.is_done):
            try:
                drawn = self._aside.result(_PATIENCE)
            except WorkerError as error:  # they are not worth a training
                logger.warning("no pictures of epoch %d: %s", self._epoch, error)
            else:
                self._keep(drawn)

    def finish(self) -> None:
        """Record those of the last epoch as final, too, if they were drawn."""
        if self._kept is not None and self._kept[0] == self._epoch:
            for key, pixels in self._kept[1].items():
                self._run.log_image(f"final/{key}", pixels, FINAL)

    def give_up(self) -> None:
        """Stop drawing."""
        self._aside.stop()

    def _drawn(self) -> dict[str, np.ndarray]:
        means = posterior_means(self._vae, self._test_x)
        with RandomStream("pictures", self._seed, self._test_x.device).active():
            drawn = {
                "samples": figures.sample_grid(self._vae, x=self._test_x),
                "reconstructions": figures.reconstruction_grid(self._vae, self._test_x[:64]),
                "latent_space": figures.latent_figure(self._vae, means, self._labels),
            }
        return {key: figures.render(figure) for key, figure in drawn.items()}

    def _keep(self, drawn: Mapping[str, np.ndarray]) -> None:
        self._kept = self._epoch, drawn
        for key, pixels in drawn.items():
            self._run.log_image(key, pixels, self._epoch)
            write_atomically(self._folder / f"{key}.png", figures.png(pixels))


def draw_training(
    history: Mapping[str, Sequence[float]], kept_epoch: int, *, run: Run, folder: Path
) -> None:
    """The metrics of training and validation against the epoch; see ``figures.training_figure``."""
    figure = figures.training_figure(history, kept_epoch)
    path = folder / TRAINING_FILE
    write_atomically(path, figures.png(figures.render(figure)))
    run.log_file(path)


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
