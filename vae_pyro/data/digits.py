"""The small data set that needs no download."""

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.source import ImageSource
from vae_pyro.errors import DataError


@dataclass(frozen=True)
class Digits(ImageSource):
    """The 1,797 real 8x8 digits that come with scikit-learn: 1,197 / 300 / 300, stratified.

    Source: UCI, Optical Recognition of Handwritten Digits (its test part), levels 0..16.

    >>> import vae_pyro as vp
    >>> data = vp.data.Digits(classes=(0, 1)).load()
    >>> data.train.images.shape, data.train.images.dtype, data.train.labels.unique()
    (torch.Size([239, 1, 8, 8]), torch.uint8, tensor([0, 1]))
    """

    def _read(self) -> Dataset:
        table = np.loadtxt(_file(), delimiter=",", dtype=np.uint8)
        levels = torch.from_numpy(table[:, :-1].copy()).reshape(-1, 1, 8, 8)
        labels = torch.from_numpy(table[:, -1].astype(np.int64))
        # As scikit-learn's train_test_split made them, stratified, with random_state=0.
        places = json.loads(Path(__file__).with_name("digits_split.json").read_text("utf-8"))
        train, valid, test = (
            Split(levels[places[name]], labels[places[name]]) for name in ("train", "valid", "test")
        )
        return Dataset(train, valid, test, num_levels=17)


def _file() -> Path:
    """Read without importing scikit-learn, which takes longer than an epoch."""
    spec = find_spec("sklearn")
    folders = [] if spec is None else spec.submodule_search_locations or []
    for folder in folders:
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.exists():
            return path
    raise DataError("scikit-learn's digits are not there: pip install scikit-learn")
