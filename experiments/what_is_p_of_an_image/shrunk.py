"""Images so small that all of them can be counted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.nn.functional import adaptive_avg_pool2d

from vae_pyro.config import build
from vae_pyro.data import Dataset, ImageSource, Split


@dataclass(frozen=True)
class Shrunk(ImageSource):
    """Another source's images, averaged down to side x side pixels.

    Args:
        source: ``_target_`` and options of the other source.
        side: height and width.
    """

    source: Mapping[str, Any] | None = None
    side: int = 3

    def _read(self) -> Dataset:
        def shrink(split: Split) -> Split:
            means = adaptive_avg_pool2d(split.images.float(), self.side)
            return Split(means.round().to(split.images.dtype), split.labels)

        return build(self.source or {}, ImageSource, "data.source").load().map(shrink)
