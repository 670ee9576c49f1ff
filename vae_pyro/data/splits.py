"""Random splits of images that come without any, and test images that are in the training too."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.errors import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Shares:
    """How images are split at random.

    Args:
        valid, test: shares of the images, above 0, and below 1 together.
        seed: of the split.

    Raises:
        DataError: where nothing would be left for training.
    """

    valid: float
    test: float
    seed: int

    def __post_init__(self) -> None:
        if min(self.valid, self.test) <= 0 or self.valid + self.test >= 1:
            raise DataError(
                f"data.valid_share={self.valid} and data.test_share={self.test} must be above 0 "
                "and leave some images for training"
            )

    def divided(self, found: Mapping[str, Sequence[T]], place: str) -> dict[str, list[T]]:
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
            len(rest), generator=torch.Generator().manual_seed(self.seed)
        ).tolist()
        for name, share in {"test": self.test, "valid": self.valid}.items():
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


def note_repeated(dataset: Dataset) -> None:
    """Warn of test images that are also training images: their log p(x) is not that of new ones."""

    def digests(split: Split) -> list[bytes]:
        return [hashlib.sha256(image.numpy().tobytes()).digest() for image in split.images]

    training = set(digests(dataset.train))
    if repeated := sum(digest in training for digest in digests(dataset.test)):
        logger.warning(
            "%s of %s test images are also training images", f"{repeated:,}", len(dataset.test)
        )
