"""Data sets in files: read whole and unchanged, or one message on what is missing or damaged."""

import os
import pickle
import shutil
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import MNIST_ROOT, needs_mnist
from vae_pyro.data import CIFAR10, KMNIST, MNIST, FashionMNIST, ImageSource, Omniglot
from vae_pyro.errors import DataError


@needs_mnist
def test_mnist_is_read_whole_and_unchanged() -> None:
    data = MNIST(root=str(MNIST_ROOT)).load()
    assert [len(split) for split in (data.train, data.valid, data.test)] == [50_000, 10_000, 10_000]
    assert data.image_shape == (1, 28, 28)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]  # the first five of the original file
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = torch.cat([data.train.images, data.valid.images]).double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)  # the figures everyone quotes
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)


@pytest.fixture
def mnist_copy(tmp_path: Path) -> Path:
    shutil.copytree(
        MNIST_ROOT / "MNIST" / "raw",
        tmp_path / "MNIST" / "raw",
        ignore=shutil.ignore_patterns("*.gz"),
    )
    return tmp_path


@needs_mnist
@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_file_is_named(mnist_copy: Path, damage: str) -> None:
    path = mnist_copy / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[1234] ^= 1
    path.write_bytes({"truncate": content[:-7], "flip": content, "empty": b""}[damage])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte is truncated or damaged.*delete"):
        MNIST(root=str(mnist_copy)).load()


def idx(shape: tuple[int, ...], announced: tuple[int, ...]) -> bytes:
    header = bytes([0, 0, 8, len(announced)]) + np.array(announced, ">u4").tobytes()
    return header + bytes(int(np.prod(shape)))


@pytest.fixture
def blank_fashion(tmp_path: Path) -> Path:
    """The four files of a member of the family, all pixels and labels 0."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        images, labels = (count, 28, 28), (count,)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(images, images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels, labels))
    return raw


def test_a_header_is_compared_before_its_sizes_are_believed(
    blank_fashion: Path, tmp_path: Path
) -> None:
    source = FashionMNIST(root=str(tmp_path))
    assert len(source.load().test) == 10_000
    path = blank_fashion / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for announced in ((2**31, 28, 28), (10_000, 2**31, 2**31), (28, 10_000, 28), (0, 28, 28)):
        path.write_bytes(idx((10_000, 28, 28), announced))
        with pytest.raises(DataError, match=r"t10k-images.* damaged \(its header is .*delete it"):
            source.load()
    path.write_bytes(b"\0\0\x0d\x03" + whole[4:])  # numbers of four bytes each
    with pytest.raises(DataError, match="its header is 00000d03"):
        source.load()


@pytest.mark.timeout(60)
def test_a_file_of_absurd_size_or_a_pipe_is_not_read(blank_fashion: Path, tmp_path: Path) -> None:
    path = blank_fashion / "train-images-idx3-ubyte"
    os.truncate(path, 2**36)  # of zeros, which take no room on the disk
    with pytest.raises(DataError, match="68,719,476,736 bytes of 47,040,016"):
        FashionMNIST(root=str(tmp_path)).load()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"train-images.* is not a regular file.*data=digits"):
        FashionMNIST(root=str(tmp_path)).load()


@needs_mnist
def test_a_compressed_file_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(MNIST_ROOT / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*ubyte"))
    assert len(MNIST(root=str(tmp_path)).load().test) == 10_000


def test_missing_files_are_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision import datasets

    # A port where nobody listens: the download really fails, also where there is a network.
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError) as caught:
        MNIST(root=str(tmp_path)).load()
    message = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in message
    assert "t10k-labels-idx1-ubyte" in message
    assert "data=digits" in message


@needs_mnist
@pytest.mark.parametrize("source", [FashionMNIST, KMNIST])
def test_the_likes_of_mnist_are_read_as_mnist_is(
    source: Callable[..., ImageSource], tmp_path: Path
) -> None:
    """Their files have the format and the sizes of MNIST's, whose content stands in here."""
    raw = tmp_path / source.__name__ / "raw"
    shutil.copytree(MNIST_ROOT / "MNIST" / "raw", raw, ignore=shutil.ignore_patterns("*.gz"))
    data = source(root=str(tmp_path)).load()
    assert data.checksum == MNIST(root=str(MNIST_ROOT)).load().checksum
    (raw / "t10k-images-idx3-ubyte").write_bytes(b"too short")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte is truncated or damaged"):
        source(root=str(tmp_path)).load()


@pytest.fixture
def small_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """CIFAR-10's folder with 20 images a file, and torchvision told of their checksums."""
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    content = {name: generator.integers(0, 256, (20, 3072), dtype=np.uint8) for name in names}
    sums = {}
    for name, pixels in content.items():
        packed = pickle.dumps({"data": pixels, "labels": list(range(10)) * 2})
        (folder / name).write_bytes(packed)
        sums[name] = md5(packed).hexdigest()
    meta = pickle.dumps({"label_names": list("abcdefghij")})
    (folder / "batches.meta").write_bytes(meta)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [(n, sums[n]) for n in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [("test_batch", sums["test_batch"])])
    key = {"filename": "batches.meta", "key": "label_names", "md5": md5(meta).hexdigest()}
    monkeypatch.setattr(datasets.CIFAR10, "meta", key)
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    return content


def test_cifar_keeps_its_colours(small_cifar: dict[str, np.ndarray], tmp_path: Path) -> None:
    data = CIFAR10(root=str(tmp_path)).load()
    assert data.image_shape == (3, 32, 32)
    assert data.num_levels == 256
    assert [len(part) for part in (data.train, data.valid, data.test)] == [90, 10, 20]
    first = torch.from_numpy(small_cifar["data_batch_1"][0].reshape(3, 32, 32))  # red, green, blue
    assert torch.equal(data.train.images[0], first)
    assert torch.equal(
        data.valid.images[-1], torch.from_numpy(small_cifar["data_batch_5"][-1].reshape(3, 32, 32))
    )
    assert data.test.labels.tolist() == list(range(10)) * 2


@pytest.mark.usefixtures("small_cifar")
def test_a_damaged_cifar_file_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match=r"CIFAR-10 is not in .*data=digits"):
        CIFAR10(root=str(tmp_path)).load()


@pytest.fixture
def small_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Omniglot's folders with two alphabets of two characters, one stroke in each image."""
    from torchvision import datasets

    folder = tmp_path / "omniglot-py"
    sums = {}
    for part in ("images_background", "images_evaluation"):
        for number, character in enumerate(("A/c1", "A/c2", "B/c1", "B/c2")):
            path = folder / part / character
            path.mkdir(parents=True)
            for drawer in range(5):
                image = np.full((105, 105), True)
                image[15 * number : 15 * number + 15] = False  # black on white
                Image.fromarray(image).save(path / f"{number:04}_{drawer:02}.png")
        with ZipFile(folder / f"{part}.zip", "w") as file:
            file.writestr("empty", "")
        sums[part] = md5((folder / f"{part}.zip").read_bytes()).hexdigest()
    monkeypatch.setattr(datasets.Omniglot, "zips_md5", sums)
    monkeypatch.setattr(datasets.Omniglot, "download_url_prefix", "http://127.0.0.1:9")
    return folder


@pytest.mark.usefixtures("small_omniglot")
def test_omniglot_is_white_on_black_and_small(tmp_path: Path) -> None:
    data = Omniglot(root=str(tmp_path)).load()
    assert data.image_shape == (1, 28, 28)
    assert [len(part) for part in (data.train, data.valid, data.test)] == [18, 2, 20]
    assert data.test.labels.tolist() == [0] * 10 + [1] * 10
    # A stroke of 15 of 105 rows is 4 of 28: white at the top of the first, lower in the next.
    assert torch.equal(data.test.images[0, 0, :, 0].nonzero().flatten(), torch.arange(4))
    assert torch.equal(data.test.images[5, 0, :, 0].nonzero().flatten(), torch.arange(4, 8))
    assert data.test.images[:, 0].double().mean().item() == pytest.approx(255 * 4 / 28, rel=1e-6)
    together = torch.cat([data.train.images, data.valid.images]).flatten(1).double().mean(1)
    assert len(together) == 20


def test_a_missing_omniglot_is_named(small_omniglot: Path, tmp_path: Path) -> None:
    shutil.rmtree(small_omniglot)
    with pytest.raises(DataError, match=r"Omniglot is not in .*images_background.zip"):
        Omniglot(root=str(tmp_path)).load()
    assert not small_omniglot.exists()
