"""Images that come as PNG or JPEG files, wherever those lie."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import numpy as np
import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.folders import listed
from vae_pyro.data.pixels import Colour, read_images, sides
from vae_pyro.data.source import ImageSource
from vae_pyro.data.splits import RandomSplit, note_repeated
from vae_pyro.errors import DataError

logger = logging.getLogger(__name__)

K = TypeVar("K")


@dataclass(frozen=True)
class EncodedImages(RandomSplit, ImageSource):
    """PNG and JPEG images, as levels 0 to 255.

    16-bit images are rounded to 8 bits. Transparent pixels are blended with white. Rotations that a
    camera noted are applied.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        size: height and width that images are resized to, one number for both; None leaves them
            as they are, and all must have one size.
        crop: when resizing, cut off what lies outside the largest centred part with the new aspect
            ratio; False stretches the image instead.
        colour: ``grey`` or ``rgb`` converts all images; ``auto`` is grey where all of them are.
        valid_share, test_share, split_seed: see ``RandomSplit``.
        bad_files: what to do with a file that is no readable PNG or JPEG image: ``refuse`` names
            them and stops, ``skip`` names them and continues.
    """

    size: int | tuple[int, int] | None = field(default=None, kw_only=True)
    crop: bool = field(default=True, kw_only=True)
    colour: Colour = field(default="auto", kw_only=True)
    bad_files: Literal["refuse", "skip"] = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        if self.size is not None and min(sides(self.size)) < 1:
            raise DataError(f"data.size must be at least 1, but is {self.size}")
        super().__post_init__()

    def _assembled(
        self,
        found: Mapping[str, Sequence[tuple[K, int]]],
        content: Callable[[K], bytes],
        name: Callable[[K], str],
        place: str,
    ) -> Dataset:
        """The data set of images that were found.

        Args:
            found: key and label of each image, as ``all``, or by split.
            content: of an image's file, by its key.
            name: of an image, by its key, for messages.
            place: where they come from, for messages.

        Raises:
            DataError: naming what cannot be read, or has another size; where a split is empty.
        """
        keys = [key for images in found.values() for key, _ in images]
        images = self._images(keys, content, name, place)
        kept = {
            split: [(key, label) for key, label in those if key in images]
            for split, those in found.items()
        }
        divided = self._divided(kept, place)
        channels = max(image.shape[2] for image in images.values())

        def split(name: str) -> Split:
            arrays = [
                np.broadcast_to(images[key], (*images[key].shape[:2], channels))
                for key, _ in divided[name]
            ]
            levels = torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())
            return Split(levels, torch.tensor([label for _, label in divided[name]]))

        dataset = Dataset(split("train"), split("valid"), split("test"), num_levels=256)
        note_repeated(dataset)
        return dataset

    def _images(
        self,
        keys: Sequence[K],
        content: Callable[[K], bytes],
        name: Callable[[K], str],
        place: str,
    ) -> dict[K, np.ndarray]:
        """All images that can be read, ``(H, W, C)``, of one height and width."""
        images, unreadable = read_images(
            keys, content, self.size, crop=self.crop, colour=self.colour
        )
        bad = [f"{name(key)} ({why})" for key, why in unreadable.items()]
        if bad:
            message = (
                f"{len(bad):,} of {len(keys):,} files in {place} are not readable PNG or JPEG "
                f"images: {listed(bad)}"
            )
            if self.bad_files == "refuse":
                raise DataError(
                    f"{message}. Remove them, or leave them out with data.bad_files=skip"
                )
            logger.warning("left out: %s", message)
        if not images:
            raise DataError(f"no images are left in {place}")
        sizes: dict[str, list[str]] = {}
        for key, image in images.items():
            sizes.setdefault(f"{image.shape[0]}x{image.shape[1]}", []).append(name(key))
        if len(sizes) > 1:
            often = sorted(sizes.items(), key=lambda item: -len(item[1]))
            words = [f"{size} ({len(same):,} files, as {same[0]})" for size, same in often]
            raise DataError(
                f"the images in {place} have {len(sizes)} sizes (height x width): "
                f"{listed(words)}. Resize them with data.size=64, or data.size=[48,64]"
            )
        return images
