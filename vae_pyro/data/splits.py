"""Random splits of images that come without any, and test images that are in the training too."""

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class RandomSplit:
    """The settings of a source whose images may come without splits.

    Args:
        valid_share: of the images for validation; where there are test images, of the others.
        test_share: of the images for the test.
        split_seed: of the random split.

    Raises:
        DataError: where nothing would be left for training.
    """

    valid_share: float = field(default=0.1, kw_only=True)
    test_share: float = field(default=0.2, kw_only=True)
    split_seed: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if min(self.valid_share, self.test_share) <= 0 or self.valid_share + self.test_share >= 1:
            raise DataError(
                f"data.valid_share={self.valid_share} and data.test_share={self.test_share} must "
                "be above 0 and leave some images for training"
            )

    def _divided(self, found: Mapping[str, Sequence[T]], place: str) -> dict[str, list[T]]:
        """Images as train, valid and test.

        Args:
            found: all of them as ``all``; or ``train`` with ``valid``, ``test`` or both, which
                stay as they are.
            place: where they come from, for messages.

        Raises:
            DataError: where a split has no image.
        """
        divided = {name: list(images) for name, images in found.items()}
        rest = divided.pop("all", None) or divided.get("train", [])
        order = torch.randperm(
            len(rest), generator=torch.Generator().manual_seed(self.split_seed)
        ).tolist()
        for name, share in {"test": self.test_share, "valid": self.valid_share}.items():
            if name not in divided:
                number = round(share * len(rest))
                chosen, order = order[:number], order[number:]
                divided[name] = [rest[index] for index in sorted(chosen)]
        divided["train"] = [rest[index] for index in sorted(order)]
        if empty := [name for name in ("train", "valid", "test") if not divided[name]]:
            raise DataError(
                f"{place} leaves no images for {' and '.join(empty)}: there are "
                f"{sum(map(len, found.values())):,}. Add images, or change data.valid_share and "
                "data.test_share"
            )
        return divided


def first_and_last(official: Split, split: str) -> tuple[Split, Split]:
    """The first images for training, and the last for validation.

    Args:
        official: all images that are not for the test.
        split: how many of them, as ``50000/10000``.

    Raises:
        DataError: where it is not two numbers from 1 up, or there are fewer images.
    """
    match = re.fullmatch(r"([1-9]\d{0,8})/([1-9]\d{0,8})", split)
    if match is None:
        raise DataError(
            f"data.split={split!r}: write how many images are for training and for validation, as "
            "50000/10000"
        )
    train, valid = map(int, match.groups())
    if train + valid > len(official):
        raise DataError(
            f"data.split={split} needs {train + valid:,} images, but there are {len(official):,}"
        )
    return (
        Split(official.images[:train], official.labels[:train]),
        Split(official.images[-valid:], official.labels[-valid:]),
    )


def note_repeated(dataset: Dataset) -> None:
    """Warn of test images that are also training images: their log p(x) is not that of new ones."""

    def digests(split: Split) -> list[bytes]:
        return [hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images]

    training = set(digests(dataset.train))
    if repeated := sum(digest in training for digest in digests(dataset.test)):
        logger.warning(
            "%s of %s test images are also training images", f"{repeated:,}", len(dataset.test)
        )
