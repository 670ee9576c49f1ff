"""A folder of images, as people have them: PNG or JPEG, with or without a folder for each class."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.folders import class_names, labelled_files, listed, split_folders
from vae_pyro.data.pixels import Colour, read_images, sides
from vae_pyro.data.source import ImageSource
from vae_pyro.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageFolder(ImageSource):
    """Your own images: the PNG and JPEG files of a folder, as levels 0 to 255.

    - ``root/*.png``: images without labels. ``root/<class>/*.png``: the folders are the classes,
      numbered from 0 in the order of their names.
    - ``root/train``, ``root/test`` and, optionally, ``root/valid`` (or ``val``), each laid out like
      that, are used as they are. Otherwise the images are split at random by ``split_seed``.
    - 16-bit images are rounded to 8 bits. Transparent pixels are blended with white. Rotations
      that a camera noted are applied. Hidden files are ignored.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        root: the folder.
        size: height and width that images are resized to, one number for both; None leaves them
            as they are, and all must have one size.
        crop: when resizing, cut off what lies outside the largest centred part with the new aspect
            ratio; False stretches the image instead.
        colour: ``grey`` or ``rgb`` converts all images; ``auto`` is grey where all of them are.
        valid_share: of the images for validation; where ``root/test`` exists, of the others.
        test_share: of the images for the test.
        split_seed: of the random split, which depends on the names of the files.
        bad_files: what to do with a file that is no readable PNG or JPEG image: ``refuse`` names
            them and stops, ``skip`` names them and continues.
    """

    root: str | None = None
    size: int | tuple[int, int] | None = field(default=None, kw_only=True)
    crop: bool = field(default=True, kw_only=True)
    colour: Colour = field(default="auto", kw_only=True)
    valid_share: float = field(default=0.1, kw_only=True)
    test_share: float = field(default=0.2, kw_only=True)
    split_seed: int = field(default=0, kw_only=True)
    bad_files: Literal["refuse", "skip"] = field(default="refuse", kw_only=True)

    def __post_init__(self) -> None:
        if self.size is not None and min(sides(self.size)) < 1:
            raise DataError(f"data.size must be at least 1, but is {self.size}")
        if min(self.valid_share, self.test_share) <= 0 or self.valid_share + self.test_share >= 1:
            raise DataError(
                f"data.valid_share={self.valid_share} and data.test_share={self.test_share} must "
                "be above 0 and leave some images for training"
            )

    def _read(self) -> Dataset:
        if self.root is None:
            raise DataError("name the folder of your images: data.root=FOLDER")
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"{root.absolute()} is not a folder: correct data.root")
        folders = split_folders(root)
        names = class_names(list(folders.values()) or [root])
        found = {
            split: labelled_files(folder, names)
            for split, folder in (folders or {"all": root}).items()
        }
        paths = [path for files in found.values() for path, _ in files]
        if not paths:
            raise DataError(f"no images in {root.absolute()}: PNG and JPEG files are read")
        images = self._images(root, paths)
        kept = {
            split: [(path, label) for path, label in files if path in images]
            for split, files in found.items()
        }
        divided = self._divided(root, kept)
        channels = max(image.shape[2] for image in images.values())

        def split(name: str) -> Split:
            files = divided[name]
            arrays = [
                np.broadcast_to(images[p], (*images[p].shape[:2], channels)) for p, _ in files
            ]
            levels = torch.from_numpy(np.stack(arrays).transpose(0, 3, 1, 2).copy())
            return Split(levels, torch.tensor([label for _, label in files]))

        dataset = Dataset(split("train"), split("valid"), split("test"), num_levels=256)
        _note_repeated(dataset)
        return dataset

    def _images(self, root: Path, paths: Sequence[Path]) -> dict[Path, np.ndarray]:
        """All images that can be read, ``(H, W, C)``, of one height and width.

        Raises:
            DataError: naming the files that cannot be read, or those of another size.
        """
        images, unreadable = read_images(paths, self.size, crop=self.crop, colour=self.colour)
        bad = [f"{path.relative_to(root)} ({why})" for path, why in unreadable.items()]
        if bad:
            message = (
                f"{len(bad):,} of {len(paths):,} files in {root.absolute()} are not readable PNG "
                f"or JPEG images: {listed(bad)}"
            )
            if self.bad_files == "refuse":
                raise DataError(
                    f"{message}. Remove them, or leave them out with data.bad_files=skip"
                )
            logger.warning("left out: %s", message)
        if not images:
            raise DataError(f"no images are left in {root.absolute()}")
        sizes: dict[str, list[str]] = {}
        for path, image in images.items():
            place = f"{image.shape[0]}x{image.shape[1]}"
            sizes.setdefault(place, []).append(str(path.relative_to(root)))
        if len(sizes) > 1:
            often = sorted(sizes.items(), key=lambda item: -len(item[1]))
            words = [f"{size} ({len(same):,} files, as {same[0]})" for size, same in often]
            raise DataError(
                f"the images in {root.absolute()} have {len(sizes)} sizes (height x width): "
                f"{listed(words)}. Resize them with data.size=64, or data.size=[48,64]"
            )
        return images

    def _divided(
        self, root: Path, found: dict[str, list[tuple[Path, int]]]
    ) -> dict[str, list[tuple[Path, int]]]:
        """The files and labels of the three splits."""
        divided = dict(found)
        rest = divided.pop("all", None) or divided.get("train", [])
        order = torch.randperm(
            len(rest), generator=torch.Generator().manual_seed(self.split_seed)
        ).tolist()
        shares = {"test": self.test_share, "valid": self.valid_share}
        for name, share in shares.items():
            if name not in divided:
                number = round(share * len(rest))
                chosen, order = order[:number], order[number:]
                divided[name] = [rest[index] for index in sorted(chosen)]
        divided["train"] = [rest[index] for index in sorted(order)]
        if empty := [name for name in ("train", "valid", "test") if not divided[name]]:
            raise DataError(
                f"{root.absolute()} leaves no images for {' and '.join(empty)}: there are "
                f"{sum(map(len, found.values())):,}. Add images, or change data.valid_share and "
                "data.test_share"
            )
        return divided


def _note_repeated(dataset: Dataset) -> None:
    """Warn of test images that are also training images: their log p(x) is not that of new ones."""

    def digests(split: Split) -> list[bytes]:
        return [hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images]

    training = set(digests(dataset.train))
    if repeated := sum(digest in training for digest in digests(dataset.test)):
        logger.warning(
            "%s of %s test images are also training images", f"{repeated:,}", len(dataset.test)
        )
