"""Omniglot, scaled down to the size of MNIST."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.files import DownloadedSource


@dataclass(frozen=True)
class Omniglot(DownloadedSource):
    """Handwritten characters, white on black, 105x105 scaled to 28x28 by area averages.

    The 19,280 "background" images are split at random, with a fixed seed, into 17,280 for training
    and 2,000 for validation. The 13,180 "evaluation" images, of other alphabets, are the test set.
    A label is the number of the alphabet, counted from 0 in each of the two parts. Most published
    VAE results use the 28x28 file of Burda et al. (2016), which has another split and scaling; they
    cannot be compared with results on this data set.

    Source: Lake et al. (2015).
    """

    name: ClassVar[str] = "Omniglot"
    subfolder: ClassVar[str] = "omniglot-py"

    def _read(self) -> Dataset:
        from torchvision import datasets

        with self.downloading("images_background.zip and images_evaluation.zip"):
            background, evaluation = (
                datasets.Omniglot(self.root, background=part, download=True)
                for part in (True, False)
            )
        images, alphabets = _characters(background)
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        num_valid = round(len(images) * 2_000 / 19_280)
        valid, train = order[:num_valid], order[num_valid:]
        return Dataset(
            train=Split(images[train], alphabets[train]),
            valid=Split(images[valid], alphabets[valid]),
            test=Split(*_characters(evaluation)),
            num_levels=256,
        )


def _characters(reader: Any) -> tuple[Tensor, Tensor]:
    """All images of one part, ``uint8 (N, 1, 28, 28)``, and the alphabet of each, ``(N,)``.

    They are sorted by file name, because the order in a folder differs between machines.
    """
    drawings = reader._flat_character_images  # (file name, index of its character)
    order = sorted(
        range(len(reader)), key=lambda i: (reader._characters[drawings[i][1]], drawings[i][0])
    )
    alphabets = sorted(reader._alphabets)
    images = torch.empty(len(reader), 1, 28, 28, dtype=torch.uint8)
    labels = torch.empty(len(reader), dtype=torch.int64)
    for row, index in enumerate(order):
        image, character = reader[index]
        small = np.asarray(image.resize((28, 28), Image.Resampling.BOX))
        images[row, 0] = torch.from_numpy(255 - small)
        labels[row] = alphabets.index(Path(reader._characters[character]).parts[0])
    return images, labels
