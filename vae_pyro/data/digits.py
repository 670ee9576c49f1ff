"""The small data set that needs no download."""

from dataclasses import dataclass

import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.source import ImageSource


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
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        images, labels = load_digits(return_X_y=True)
        levels = torch.from_numpy(images.astype("uint8")).reshape(-1, 1, 8, 8)
        targets = torch.from_numpy(labels.astype("int64"))
        index = list(range(len(levels)))
        rest, test = train_test_split(index, test_size=300, stratify=labels, random_state=0)
        train, valid = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=0)
        train_split, valid_split, test_split = (
            Split(levels[part], targets[part]) for part in (train, valid, test)
        )
        return Dataset(train_split, valid_split, test_split, num_levels=17)
