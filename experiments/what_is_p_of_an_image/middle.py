"""Images so small that all of them can be enumerated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vae_pyro.config import build
from vae_pyro.data import Dataset, ImageSource, Split


@dataclass(frozen=True)
class Middle(ImageSource):
    """The side x side pixels in the middle of another source's images.

    Args:
        source: ``_target_`` and options of the other source.
        side: height and width.
    """

    source: Mapping[str, Any] | None = None
    side: int = 3

    def _read(self) -> Dataset:
        def crop(split: Split) -> Split:
            top, left = ((size - self.side + 1) // 2 for size in split.images.shape[-2:])
            rows, columns = slice(top, top + self.side), slice(left, left + self.side)
            return Split(split.images[..., rows, columns].contiguous(), split.labels)

        return build(self.source or {}, ImageSource, "data.source").load().map(crop)
