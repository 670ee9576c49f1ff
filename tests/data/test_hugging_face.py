"""Data sets of the Hugging Face library, saved to disk: the same images, labels and splits."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.data.test_images import numbered
from vae_pyro.data import Dataset, HuggingFace
from vae_pyro.errors import DataError

datasets = pytest.importorskip("datasets")
NUM = 20


def table(numbers: range, shape: tuple[int, ...] = (6, 5)) -> Any:
    features = {
        "name": datasets.Value("string"),
        "picture": datasets.Image(),
        "kind": datasets.ClassLabel(names=["a", "b", "c"]),
    }
    return datasets.Dataset.from_dict(
        {
            "name": [str(number) for number in numbers],
            "picture": [Image.fromarray(numbered(number, shape)) for number in numbers],
            "kind": [number % 3 for number in numbers],
        },
        features=datasets.Features(features),
    )


def load(folder: Path, saved: Any, **options: int) -> Dataset:
    saved.save_to_disk(str(folder))
    return HuggingFace(name=str(folder), **options).load()


def known(split: torch.Tensor) -> list[int]:
    """The numbers of the images of a split."""
    every = {numbered(number).tobytes(): number for number in range(100)}
    return [every[image.numpy().tobytes()] for image in split]


def test_a_table_is_split_at_random(tmp_path: Path) -> None:
    data = load(tmp_path / "d", table(range(NUM)))
    splits = [data.train, data.valid, data.test]
    assert [len(split) for split in splits] == [14, 2, 4]
    assert sorted(number for split in splits for number in known(split.images)) == list(range(NUM))
    for split in splits:
        assert split.labels.tolist() == [number % 3 for number in known(split.images)]


def test_its_own_splits_are_used(tmp_path: Path) -> None:
    parts = {"train": range(10), "validation": range(10, 13), "test": range(13, 17)}
    saved = datasets.DatasetDict({name: table(numbers) for name, numbers in parts.items()})
    data = load(tmp_path / "d", saved)
    assert known(data.train.images) == list(range(10))
    assert known(data.valid.images) == [10, 11, 12]
    assert known(data.test.images) == [13, 14, 15, 16]
    del saved["validation"]
    data = load(tmp_path / "e", saved)
    assert [len(data.train), len(data.valid), len(data.test)] == [9, 1, 4]


def test_images_are_read_as_those_of_a_folder(tmp_path: Path) -> None:
    data = load(tmp_path / "d", table(range(NUM), (9, 12, 3)), size=6)
    assert data.image_shape == (3, 6, 6)
    assert data.num_levels == 256


def test_columns_can_be_named(tmp_path: Path) -> None:
    saved = table(range(NUM)).add_column("other", list(range(NUM)))
    saved.save_to_disk(str(tmp_path / "d"))
    data = HuggingFace(
        name=str(tmp_path / "d"), image_column="picture", label_column="other"
    ).load()
    assert data.test.labels.tolist() == known(data.test.images)
    with pytest.raises(DataError, match=r"data.label_column=colour: columns are name, picture"):
        HuggingFace(name=str(tmp_path / "d"), label_column="colour").load()
    with pytest.raises(DataError, match=r"data.image_column=other: this column holds no images"):
        HuggingFace(name=str(tmp_path / "d"), image_column="other").load()
    for column in ("name", "picture"):
        with pytest.raises(DataError, match=f"the labels in {column} are no whole numbers"):
            HuggingFace(name=str(tmp_path / "d"), label_column=column).load()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the data set"):
        HuggingFace().load()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        HuggingFace(name=str(tmp_path / "empty")).load()
    with pytest.raises(DataError, match="has no column of images: its columns are name"):
        load(tmp_path / "d", table(range(NUM)).select_columns("name"))
    with pytest.raises(DataError, match="none is train"):
        load(tmp_path / "e", datasets.DatasetDict({"test": table(range(NUM))}))


def test_damaged_images_are_named(tmp_path: Path) -> None:
    rows = [{"bytes": b"no picture", "path": None}]
    images = [{"bytes": _png(number), "path": None} for number in range(NUM)] + rows
    saved = datasets.Dataset.from_dict(
        {"image": images}, features=datasets.Features({"image": datasets.Image(decode=False)})
    )
    with pytest.raises(DataError, match=r"1 of 21 files .*all\[20\] \(neither PNG nor JPEG\)"):
        load(tmp_path / "d", saved)
    data = HuggingFace(name=str(tmp_path / "d"), bad_files="skip").load()
    assert len(data.train) + len(data.valid) + len(data.test) == NUM


def _png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered(number)).save(buffer, format="PNG")
    return buffer.getvalue()
