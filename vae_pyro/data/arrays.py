"""Images in a file of NumPy: ``.npz`` with one array or one for each split, or ``.npy``."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.folders import listed
from vae_pyro.data.source import ImageSource
from vae_pyro.data.splits import RandomSplit, note_repeated
from vae_pyro.errors import DataError

Levels = int | Literal["real"]
_IMAGES = {  # names of an array in a file, by split
    "all": ("images", "x", "data", "arr_0"),
    "train": ("train", "x_train", "train_images", "images_train"),
    "valid": ("valid", "x_valid", "valid_images", "images_valid", "val", "x_val", "val_images"),
    "test": ("test", "x_test", "test_images", "images_test"),
}
_LABELS = {
    "all": ("labels", "y"),
    "train": ("y_train", "train_labels", "labels_train"),
    "valid": ("y_valid", "valid_labels", "labels_valid", "y_val", "val_labels"),
    "test": ("y_test", "test_labels", "labels_test"),
}
_AT_ONCE = 2**24  # values that are converted at a time: of a mapped file, memory holds one part


@dataclass(frozen=True)
class ArrayFile(RandomSplit, ImageSource):
    """Your own images in a file of NumPy.

    - ``.npy``: one array of images. It is mapped into memory, not read whole.
    - ``.npz``: ``images`` and, optionally, ``labels``, which are split at random by ``split_seed``;
      or ``x_train``, ``x_test`` and, optionally, ``x_valid``, with ``y_train``, ...
    - An array is ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``, with one or three channels.
    - ``uint8``: levels 0 to ``levels - 1``. ``uint16``: 0 to 65535, rounded to ``levels`` levels.
      There are 256 levels unless you set another number. Floating point: from 0 to 1, rounded to
      ``levels`` levels, which you must set; ``levels=real`` keeps the numbers as they are.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        path: of the file.
        levels: how many values a pixel can have, from 2 to 256; or ``real``.
        channels: whether the number of channels stands ``first`` or ``last`` in the shape of an
            image; ``auto`` takes the one of the two that is 1 or 3.
        valid_share, test_share, split_seed: see ``RandomSplit``.
    """

    path: str | None = None
    levels: Levels | None = field(default=None, kw_only=True)
    channels: Literal["auto", "first", "last"] = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.levels, int) and not 2 <= self.levels <= 256:
            raise DataError(f"data.levels must be from 2 to 256, or real, but is {self.levels}")
        super().__post_init__()

    def _read(self) -> Dataset:
        if self.path is None:
            raise DataError("name the file of your images: data.path=images.npz")
        path = Path(self.path)
        arrays = _read_arrays(path)
        images = _by_split(path, arrays, _IMAGES)
        labels = _by_split(path, arrays, _LABELS)
        if not images.keys() & {"all", "train"}:
            raise DataError(
                f"{path} has the arrays {listed(list(arrays))}, and none is called images or "
                "x_train: rename them"
            )
        found = {
            split: [(split, index) for index in range(len(array))]
            for split, array in images.items()
        }
        divided = self._divided(found, str(path))
        levels = {split: self._levels(path, split, array) for split, array in images.items()}
        marks = {
            split: _labels(path, split, labels.get(split), len(array))
            for split, array in images.items()
        }

        def split(name: str) -> Split:
            (source,) = {source for source, _ in divided[name]}
            index = torch.tensor([index for _, index in divided[name]])
            return Split(levels[source][index], marks[source][index])

        number = None if self.levels == "real" else self.levels or 256
        dataset = Dataset(split("train"), split("valid"), split("test"), num_levels=number)
        note_repeated(dataset)
        return dataset

    def _levels(self, path: Path, split: str, array: np.ndarray) -> torch.Tensor:
        """One array as ``(N, C, H, W)``: levels, or real numbers.

        Raises:
            DataError: where it has another shape or kind, or values out of range.
        """
        ordered = self._channels_first(path, split, array)
        real = self.levels == "real"
        found = torch.empty(ordered.shape, dtype=torch.float32 if real else torch.uint8)
        step = max(1, _AT_ONCE // max(1, ordered[:1].size))
        for start in range(0, len(ordered), step):
            part = np.array(ordered[start : start + step])  # a copy: a mapped file is read only
            found[start : start + step] = torch.from_numpy(self._part(path, split, part))
        return found

    def _channels_first(self, path: Path, split: str, array: np.ndarray) -> np.ndarray:
        if array.ndim not in (3, 4) or 0 in array.shape:
            raise DataError(
                f"{_place(path, split)} have the shape {array.shape}, but must be (N, H, W), "
                "(N, H, W, C) or (N, C, H, W), each at least 1"
            )
        if array.ndim == 3:
            return array[:, None]
        first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
        if self.channels == "auto" and first == last:
            raise DataError(
                f"{_place(path, split)} have the shape {array.shape}, which does not say where the "
                "channels (1 or 3) are: add data.channels=first or last"
            )
        is_first = self.channels == "first" or (self.channels == "auto" and first)
        return array if is_first else array.transpose(0, 3, 1, 2)

    def _part(self, path: Path, split: str, part: np.ndarray) -> np.ndarray:
        """Some images as levels or real numbers."""
        place = _place(path, split)
        if self.levels == "real":
            if part.dtype.kind not in "fiub":
                raise DataError(f"{place} are {part.dtype}, not numbers")
            return np.asarray(part, dtype=np.float32)
        top = (self.levels or 256) - 1
        if part.dtype == np.bool_:
            return np.asarray(part * np.uint8(top))
        if part.dtype == np.uint16:
            return np.asarray(np.rint(part * (top / 65535)), dtype=np.uint8)
        if part.dtype.kind in "iu":
            if part.min() < 0 or part.max() > top:
                raise DataError(
                    f"{place} have values from {part.min()} to {part.max()}, but with "
                    f"{top + 1} levels they must be from 0 to {top}: declare their number with "
                    "data.levels"
                )
            return np.asarray(part, dtype=np.uint8)
        if part.dtype.kind != "f":
            raise DataError(f"{place} are {part.dtype}, not numbers")
        if self.levels is None:
            raise DataError(
                f"{place} are {part.dtype}: data.levels=256 rounds numbers from 0 to 1 to 256 "
                "levels, data.levels=real keeps them as they are"
            )
        if not (part.min() >= 0 and part.max() <= 1):  # nor NaN
            raise DataError(
                f"{place} have values from {part.min():.4g} to {part.max():.4g}, but must be from "
                "0 to 1 to be rounded to levels: rescale them, or use data.levels=real"
            )
        return np.asarray(np.rint(part * top), dtype=np.uint8)


def _place(path: Path, split: str, what: str = "images") -> str:
    return f"the {what}{'' if split == 'all' else f' of {split}'} in {path}"


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a file, by name; the one of a ``.npy`` file is ``images``.

    Raises:
        DataError: where it is missing or damaged, or holds Python objects, which are not loaded.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path.absolute()}: correct data.path")
    try:
        read = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(read, np.ndarray):
            return {"images": read}
        with read:
            return {name: read[name] for name in read.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no readable file of NumPy with numbers: {error}") from error


def _by_split(
    path: Path, arrays: Mapping[str, np.ndarray], known: Mapping[str, tuple[str, ...]]
) -> dict[str, np.ndarray]:
    """The arrays with a known name.

    Raises:
        DataError: where two have the same meaning, or one has all images and another some.
    """
    found = [(split, name) for split, names in known.items() for name in names if name in arrays]
    splits = {split for split, _ in found}
    if len(splits) < len(found) or ("all" in splits and len(splits) > 1):
        raise DataError(
            f"of the arrays {listed([name for _, name in found])} in {path} it is unclear which "
            "are meant: keep one for all images, or one for each split"
        )
    return {split: arrays[name] for split, name in found}


def _labels(path: Path, split: str, array: np.ndarray | None, number: int) -> torch.Tensor:
    """Class labels; zeros where there are none."""
    if array is None:
        return torch.zeros(number, dtype=torch.int64)
    flat = array.reshape(len(array), -1) if array.ndim else array.reshape(0, 0)
    if flat.shape != (number, 1) or array.dtype.kind not in "iub":
        raise DataError(
            f"{_place(path, split, 'labels')} are {array.dtype} {array.shape}, but must be one "
            f"whole number for each of the {number:,} images"
        )
    return torch.from_numpy(flat[:, 0].astype(np.int64))
