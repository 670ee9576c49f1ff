"""A folder of one's own images: what is read is what was written, and bad files are named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vae_pyro.config import build
from vae_pyro.data import ImageFolder, ImageSource
from vae_pyro.errors import ConfigError, DataError

NUM = 20


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def numbered(number: int, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    """An image that differs from all others."""
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(NUM):
        save(tmp_path / f"own/{number:02}.png", numbered(number))
    return tmp_path / "own"


def test_every_image_is_in_one_split_bit_for_bit(folder: Path) -> None:
    data = ImageFolder(root=str(folder)).load()
    assert [len(split) for split in (data.train, data.valid, data.test)] == [14, 2, 4]
    assert data.num_levels == 256
    found = torch.cat([data.train.images, data.valid.images, data.test.images])
    assert found.shape == (NUM, 1, 6, 5)
    assert {image.numpy().tobytes() for image in found} == {
        numbered(number).tobytes() for number in range(NUM)
    }
    assert not data.train.labels.any()


def test_the_split_depends_on_its_seed_alone(folder: Path) -> None:
    data, again, other = (
        ImageFolder(root=str(folder), split_seed=seed).load() for seed in (0, 0, 1)
    )
    assert data.checksum == again.checksum != other.checksum


def test_the_other_shares(folder: Path) -> None:
    data = ImageFolder(root=str(folder), valid_share=0.25, test_share=0.5).load()
    assert [len(split) for split in (data.train, data.valid, data.test)] == [5, 5, 10]


def test_folders_of_classes_are_labels(tmp_path: Path) -> None:
    for number in range(NUM):
        save(tmp_path / ("dog", "cat")[number % 2] / f"deep/{number}.png", numbered(number))
    data = ImageFolder(root=str(tmp_path)).load()
    of = {numbered(number).tobytes(): 1 - number % 2 for number in range(NUM)}  # cat, dog
    for split in (data.train, data.valid, data.test):
        for image, label in zip(split.images, split.labels, strict=True):
            assert of[image.numpy().tobytes()] == label
    assert len(ImageFolder(root=str(tmp_path), classes=(1,)).load().train) < len(data.train)


@pytest.mark.parametrize("valid", ["valid", "val", None])
def test_folders_of_splits_are_kept(valid: str | None, tmp_path: Path) -> None:
    for number in range(NUM):
        name = "Train" if number < 12 else "test" if number < 17 else valid or "Train"
        save(tmp_path / name / ("a", "b")[number % 2] / f"{number:02}.png", numbered(number))
    data = ImageFolder(root=str(tmp_path)).load()
    assert {image.numpy().tobytes() for image in data.test.images} == {
        numbered(number).tobytes() for number in range(12, 17)
    }
    assert len(data.valid) == (3 if valid else 2)
    assert set(data.test.labels.tolist()) == {0, 1}


@pytest.mark.parametrize(
    ("array", "mode", "levels"),
    [
        (np.array([[0, 255, 7]], np.uint8), None, [[[0]], [[255]], [[7]]]),
        (np.array([[0, 65_535, 257, 128, 129]], np.uint16), None, [[[0, 255, 1, 0, 1]]]),
        (np.array([[False, True]]), None, [[[0, 255]]]),
        (np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), None, [[[1, 4]], [[2, 5]], [[3, 6]]]),
        # Transparent becomes white; half of 100 over white is 177.5.
        (
            np.array([[[9, 9, 9, 0], [1, 2, 3, 255]]], np.uint8),
            None,
            [[[255, 1]], [[255, 2]], [[255, 3]]],
        ),
        (np.array([[[9, 0], [5, 255]]], np.uint8), "LA", [[[255, 5]]]),
        (np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), "P", [[[1, 4]], [[2, 5]], [[3, 6]]]),
    ],
)
def test_every_kind_of_png(
    array: np.ndarray, mode: str | None, levels: list[list[list[int]]], tmp_path: Path
) -> None:
    image = Image.fromarray(array)
    if mode == "P":
        image = image.quantize(4)
    for number in range(6):
        image.save(tmp_path / f"{number}.png")
    data = ImageFolder(root=str(tmp_path)).load()
    expected = torch.tensor(levels, dtype=torch.uint8)
    if array.ndim == 2 and array.dtype == np.uint8:
        expected = expected.permute(1, 2, 0)
    assert torch.equal(data.train.images[0], expected)


def test_a_grey_image_among_colours_gets_three_channels(folder: Path) -> None:
    save(folder / "colour.png", numbered(99, (6, 5, 3)))
    data = ImageFolder(root=str(folder)).load()
    assert data.image_shape == (3, 6, 5)
    grey = next(
        x
        for x in data.train.images
        if not torch.equal(x[0], torch.from_numpy(numbered(99, (6, 5, 3))[..., 0]))
    )
    assert torch.equal(grey[0], grey[1])
    assert ImageFolder(root=str(folder), colour="grey").load().image_shape == (1, 6, 5)
    assert ImageFolder(root=str(folder), colour="rgb").load().image_shape == (3, 6, 5)


def test_a_camera_s_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    for number in range(6):
        Image.new("RGB", (8, 4), (200, 10, 10)).save(tmp_path / f"{number}.jpg", exif=exif)
    assert ImageFolder(root=str(tmp_path)).load().image_shape == (3, 8, 4)


def test_resizing_keeps_what_is_constant_and_cuts_the_sides(tmp_path: Path) -> None:
    """Left third black, the rest white: with crop, the right half of a square is white."""
    array = np.full((30, 90), 255, np.uint8)
    array[:, :30] = 0
    for number in range(6):
        save(tmp_path / f"{number}.png", array)
    cropped = ImageFolder(root=str(tmp_path), size=10).load().train.images[0, 0]
    assert cropped.unique().tolist() == [255]  # the middle third
    stretched = ImageFolder(root=str(tmp_path), size=(10, 9), crop=False).load().train.images[0, 0]
    assert stretched.shape == (10, 9)
    assert stretched[:, 0].unique().tolist() == [0]
    assert stretched[:, -1].unique().tolist() == [255]


def refusal(folder: Path, **options: object) -> str:
    with pytest.raises(DataError) as caught:
        ImageFolder(root=str(folder), **options).load()  # type: ignore[arg-type]
    return str(caught.value)


def test_bad_files_are_named_counted_and_skipped_on_request(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = (folder / "00.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("seen on a walk")
    (folder / "nothing.png").touch()
    Image.new("L", (5, 6)).save(folder / "moving.gif")
    (folder / ".DS_Store").write_bytes(b"x")
    message = refusal(folder)
    assert message.startswith("4 of 24 files in ")
    assert "cut.png (" in message
    assert "notes.txt (neither PNG nor JPEG)" in message
    assert "nothing.png (empty)" in message
    assert "moving.gif (neither PNG nor JPEG)" in message
    assert "data.bad_files=skip" in message
    data = ImageFolder(root=str(folder), bad_files="skip").load()
    assert sum(map(len, (data.train, data.valid, data.test))) == NUM
    assert "left out: 4 of 24 files" in caplog.text


def test_a_long_list_is_cut(folder: Path) -> None:
    for number in range(9):
        (folder / f"{number}.txt").write_text("x")
    assert "and 4 more" in refusal(folder)


def test_mixed_sizes_are_named(folder: Path) -> None:
    save(folder / "large.png", numbered(99, (9, 7)))
    message = refusal(folder)
    assert (
        "2 sizes (height x width): 6x5 (20 files, as 00.png), 9x7 (1 files, as large.png)"
        in message
    )
    assert "data.size=64" in message
    assert ImageFolder(root=str(folder), size=8).load().image_shape == (1, 8, 8)


def test_folders_without_images(tmp_path: Path) -> None:
    assert "no images in" in refusal(tmp_path)
    (tmp_path / "a").mkdir()
    assert "no images in" in refusal(tmp_path)
    (tmp_path / "a/x.txt").write_text("x")
    assert "no images are left" in refusal(tmp_path, bad_files="skip")
    assert "is not a folder" in refusal(tmp_path / "missing")
    with pytest.raises(DataError, match=r"data\.root=FOLDER"):
        ImageFolder().load()


def test_too_few_images(tmp_path: Path) -> None:
    save(tmp_path / "a.png", numbered(0))
    save(tmp_path / "b.png", numbered(1))
    assert "leaves no images for valid and test: there are 2" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("places", "why"),
    [
        (("train/a.png", "c/b.png"), "needs train and test"),
        (("train/a.png", "test/b.png", "more/c.png"), "needs train and test"),
        (("train/a.png", "valid/b.png"), "needs train and test"),
        (("train/a.png", "test/b.png", "c.png"), "files beside the folders"),
        (("train/a.png", "train/k/c.png", "test/b.png"), "files beside folders"),
        (("a.png", "k/b.png"), "files beside folders"),
    ],
)
def test_layouts_that_could_mean_two_things(
    places: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    for number, place in enumerate(places):
        save(tmp_path / place, numbered(number))
    assert why in refusal(tmp_path)


def test_test_images_that_were_trained_on_are_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(NUM):
        save(folder / f"again-{number:02}.png", numbered(number))
    data = ImageFolder(root=str(folder)).load()
    training = {image.numpy().tobytes() for image in data.train.images}
    repeated = sum(image.numpy().tobytes() in training for image in data.test.images)
    assert repeated > 0
    assert f"{repeated} of 8 test images are also training images" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"valid_share": 0.0},
        {"valid_share": 0.5, "test_share": 0.5},
        {"size": 0},
        {"size": [4, 0]},
        {"size": [1, 2, 3]},
        {"colour": "blue"},
        {"bad_files": "keep"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], folder: Path) -> None:
    options |= {"_target_": "vae_pyro.data.ImageFolder", "root": str(folder)}
    with pytest.raises((ConfigError, DataError), match=r"data\."):
        build(options, ImageSource, "data").load()


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=400), head=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8"]))
def test_no_content_of_a_file_ends_in_a_traceback(
    data: bytes, head: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "a.png").write_bytes(head + data)
    assert "a.png (" in refusal(folder)
