"""Files that papers published: read bit for bit, and what is missing or damaged is named."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import MNIST_ROOT, needs_mnist
from vae_pyro.data import KMNIST, MNIST, FashionMNIST, ImageSource, OmniglotBurda
from vae_pyro.data.larochelle import parse_amat
from vae_pyro.errors import DataError
from vae_pyro.likelihoods import Bernoulli

PIXELS = 784


def binary(number: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2, (number, PIXELS))


def amat(images: np.ndarray, *, end: str = "\n") -> bytes:
    """As the published files are: numbers with one space between them, one image a line."""
    return "".join(" ".join(map(str, image)) + end for image in images).encode()


@given(
    st.integers(1, 5),
    st.integers(0, 99),
    st.sampled_from(["\n", " \n", "\r\n", "\t\n\n"]),
    st.booleans(),
)
def test_images_come_back_as_another_reader_has_them(
    number: int, seed: int, end: str, is_ended: bool
) -> None:
    images = binary(number, seed)
    content = amat(images, end=end)
    content = content if is_ended else content.rstrip()
    found = parse_amat(content)
    assert found.shape == (number, 1, 28, 28)
    assert found.dtype == torch.uint8
    assert np.array_equal(
        found.reshape(number, PIXELS).numpy(), np.loadtxt(BytesIO(content), ndmin=2)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.replace(b"1", b"2", 1), "line 1 has '2', but pixels are 0 or 1"),
        (lambda c: c + b"0.5", r"line 4 has '\.'"),
        (lambda c: c[:-7], "line 3 has 781 pixels, not 784"),
        (lambda c: c + b"0\n", "line 4 has 1 pixels"),
        (lambda c: c.replace(b" ", b"", 1), "line 1 has two pixels without a space"),
        (lambda c: c.replace(b"\n", b" ", 1), "line 1 has 1,568 pixels"),
        (lambda _: b"", "it has no images"),
        (lambda _: b" \n\n", "it has no images"),
        (lambda c: c[:1600] + b"\x00" + c[1600:], "line 2 has"),
    ],
)
def test_other_content_is_refused_with_its_line(change, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        parse_amat(change(amat(binary(3))))


@given(st.binary(max_size=3000))
def test_any_bytes_are_images_or_one_message(content: bytes) -> None:
    try:
        assert parse_amat(content).shape[1:] == (1, 28, 28)
    except ValueError as error:
        assert "\n" not in str(error)


@pytest.fixture
def published(tmp_path: Path) -> dict[str, np.ndarray]:
    """Three small files in Larochelle's format, under ``tmp_path``."""
    images = {"train": binary(40), "valid": binary(20, 1), "test": binary(30, 2)}
    (tmp_path / "binarized_mnist").mkdir()
    for part, pixels in images.items():
        (tmp_path / f"binarized_mnist/binarized_mnist_{part}.amat").write_bytes(amat(pixels))
    return images


def test_the_published_images_are_scored_as_they_are(
    published: dict[str, np.ndarray], tmp_path: Path
) -> None:
    data = MNIST("larochelle", root=str(tmp_path), split="45/10").load()
    together = np.concatenate([published["train"], published["valid"]])
    for split, expected in (
        (data.train, together[:45]),
        (data.valid, together[-10:]),
        (data.test, published["test"]),
    ):
        assert np.array_equal(split.images.flatten(1).numpy(), expected)
        assert not split.labels.any()
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        x = Bernoulli(data.num_levels).prepare(data.train.images, generator)
        assert np.array_equal(x.flatten(1).numpy(), together[:45])


def test_a_missing_or_damaged_published_file_is_named(
    published: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "binarized_mnist/binarized_mnist_valid.amat"
    source = MNIST("larochelle", root=str(tmp_path), split="40/20")
    assert len(source.load().train) == len(published["train"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"valid\.amat cannot be read \(line 20 has 734 pixels"):
        source.load()
    path.unlink()
    with pytest.raises(DataError, match=r"valid\.amat does not exist: download .* from http://www"):
        source.load()


@pytest.mark.parametrize("source", [FashionMNIST, KMNIST, OmniglotBurda])
def test_only_mnist_has_published_binary_files(source: type[ImageSource], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"binarisation=larochelle: .* choose from dynamic, static"):
        source("larochelle", root=str(tmp_path)).load()  # type: ignore[call-arg]


@needs_mnist
def test_a_split_takes_the_first_and_the_last_images() -> None:
    usual = MNIST(root=str(MNIST_ROOT)).load()
    burda = MNIST(root=str(MNIST_ROOT), split="59600/400").load()
    few = MNIST(root=str(MNIST_ROOT), split="7/3").load()
    official = torch.cat([usual.train.images, usual.valid.images])
    labels = torch.cat([usual.train.labels, usual.valid.labels])
    for data, first, last in ((usual, 50_000, 10_000), (burda, 59_600, 400), (few, 7, 3)):
        assert torch.equal(data.train.images, official[:first])
        assert torch.equal(data.train.labels, labels[:first])
        assert torch.equal(data.valid.images, official[-last:])
        assert torch.equal(data.valid.labels, labels[-last:])
        assert torch.equal(data.test.images, usual.test.images)
        assert data.test_checksum == usual.test_checksum
        assert (data.checksum == usual.checksum) == (data is usual)


@needs_mnist
@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("59600/401", "needs 60,001 images, but there are 60,000"),
        ("60000/0", "write how many images"),
        ("50000", "write how many images"),
        ("50000/", "write how many images"),
        ("-5/5", "write how many images"),
        ("a/b", "write how many images"),
        ("9" * 40 + "/1", "write how many images"),
        ("1/1\n", "write how many images"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MNIST(root=str(MNIST_ROOT), split=split).load()


def chardata(path: Path, train: np.ndarray, test: np.ndarray, **more: np.ndarray) -> None:
    """As MATLAB writes it: an image ``(28, 28)`` is a column, read downwards."""
    path.parent.mkdir(exist_ok=True)
    columns = {
        name: np.stack([image.flatten(order="F") for image in images], 1)
        for name, images in (("data", train), ("testdata", test))
    }
    scipy.io.savemat(path, columns | more)


@pytest.fixture
def characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    monkeypatch.setattr(OmniglotBurda, "num_valid", 4)
    random = np.random.default_rng(0)
    train, test = random.uniform(size=(20, 28, 28)), random.uniform(size=(5, 28, 28))
    chardata(tmp_path / "omniglot_burda/chardata.mat", train, test)
    return train, test


def test_chardata_is_upright_and_split_as_in_the_papers_code(
    characters: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    train, test = characters
    data = OmniglotBurda(root=str(tmp_path)).load()
    assert np.array_equal(data.test.images[:, 0].numpy(), np.rint(test * 255))
    order = np.random.RandomState(seed=123).permutation(20)
    shuffled = np.rint(train * 255)[order]
    assert np.array_equal(data.train.images[:, 0].numpy(), shuffled[:-4])
    assert np.array_equal(data.valid.images[:, 0].numpy(), shuffled[-4:])
    assert data.num_levels == 256


def test_the_real_file_has_1345_for_validation() -> None:
    assert OmniglotBurda.num_valid == 1_345


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "chardata.mat does not exist: download it from https://github.com/yburda"),
        (b"", "no readable MATLAB file"),
        (b"MATLAB 5.0 MAT-file" + bytes(300), "no readable MATLAB file"),
        ({"testdata": np.zeros((784, 3))}, "has no array 'data'"),
        ({"data": np.zeros((783, 9)), "testdata": np.zeros((784, 3))}, r"is float64 \(783, 9\)"),
        ({"data": np.full((784, 9), 1.5), "testdata": np.zeros((784, 3))}, "from 0 to 1"),
        ({"data": np.full((784, 9), np.nan), "testdata": np.zeros((784, 3))}, "from 0 to 1"),
        ({"data": np.zeros((784, 4)), "testdata": np.zeros((784, 3))}, "none are left"),
        ({"data": np.zeros((784, 9)), "testdata": np.zeros((784, 0))}, "from 0 to 1"),
    ],
)
@pytest.mark.usefixtures("characters")
def test_another_mat_file_is_refused(
    content: bytes | dict[str, np.ndarray] | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "omniglot_burda/chardata.mat"
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        scipy.io.savemat(path, content)
    with pytest.raises(DataError, match=message) as caught:
        OmniglotBurda(root=str(tmp_path)).load()
    assert re.search(re.escape(str(path)), str(caught.value))
