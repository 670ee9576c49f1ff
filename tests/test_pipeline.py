"""What a job refuses before it trains anything and before it opens a run."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from tests.test_config import composed
from vae_pyro.data import Dataset, ImageSource
from vae_pyro.data.dataset import Split
from vae_pyro.errors import ConfigError, DataError
from vae_pyro.likelihoods import Beta, Likelihood
from vae_pyro.runs.job import Job, run_job
from vae_pyro.runs.preparation import check_support


class NaNInTest(ImageSource):
    """Real numbers, of which one in the test split is none."""

    def _read(self) -> Dataset:
        def real() -> Split:
            return Split(torch.rand(40, 1, 2, 3), torch.zeros(40, dtype=torch.int64))

        dataset = Dataset(real(), real(), real(), None)
        dataset.test.images[39, 0, 1, 2] = math.nan
        return dataset


class BlackInTest(ImageSource):
    """Grey levels, of which some in the test split are 0."""

    def _read(self) -> Dataset:
        def grey(level: int) -> Split:
            images = torch.full((40, 1, 2, 3), level, dtype=torch.uint8)
            return Split(images, torch.zeros(40, dtype=torch.int64))

        return Dataset(grey(3), grey(3), grey(0), 17)


class NotDequantised(Beta):
    """A user's likelihood that leaves levels on the ends of the interval."""

    def prepare(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images.float() / 16


@pytest.mark.parametrize(
    ("data", "likelihood", "message"),
    [
        ("NaNInTest", "vae_pyro.likelihoods.Normal", "1 of 240 pixel values of the test split are"),
        (
            "BlackInTest",
            f"{__name__}.NotDequantised",
            "images 0 to 39 of the test split: NotDeq.*"
            r"240 of 240 pixel values are not .*Dequantise the levels",
        ),
    ],
)
def test_a_test_split_that_cannot_be_scored_is_refused_before_training(
    data: str, likelihood: str, message: str, tmp_path: Path
) -> None:
    tree: dict[str, Any] = composed(f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    tree["data"] = {"_target_": f"{__name__}.{data}"}
    tree["likelihood"] = {"_target_": likelihood}
    job = Job("job", {}, {}, tmp_path / "job", parent=None)
    with pytest.raises(DataError, match=message):
        run_job(tree, job, Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["elbo"], r"^evaluation\.estimators\.elbo: the metric or column elbo already exists"),
        (["iwae_7"], r"^evaluation\.estimators\.iwae_7: names that begin with iwae_ are those"),
        (["mine", "mine_std_error"], r"^evaluation\.estimators\.mine_std_error: the metric"),
    ],
)
def test_a_name_that_is_taken_is_refused_before_training(
    names: list[str], message: str, tmp_path: Path
) -> None:
    estimators = [f"+evaluation.estimators.{name}={{_target_: x}}" for name in names]
    tree: dict[str, Any] = composed(f"tracking.uri=sqlite:///{tmp_path}/m.db", *estimators)
    job = Job("job", {}, {}, tmp_path / "job", parent=None)
    with pytest.raises(ConfigError, match=message):
        run_job(tree, job, Console(file=io.StringIO()))
    assert list(tmp_path.iterdir()) == []


def test_checking_the_data_moves_no_other_random_number(digits: Dataset) -> None:
    drawn = []

    class Counting(Beta):
        def prepare(self, images: Tensor, generator: torch.Generator) -> Tensor:
            drawn.append(len(images))
            return super().prepare(images, generator)

    before, checksum = torch.get_rng_state(), digits.checksum
    likelihood: Likelihood = Counting(17)
    check_support(digits, likelihood, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert digits.checksum == checksum
    assert sum(drawn) == sum(map(len, (digits.train, digits.valid, digits.test)))
