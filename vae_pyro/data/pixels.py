"""Image files as levels: PNG and JPEG, of any depth, colour and size."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vae_pyro.errors import DataError

Colour = Literal["auto", "grey", "rgb"]
Size = int | tuple[int, int]
K = TypeVar("K")

_FORMATS = "PNG", "JPEG"
_LEVEL = 65_535 // 255  # levels of 16 bits that are one level of 8 bits
_MOST_PIXELS = 100_000_000  # of one image: a small file may be a large image
_LARGEST = 200_000_000  # bytes of one file


def read_images(
    keys: Sequence[K],
    content: Callable[[K], bytes],
    size: Size | None = None,
    *,
    crop: bool,
    colour: Colour,
) -> tuple[dict[K, np.ndarray], dict[K, str]]:
    """The images that can be read, and why the others cannot.

    Args:
        keys: what the images are known by, for instance the paths of their files.
        content: of the file of one of them, for instance ``content_of``.
        size: see ``decode``; so for the next.
        crop: cuts the sides off.
        colour: of the result.

    Returns:
        ``uint8 (H, W, C)`` by key, in the order of ``keys``; and the other keys' reasons.
    """

    def attempt(key: K) -> np.ndarray | str:
        try:
            return decode(content(key), size, crop=crop, colour=colour)
        except DataError as error:
            return str(error)
        except OSError as error:
            return error.strerror or str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = dict(zip(keys, pool.map(attempt, keys), strict=True))
    return (
        {key: image for key, image in found.items() if not isinstance(image, str)},
        {key: why for key, why in found.items() if isinstance(why, str)},
    )


def content_of(path: Path) -> bytes:
    """What is in a file.

    Raises:
        DataError: where it is too large to be an image.
        OSError: where it cannot be read.
    """
    if path.stat().st_size > _LARGEST:
        raise DataError(f"larger than {_LARGEST // 1_000_000} MB")
    return path.read_bytes()


def decode(content: bytes, size: Size | None = None, *, crop: bool, colour: Colour) -> np.ndarray:
    """One image as levels 0 to 255, ``uint8 (H, W, C)``.

    16 bits are rounded to 8, transparent pixels are blended with white, and a rotation that a
    camera noted is applied.

    Args:
        content: of a PNG or JPEG file.
        size: height and width to resize it to, one number for both; None leaves it as it is.
        crop: cut off first what lies outside the largest centred part with the new aspect ratio;
            False stretches the image instead.
        colour: ``grey`` has one channel, ``rgb`` three, ``auto`` as many as the file.

    Raises:
        DataError: saying why it cannot be read.
    """
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as opened:
            if opened.width * opened.height > _MOST_PIXELS:
                raise DataError(f"it has {opened.width}x{opened.height} pixels")
            image = _plain(opened)
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise SyntaxError, struct.error and others, too
        if not content:
            why = "empty"
        elif isinstance(error, UnidentifiedImageError):
            why = "neither PNG nor JPEG"
        else:
            why = str(error) or type(error).__name__
        raise DataError(why) from error
    if colour != "auto":
        image = image.convert("L" if colour == "grey" else "RGB")
    if size is not None:
        image = _resized(image, *sides(size), crop=crop)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def sides(size: Size) -> tuple[int, int]:
    """Height and width."""
    return (size, size) if isinstance(size, int) else size


def _plain(opened: Image.Image) -> Image.Image:
    """The image turned upright, with 8 bits, one channel or three, and nothing transparent."""
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        levels = np.asarray(image).clip(0, 65_535).astype(np.uint32)
        return Image.fromarray(((levels + _LEVEL // 2) // _LEVEL).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        was_grey = opened.mode in ("L", "LA", "1")
        return Image.alpha_composite(white, image).convert("L" if was_grey else "RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _resized(image: Image.Image, height: int, width: int, *, crop: bool) -> Image.Image:
    if crop:
        scale = min(image.width / width, image.height / height)
        kept = max(1, round(width * scale)), max(1, round(height * scale))
        left, top = (image.width - kept[0]) // 2, (image.height - kept[1]) // 2
        image = image.crop((left, top, left + kept[0], top + kept[1]))
    return image.resize((width, height), Image.Resampling.BICUBIC)
