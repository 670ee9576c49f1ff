"""Images in a file of NumPy: what is read is what was written, and what is unclear is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_pyro.data import ArrayFile, Dataset
from vae_pyro.errors import DataError

NUM = 20


def levels(number: int = NUM, top: int = 255, seed: int = 0) -> np.ndarray:
    shape = (number, 6, 5)
    return np.random.default_rng(seed).integers(0, top + 1, shape, dtype=np.uint8)


def load(path: Path, arrays: dict[str, np.ndarray] | np.ndarray, **options: Any) -> Dataset:
    if isinstance(arrays, dict):
        np.savez(path, **arrays)  # type: ignore[arg-type]
    else:
        np.save(path, arrays)
    return ArrayFile(path=str(path), **options).load()


def all_images(data: Dataset) -> torch.Tensor:
    return torch.cat([data.train.images, data.valid.images, data.test.images])


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_every_image_is_in_one_split_bit_for_bit(tmp_path: Path, name: str) -> None:
    images = levels()
    data = load(tmp_path / name, {"images": images} if name == "a.npz" else images)
    assert [len(split) for split in (data.train, data.valid, data.test)] == [14, 2, 4]
    assert data.num_levels == 256
    assert {image.numpy().tobytes() for image in all_images(data)} == {
        image.tobytes() for image in images
    }
    assert not data.train.labels.any()


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    images = levels()
    data = load(tmp_path / "a.npz", {"x": images, "y": np.arange(NUM)[:, None]})
    for split in (data.train, data.valid, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert np.array_equal(image[0], images[label])


def test_splits_of_ones_own_are_used(tmp_path: Path) -> None:
    train, test = levels(), levels(3, seed=1)
    arrays = {"x_train": train, "y_train": np.arange(NUM), "x_test": test, "y_test": np.arange(3)}
    data = load(tmp_path / "a.npz", arrays)
    assert np.array_equal(data.test.images[:, 0], test)
    assert [len(data.train), len(data.valid)] == [18, 2]
    assert torch.equal(data.test.labels, torch.arange(3))
    data = load(tmp_path / "a.npz", {**arrays, "x_valid": levels(5, seed=2)})
    assert np.array_equal(data.train.images[:, 0], train)
    assert np.array_equal(data.valid.images[:, 0], levels(5, seed=2))
    assert not data.valid.labels.any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("place", [1, 3])
def test_channels_may_stand_first_or_last(tmp_path: Path, channels: int, place: int) -> None:
    image = np.stack([levels(seed=seed) for seed in range(channels)], 1)
    data = load(tmp_path / "a.npy", image if place == 1 else np.moveaxis(image, 1, 3))
    assert data.image_shape == (channels, 6, 5)
    assert {i.numpy().tobytes() for i in all_images(data)} == {i.tobytes() for i in image}


def test_a_shape_that_does_not_decide_is_asked_about(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (NUM, 3, 8, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"add data.channels=first or last"):
        load(tmp_path / "a.npy", image)
    assert load(tmp_path / "a.npy", image, channels="first").image_shape == (3, 8, 3)
    assert load(tmp_path / "a.npy", image, channels="last").image_shape == (3, 3, 8)


@given(st.integers(2, 256), st.sampled_from(["uint8", "int64", "float32", "float64", "uint16"]))
@settings(max_examples=30)
def test_levels_come_back_from_any_kind_of_number(
    tmp_path_factory: pytest.TempPathFactory, number: int, kind: str
) -> None:
    """Level k of K is k as a whole number, k / (K - 1) from 0 to 1, and as much of 65535."""
    expected = levels(top=number - 1)
    top = {"uint16": 65535, "float32": 1, "float64": 1}.get(kind)
    written = expected if top is None else expected * (top / (number - 1))
    if kind == "uint16":
        written = written.round()
    path = tmp_path_factory.mktemp("levels") / "a.npy"
    data = load(path, written.astype(kind), levels=number)
    assert data.num_levels == number
    assert {i.numpy().tobytes() for i in all_images(data)} == {i.tobytes() for i in expected}


def test_real_numbers_stay_as_they_are(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(NUM, 6, 5))
    data = load(tmp_path / "a.npy", x, levels="real")
    assert data.num_levels is None
    found = {tuple(image.flatten().tolist()) for image in all_images(data)}
    assert found == {tuple(image.astype(np.float32).flatten().tolist()) for image in x}


def test_the_file_is_split_as_a_folder_is(tmp_path: Path) -> None:
    data, again, other = (load(tmp_path / "a.npy", levels(), split_seed=seed) for seed in (0, 0, 1))
    assert data.checksum == again.checksum != other.checksum


def test_parts_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(tmp_path / "a.npy", levels())
    monkeypatch.setattr("vae_pyro.data.arrays._AT_ONCE", 70)
    assert load(tmp_path / "a.npy", levels()).checksum == whole.checksum


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"pictures": levels()}, {}, "none is called images or x_train"),
        ({"x_test": levels()}, {}, "none is called images or x_train"),
        ({"images": levels(), "x_test": levels()}, {}, "it is unclear which are meant"),
        ({"x_train": levels(), "train": levels()}, {}, "it is unclear which are meant"),
        ({"images": levels() / 255}, {}, "data.levels=256 rounds numbers from 0 to 1"),
        ({"images": levels() * 2.0}, {"levels": 256}, "must be from 0 to 1"),
        ({"images": np.full((9, 2, 2), np.nan)}, {"levels": 256}, "must be from 0 to 1"),
        ({"images": np.full((9, 2, 2), np.nan)}, {"levels": "real"}, "NaN or infinite"),
        ({"images": levels()}, {"levels": 17}, "with 17 levels they must be from 0 to 16"),
        ({"images": levels().astype(int) - 1}, {}, "values from -1 to 254"),
        ({"images": levels() * 1j}, {"levels": 256}, "not numbers"),
        ({"images": levels() * 1j}, {"levels": "real"}, "not numbers"),
        ({"images": levels()[0]}, {}, r"have the shape \\(6, 5\\)"),
        ({"images": levels()[:, :0]}, {}, "at least 1"),
        ({"images": levels(3)}, {}, "leaves no images for valid"),
        ({"images": levels(), "labels": np.arange(3)}, {}, "one whole number for each"),
        ({"images": levels(), "labels": np.full(NUM, 0.5)}, {}, "one whole number for each"),
        ({"images": np.array([object()] * 9)}, {}, "no readable file of NumPy"),
        ({"images": levels()}, {"levels": 1}, "from 2 to 256"),
        ({"images": levels()}, {"test_share": 0.95}, "leave some images for training"),
    ],
)
def test_what_is_unclear_is_refused(
    arrays: dict[str, np.ndarray], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message.replace("\\\\", "\\")):
        load(tmp_path / "a.npz", arrays, **options)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"a text"])
def test_damaged_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no readable file of NumPy"):
        ArrayFile(path=str(path)).load()


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the file of your images"):
        ArrayFile().load()
    with pytest.raises(DataError, match="there is no file"):
        ArrayFile(path=str(tmp_path / "a.npz")).load()
