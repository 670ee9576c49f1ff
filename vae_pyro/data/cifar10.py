"""CIFAR-10: small colour photographs."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from vae_pyro.data.dataset import Dataset, Split
from vae_pyro.data.files import DownloadedSource


@dataclass(frozen=True)
class CIFAR10(DownloadedSource):
    """45,000 train, 5,000 valid (the last of the official 50,000), 10,000 test; 3x32x32.

    Source: Krizhevsky (2009).
    """

    name: ClassVar[str] = "CIFAR-10"
    subfolder: ClassVar[str] = "cifar-10-batches-py"

    def _read(self) -> Dataset:
        from torchvision import datasets

        with self.downloading("the five data_batch files, test_batch and batches.meta"):
            official, test = (
                Split(
                    torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(),
                    torch.tensor(part.targets),
                )
                for part in (
                    datasets.CIFAR10(self.root, train, download=True) for train in (True, False)
                )
            )
        num_train = len(official) * 9 // 10
        return Dataset(
            train=Split(official.images[:num_train], official.labels[:num_train]),
            valid=Split(official.images[num_train:], official.labels[num_train:]),
            test=test,
            num_levels=256,
        )
