"""Splits, binarisation, dequantisation, batches."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vae_pyro.data import Dataset, Digits, ImageSource, batches
from vae_pyro.data.dataset import Split
from vae_pyro.errors import DataError
from vae_pyro.likelihoods import Bernoulli, Categorical
from vae_pyro.likelihoods.preparation import binarise


def rows(levels: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in levels}


def test_digits_are_all_there_once_and_stratified(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    splits = (digits.train, digits.valid, digits.test)
    assert [len(split) for split in splits] == [1197, 300, 300]
    together = torch.cat([split.images for split in splits])
    everything = torch.from_numpy(load_digits().images.astype("uint8"))
    assert sorted(rows(together)) == sorted(rows(everything))
    assert digits.image_shape == (1, 8, 8)
    assert together.max() == digits.num_levels - 1 == 16
    for split in splits:
        counts = torch.bincount(split.labels, minlength=10) / len(split)
        assert (counts - 0.1).abs().max() < 0.01


def test_the_split_is_scikit_learns(digits: Dataset) -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    levels, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(range(1797), test_size=300, stratify=labels, random_state=0)
    train, valid = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=0)
    for split, index in ((digits.train, train), (digits.valid, valid), (digits.test, test)):
        assert (split.images.reshape(-1, 64).numpy() == levels[index]).all()
        assert (split.labels.numpy() == labels[index]).all()


def test_loading_twice_gives_the_same_data(digits: Dataset) -> None:
    assert Digits().load().checksum == digits.checksum
    assert digits.binarised_once().checksum != digits.checksum


def test_dynamic_binarisation_draws_anew_and_static_does_not(digits: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (binarise(digits.train.images, 17, generator) for _ in range(2))
    assert not torch.equal(first, second)
    fixed = digits.binarised_once()
    assert set(fixed.train.images.unique().tolist()) == {0, 16}
    first, second = (binarise(fixed.train.images, 17, generator) for _ in range(2))
    assert torch.equal(first, second)
    other = Digits(preparation_seed=1).load().binarised_once()
    assert not torch.equal(other.train.images, fixed.train.images)


@given(st.integers(1, 50), st.integers(1, 60), st.integers(0, 100))
def test_an_epoch_holds_every_image_once(num_images: int, batch_size: int, seed: int) -> None:
    levels = torch.arange(num_images).reshape(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(seed)
    parts = list(batches(levels, lambda part: part, batch_size, generator))
    assert [len(part) for part in parts[:-1]] == [batch_size] * (len(parts) - 1)
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(num_images))


def test_large_images_are_prepared_a_few_batches_at_a_time() -> None:
    images = torch.arange(600, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 64, 64)
    sizes = []

    def prepare(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return part[..., 0, 0]

    parts = list(batches(images, prepare, 50, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == 12 * [50]
    assert sizes == [250, 250, 100]  # of at most 2^20 pixels, and of whole batches
    assert sorted(torch.cat(parts).flatten().tolist()) == list(range(600))


@given(st.sets(st.integers(0, 9), min_size=1))
def test_only_the_classes_asked_for_are_kept(classes: set[int]) -> None:
    whole, part = Digits().load(), Digits(classes=tuple(sorted(classes))).load()
    for name in ("train", "valid", "test"):
        before, after = getattr(whole, name), getattr(part, name)
        assert set(after.labels.tolist()) == classes
        kept = [label in classes for label in before.labels.tolist()]
        assert torch.equal(after.images, before.images[kept])
        assert torch.equal(after.labels, before.labels[kept])
    assert (part.checksum == whole.checksum) == (len(classes) == 10)


def test_a_class_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"no image has a label of \[12\].*choose among these"):
        Digits(classes=(12,)).load()


def levels(count: int = 4, top: int = 16, dtype: torch.dtype = torch.uint8) -> Split:
    images = torch.full((count, 1, 2, 3), top, dtype=dtype)
    return Split(images, torch.zeros(count, dtype=torch.int64))


def real(value: float = 0.5) -> Split:
    images = torch.full((4, 1, 2, 3), 0.5)
    images[3, 0, 1, 1:] = value
    return Split(images, torch.zeros(4, dtype=torch.int64))


class Given(ImageSource):
    """A user's source, which gives what it was given."""

    dataset: Dataset

    def _read(self) -> Dataset:
        return self.dataset


def load(dataset: Dataset) -> Dataset:
    source = Given()
    object.__setattr__(source, "dataset", dataset)
    return source.load()


LEVELS = Dataset(levels(), levels(), levels(), 17)
REAL = Dataset(real(), real(), real(), None)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize(
    ("dataset", "bad", "message"),
    [
        (LEVELS, levels(top=17), r"24 of 24 .* {} split are not levels from 0 to 16: rescale"),
        (LEVELS, levels(count=0), r"images of the {} split must have the shape .*\(0, 1, 2, 3\)"),
        (LEVELS, levels(dtype=torch.int64), r"{} split are torch.int64, but must be torch.uint8"),
        (LEVELS, Split(levels().images, torch.zeros(3)), r"{} split has 4 images but labels"),
        (LEVELS, Split(levels().images[:, 0], torch.zeros(4)), r"the {} split must have the shape"),
        (REAL, real(math.nan), r"2 of 24 pixel values of the {} split are not finite .* replace"),
        (REAL, real(-math.inf), r"2 of 24 pixel values of the {} split are not finite"),
        (REAL, Split(real().images.double(), torch.zeros(4)), r"{} split are torch.float64, but"),
    ],
)
def test_what_is_wrong_in_any_split_is_refused(
    dataset: Dataset, bad: Split, message: str, split: str
) -> None:
    load(dataset)
    with pytest.raises(DataError, match=message.format(split)):
        load(replace(dataset, **{split: bad}))


@pytest.mark.parametrize("num_levels", [0, 1, 257])
def test_a_number_of_levels_that_a_byte_has_not(num_levels: int) -> None:
    with pytest.raises(DataError, match="num_levels must be from 2 to 256"):
        load(replace(LEVELS, num_levels=num_levels))


def test_splits_of_several_shapes() -> None:
    other: dict[str, Any] = {"images": torch.zeros(4, 1, 3, 2, dtype=torch.uint8)}
    with pytest.raises(
        DataError, match=r"test split has the shape \(1, 3, 2\), of the train split"
    ):
        load(replace(LEVELS, test=replace(LEVELS.test, **other)))


def test_large_finite_numbers_are_not_refused() -> None:
    """Their sum is not finite in float32."""
    assert len(load(replace(REAL, test=real(3e38))).test) == 4


def test_checking_as_many_images_as_mnist_has_takes_no_time() -> None:
    def blank(count: int) -> Split:
        return Split(torch.zeros(count, 1, 28, 28), torch.zeros(count, dtype=torch.int64))

    dataset = Dataset(blank(50_000), blank(10_000), blank(10_000), None)
    start = time.perf_counter()
    dataset.check()
    assert time.perf_counter() - start < 1


def test_static_binarisation_reaches_a_notebook() -> None:
    """Without a command: fit and prepared see the images that were binarised once."""
    static = Digits(binarisation="static").load()
    bernoulli, categorical = Bernoulli(17), Categorical(17)
    once = static.for_likelihood(bernoulli)
    assert set(once.train.images.unique().tolist()) == {0, 16}
    assert once.checksum == static.binarised_once().checksum
    assert once.for_likelihood(bernoulli) is once
    assert static.for_likelihood(categorical) is static
    x = static.prepared("test", bernoulli)
    assert torch.equal(x, once.test.images / 16)
    assert not torch.equal(x, Digits().load().prepared("test", bernoulli))
