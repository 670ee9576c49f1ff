"""A finished run and images of one's own: scored, encoded, reconstructed, and sampled anew."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_pyro.compilation import accelerated
from vae_pyro.data.folders import files_below, listed
from vae_pyro.data.pixels import content_of, decode, read_images
from vae_pyro.errors import DataError, ReportError
from vae_pyro.evaluation import posterior_means
from vae_pyro.log_marginal import AdaptiveImportanceSampling, ELBOBound, estimate_together
from vae_pyro.progress import ShowProgress, no_progress
from vae_pyro.randomness import RandomStream
from vae_pyro.reporting.configurations import PER_IMAGE_FILE, read_scores
from vae_pyro.reporting.figures import reconstruction_grid, render, tile
from vae_pyro.reporting.own_images import ImageScores
from vae_pyro.reporting.results import RESULT_FILE, JobResult
from vae_pyro.runs.finding import found_runs
from vae_pyro.runs.fingerprint import FINGERPRINT_FILE, Fingerprint
from vae_pyro.runs.preparation import num_evaluations
from vae_pyro.saving import MODEL_FOLDER, load_model, model_folder
from vae_pyro.tracking import downloaded
from vae_pyro.vae import VAE

NEEDED = (RESULT_FILE, FINGERPRINT_FILE, PER_IMAGE_FILE, MODEL_FOLDER)
"""What ``load_run`` reads of a job's folder."""
_MOST_RUNS = 5  # named in a message
_PICTURE = 800  # pixels across, to which a picture of small samples is enlarged


@dataclass(frozen=True)
class TrainedRun:
    """A job that has finished.

    Attributes:
        fingerprint: of the job.
        result: its metrics.
        vae: on the CPU, in evaluation mode.
        test_log_px: of each of its test images, nats, ``(N,)``.
    """

    fingerprint: Fingerprint
    result: JobResult
    vae: VAE
    test_log_px: Tensor

    def read(self, paths: Sequence[Path], *, resize: bool = False) -> tuple[list[Path], Tensor]:
        """Images as this VAE was trained on: of its size, its channels and its levels.

        Args:
            paths: PNG or JPEG files, or folders of them.
            resize: cut and resize images of another size. Without it, that is an error, unless the
                run itself resized its images (``data.size``).

        Returns:
            the files, and their levels, ``uint8 (N, C, H, W)``.

        Raises:
            DataError: naming what is missing, cannot be read or has another size.
        """
        if missing := [str(path) for path in paths if not path.exists()]:
            raise DataError(f"there is no file or folder {listed(missing)}")
        files = [f for path in paths for f in (files_below(path) if path.is_dir() else [path])]
        if not files:
            raise DataError(f"no images in {listed([str(path) for path in paths])}")
        found, unreadable = read_images(files, content_of, **self._form(resize=resize))
        if unreadable:
            words = listed([f"{path} ({why})" for path, why in unreadable.items()])
            raise DataError(
                f"{len(unreadable):,} of {len(files):,} files are not readable PNG or JPEG images: "
                f"{words}"
            )
        return files, self._levels({str(path): image for path, image in found.items()})

    def decode(self, contents: Sequence[bytes], *, resize: bool = False) -> Tensor:
        """The same from the contents of files, for instance of a request.

        Args:
            contents: of PNG or JPEG files.
            resize: see ``read``.

        Raises:
            DataError: naming the image, counted from 0, that cannot be used.
        """
        images, form = {}, self._form(resize=resize)
        for index, content in enumerate(contents):
            try:
                images[f"image {index}"] = decode(content, **form)
            except DataError as error:
                raise DataError(
                    f"image {index} is no readable PNG or JPEG image: {error}"
                ) from error
        return self._levels(images)

    def _form(self, *, resize: bool) -> dict[str, Any]:
        """What images must be like, as arguments of ``data.pixels``.

        Raises:
            DataError: where the run was not trained on images.
        """
        channels, height, width = self.vae.image_shape
        if self.vae.likelihood.num_levels is None or channels not in (1, 3):
            raise DataError("this run was trained on real-valued data, not on images")
        return {
            "size": (height, width) if resize or self.fingerprint.config.get("data.size") else None,
            "crop": bool(self.fingerprint.config.get("data.crop", True)),
            "colour": "grey" if channels == 1 else "rgb",
        }

    def _levels(self, images: Mapping[str, np.ndarray]) -> Tensor:
        """Images of 256 levels, by name, as the VAE's levels; ``uint8 (N, C, H, W)``.

        Raises:
            DataError: where one has another size.
        """
        _, height, width = self.vae.image_shape
        other = [
            f"{name} ({image.shape[0]}x{image.shape[1]})"
            for name, image in images.items()
            if image.shape[:2] != (height, width)
        ]
        if other:
            raise DataError(
                f"this run was trained on images of {height}x{width} (height x width), but "
                f"{listed(other)}: resize them, or add --resize"
            )
        stacked = np.stack(list(images.values())).transpose(0, 3, 1, 2)
        top = (self.vae.likelihood.num_levels or 0) - 1
        return torch.from_numpy(np.rint(stacked * (top / 255)).astype(np.uint8))

    def prepared(self, images: Tensor, seed: int = 0) -> Tensor:
        """The x that the VAE scores: binarised, dequantised or rescaled, ``(N, C, H, W)``.

        The x of an image does not depend on the other images.
        """
        likelihood = self.vae.likelihood
        return torch.cat(
            [
                likelihood.prepare(image, RandomStream("own images", seed).generator)
                for image in images.split(1)
            ]
        )

    def score(
        self,
        files: Sequence[Path],
        images: Tensor,
        *,
        seed: int = 0,
        progress: ShowProgress = no_progress,
    ) -> ImageScores:
        """ELBO and log p(x) of images, with as many samples as the run's own evaluation.

        Args:
            files: of the images.
            images: levels, both from ``read``.
            seed: of all random numbers.
            progress: shows how far it is.
        """
        samples = int(self.fingerprint.config["evaluation.num_samples"])
        budget = self.fingerprint.config.get("evaluation.num_evaluations") or num_evaluations(
            samples, self.vae.latent_dim
        )
        estimators = {"elbo": ELBOBound(samples), "log_px": AdaptiveImportanceSampling(budget)}
        x = self.prepared(images, seed)
        with accelerated(x.device, "auto"):
            found = estimate_together(estimators, self.vae, x, seed=seed, progress=progress)
        volume = self.result.log_cell_volume or 0.0
        log_px = found["log_px"].estimate.value + volume
        num_test = len(self.test_log_px)
        return ImageScores(
            x=self.result.x,
            files=files,
            elbo=found["elbo"].estimate,
            log_px=found["log_px"].estimate,
            log_cell_volume=volume,
            is_bound=self.result.is_bound,
            bits_per_dim=-log_px / (math.prod(self.vae.image_shape) * math.log(2)),
            percentile=100.0 * (self.test_log_px < log_px[:, None]).double().sum(1) / num_test,
            num_test=num_test,
        )

    def encode(self, images: Tensor, *, seed: int = 0) -> Tensor:
        """The posterior means E[z | x], ``(N, D)``.

        Args:
            images: levels, from ``read``.
            seed: of binarisation or dequantisation.
        """
        return posterior_means(self.vae, self.prepared(images, seed))

    def reconstruct(self, images: Tensor, *, seed: int = 0) -> np.ndarray:
        """A picture of images and, under each, the mean of p(x | z); ``uint8 (H, W, 3)``.

        Args:
            images: levels, from ``read``.
            seed: of all random numbers.
        """
        x = self.prepared(images, seed)
        with RandomStream("reconstruct", seed).active():
            return render(reconstruction_grid(self.vae, x))

    def example(self) -> np.ndarray:
        """One image as this VAE was trained on: the mean of p(x | z = 0); ``uint8 (H, W, 3)``."""
        with torch.no_grad():
            mean = self.vae.model.decode(torch.zeros(1, self.vae.latent_dim)).mean[0]
        pixels = (255 * mean.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0)
        return np.broadcast_to(pixels.numpy(), (*pixels.shape[:2], 3))

    def sample(self, num_images: int, *, seed: int = 0, means: bool = False) -> np.ndarray:
        """A picture of samples, z ~ N(0, I) and x ~ p(x | z); ``uint8 (H, W, 3)``.

        Args:
            num_images: in rows and columns of about the same number.
            seed: of all random numbers.
            means: show the means of p(x | z) instead.
        """
        with torch.no_grad(), RandomStream("sample", seed).active():
            p_x = self.vae.model.decode(self.vae.model.prior().sample((num_images,)))
            images = p_x.mean if means else p_x.sample()
        columns = math.ceil(math.sqrt(num_images))
        times = max(1, _PICTURE // (columns * images.shape[-1]))
        large = images.repeat_interleave(times, -1).repeat_interleave(times, -2)
        return (255 * tile(large, columns)).round().astype(np.uint8)


@contextmanager
def run_folder(run: str, uri: str | None = None) -> Iterator[Path]:
    """The folder of a finished run; for one in MLflow a copy, which goes when this is left.

    Args:
        run: folder of a job, or the id of a run in MLflow.
        uri: of the tracking store; by default $MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db``.

    Raises:
        ReportError: where it names no finished run, or several.
        TrackingError: where the tracking store does not respond, or has no such run.
    """
    with found_runs(run, uri) as results:
        if len(results) > 1:
            raise ReportError(
                f"{run} holds {len(results)} finished runs: name one of them, "
                f"{', '.join(str(result.folder) for result in results[:_MOST_RUNS])}"
            )
        (result,) = results
        folder = result.folder or Path()
        if not Path(run).is_dir():
            with downloaded(run.removeprefix("runs:/"), MODEL_FOLDER, uri) as model:
                shutil.copytree(model, folder / MODEL_FOLDER)
            result.write(folder)
        yield folder


def load_run(folder: Path) -> TrainedRun:
    """A finished run.

    Args:
        folder: of the job, see ``run_folder``.

    Raises:
        CheckpointError: where its model is missing or damaged.
        ReportError: where another of its files is.
    """
    fingerprint, result = Fingerprint.read(folder / FINGERPRINT_FILE), JobResult.read(folder)
    if fingerprint is None or result is None:
        raise ReportError(
            f"{FINGERPRINT_FILE} or {RESULT_FILE} in {folder} is missing or damaged: name the "
            "folder of a finished job"
        )
    test_log_px, _ = read_scores(result)
    return TrainedRun(fingerprint, result, load_model(model_folder(folder)), test_log_px)
