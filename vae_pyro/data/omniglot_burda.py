"""Omniglot at 28x28 as Burda et al. (2016) published it, which most results on VAEs use."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from vae_pyro.data.dataset import Dataset, unlabelled
from vae_pyro.data.source import ImageSource
from vae_pyro.errors import DataError
from vae_pyro.files import read_regular

_ADDRESS = "https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/chardata.mat"
_FILE = "omniglot_burda/chardata.mat"
_SIDE = 28
_MOST_BYTES = 500_000_000
_SHUFFLE_SEED = 123  # as in the paper's code


@dataclass(frozen=True)
class OmniglotBurda(ImageSource):
    """23,000 train, 1,345 valid, 8,070 test; 28x28, from ``chardata.mat``.

    The 24,345 images that are not for the test are shuffled as in the paper's code, and the last
    ones are for validation. Pixels of the file are numbers from 0 to 1; they are rounded to 256
    levels. There are no labels.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        root: the folder with all such data sets.

    Source: Lake et al. (2015); the file, Burda et al. (2016).
    """

    root: str = "data"

    num_valid: ClassVar[int] = 1_345  # likewise

    def _read(self) -> Dataset:
        path = Path(self.root) / _FILE
        train, test = _read_parts(path)
        if len(train) <= self.num_valid:
            raise DataError(
                f"{path} has {len(train):,} images, of which {self.num_valid:,} are "
                "for validation: none are left for training"
            )
        order = np.random.RandomState(_SHUFFLE_SEED).permutation(len(train))
        shuffled = train[torch.from_numpy(order)]
        return Dataset(
            train=unlabelled(shuffled[: -self.num_valid]),
            valid=unlabelled(shuffled[-self.num_valid :]),
            test=unlabelled(test),
            num_levels=256,
        )


def _read_parts(path: Path) -> list[Tensor]:
    """The images that are not for the test, and those that are, ``uint8 (N, 1, 28, 28)``.

    Raises:
        DataError: where the file is missing, or holds something else.
    """
    if not path.exists():
        raise DataError(
            f"{path.resolve()} does not exist: download it from {_ADDRESS}, point data.root or "
            "VAE_PYRO_DATA at the folder that holds omniglot_burda, or use data=omniglot, which "
            "has another split and another scaling"
        )
    from scipy.io import loadmat  # slow to import

    names = ("data", "testdata")
    try:
        arrays: Any = loadmat(BytesIO(read_regular(path, _MOST_BYTES)), variable_names=names)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(
            f"{path.resolve()} is no readable MATLAB file ({error}): download it again from "
            f"{_ADDRESS}"
        ) from error
    if missing := [name for name in names if name not in arrays]:
        raise DataError(f"{path.resolve()} has no array {missing[0]!r}: is it {_ADDRESS}?")
    return [_images(path, name, arrays[name]) for name in names]


def _images(path: Path, name: str, array: np.ndarray) -> Tensor:
    """Images from the columns of an array, in each of which pixels go down first, then right."""
    if array.ndim != 2 or array.shape[0] != _SIDE**2 or array.dtype.kind not in "fiub":
        raise DataError(
            f"{name!r} in {path.resolve()} is {array.dtype} {array.shape}, but must be numbers, "
            f"{_SIDE**2} in a column for each image"
        )
    if not (array.size and array.min() >= 0 and array.max() <= 1):  # nor NaN
        raise DataError(f"{name!r} in {path.resolve()} must have numbers from 0 to 1")
    levels = np.rint(array.T * 255.0).astype(np.uint8).reshape(-1, 1, _SIDE, _SIDE)
    return torch.from_numpy(np.ascontiguousarray(levels.transpose(0, 1, 3, 2)))
