"""A trained run that answers requests: the methods behind an address."""

import base64
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vae_pyro.errors import DataError
from vae_pyro.reporting.figures import png
from vae_pyro.reporting.own_images import score_rows
from vae_pyro.runs.trained import load_run

MOST_IMAGES = 256  # of one request
MOST_BYTES = 64_000_000  # of its images together

Rows = list[dict[str, Any]]


class Service:
    """Answers about images, from the run in a folder. Several threads may ask at the same time.

    - ``score``: ELBO, log p(x) with its error bar, bits/dim and percentile of each image.
    - ``encode``: the posterior mean of each image, ``z``.
    - ``reconstruct``: one picture of all images and their reconstructions.
    - ``sample``: one picture of new images; needs none.

    Pictures are PNG files in base64.

    Args:
        folder: of the job.

    Raises:
        CheckpointError: where its model is missing or damaged.
        ReportError: where it is no finished job.
    """

    def __init__(self, folder: Path) -> None:
        self._run = load_run(folder)
        # One thread for all: random numbers have one state in a process, and each further thread
        # that computes keeps threads and memory of its own.
        self._computing = ThreadPoolExecutor(1)

    def answer(
        self, method: str, contents: Sequence[bytes], *, seed: int, num_images: int, resize: bool
    ) -> Rows:
        """The rows of an answer, of values that JSON has.

        Args:
            method: ``score``, ``encode``, ``reconstruct`` or ``sample``.
            contents: of PNG or JPEG files.
            seed: of all random numbers: the same request has the same answer.
            num_images: how many to sample.
            resize: whether images of another size are cut and resized.

        Raises:
            DataError: where there is no such method, or an image cannot be used, or there are too
                many.
        """
        methods: dict[str, Callable[[], Rows]] = {
            "score": lambda: self._score(contents, seed, resize),
            "encode": lambda: self._encode(contents, seed, resize),
            "reconstruct": lambda: self._reconstruct(contents, seed, resize),
            "sample": lambda: self._sample(num_images, seed),
        }
        if method not in methods:
            raise DataError(f"there is no method {method!r}; methods are {', '.join(methods)}")
        if not 1 <= num_images <= MOST_IMAGES:
            raise DataError(f"num_images must be from 1 to {MOST_IMAGES}, but is {num_images}")
        if method != "sample" and not 1 <= len(contents) <= MOST_IMAGES:
            raise DataError(f"send 1 to {MOST_IMAGES} images, not {len(contents):,}")
        if sum(map(len, contents)) > MOST_BYTES:
            raise DataError(f"send at most {MOST_BYTES // 1_000_000} MB of images at once")
        return self._computing.submit(methods[method]).result()

    def _score(self, contents: Sequence[bytes], seed: int, resize: bool) -> Rows:
        images = self._run.decode(contents, resize=resize)
        names = [Path(f"image {index}") for index in range(len(images))]
        rows = score_rows(self._run.score(names, images, seed=seed))
        return [{name: value for name, value in row.items() if name != "file"} for row in rows]

    def _encode(self, contents: Sequence[bytes], seed: int, resize: bool) -> Rows:
        means = self._run.encode(self._run.decode(contents, resize=resize), seed=seed)
        return [{"z": mean} for mean in means.tolist()]

    def _reconstruct(self, contents: Sequence[bytes], seed: int, resize: bool) -> Rows:
        images = self._run.decode(contents, resize=resize)
        return [{"png": _in_base64(png(self._run.reconstruct(images, seed=seed)))}]

    def _sample(self, num_images: int, seed: int) -> Rows:
        return [{"png": _in_base64(png(self._run.sample(num_images, seed=seed)))}]


def _in_base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
