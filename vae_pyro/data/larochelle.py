"""MNIST as binarised once by Larochelle: the published files of zeros and ones."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_pyro.errors import DataError
from vae_pyro.files import read_regular

_ADDRESS = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
_FOLDER = "binarized_mnist"  # of the files, under the folder with all data sets
_SIDE = 28
_MOST_BYTES = 200_000_000  # the largest of the published files has 78 million


def read_larochelle(root: Path, part: str) -> Tensor:
    """The images of one of the three files, in their order.

    Args:
        root: the folder with all data sets.
        part: ``train``, ``valid`` or ``test``.

    Returns:
        zeros and ones, ``uint8 (N, 1, 28, 28)``.

    Raises:
        DataError: where the file is missing, or is not in this format.

    Source: Larochelle and Murray (2011); drawn as by Salakhutdinov and Murray (2008).
    """
    path = root / _FOLDER / f"{_FOLDER}_{part}.amat"
    if not path.exists():
        raise DataError(
            f"{path.resolve()} does not exist: download the files for train, valid and test from "
            f"{_ADDRESS} into this folder, point data.root or VAE_PYRO_DATA at the folder that "
            f"holds {_FOLDER}, or use data.binarisation=static, which binarises MNIST anew"
        )
    try:
        return parse_amat(read_regular(path, _MOST_BYTES))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise DataError(
            f"{path.resolve()} cannot be read ({why}): download it again from {_ADDRESS}"
        ) from error


def parse_amat(content: bytes) -> Tensor:
    """One image a line, its 784 pixels as ``0`` or ``1`` with white space between them.

    Args:
        content: of the file. Empty lines are skipped.

    Returns:
        ``uint8 (N, 1, 28, 28)``.

    Raises:
        ValueError: where a line has something else, or another number of pixels.
    """
    characters = np.frombuffer(content, dtype=np.uint8)
    is_pixel = (characters == ord("0")) | (characters == ord("1"))
    is_other = ~is_pixel
    for space in b" \t\r\n":
        is_other &= characters != space
    ends = np.flatnonzero(characters == ord("\n"))
    if is_other.any():
        first = int(np.argmax(is_other))
        line = int(np.searchsorted(ends, first)) + 1
        raise ValueError(f"line {line} has {chr(characters[first])!r}, but pixels are 0 or 1")
    touching = is_pixel[1:] & is_pixel[:-1]
    if touching.any():
        line = int(np.searchsorted(ends, np.argmax(touching))) + 1
        raise ValueError(f"line {line} has two pixels without a space between them")
    if not is_pixel.any():
        raise ValueError("it has no images")
    starts = np.concatenate([[0], ends + 1])
    in_line = np.add.reduceat(is_pixel, starts[starts < len(characters)], dtype=np.int32)
    wrong = (in_line != _SIDE**2) & (in_line != 0)
    if wrong.any():
        line = int(np.argmax(wrong))
        raise ValueError(f"line {line + 1} has {in_line[line]:,} pixels, not {_SIDE**2}")
    pixels = characters[is_pixel] - ord("0")
    return torch.from_numpy(pixels).reshape(-1, 1, _SIDE, _SIDE)
