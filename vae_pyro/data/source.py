"""Where images come from: the interface of data sets that can be loaded."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import ClassVar

from vae_pyro.data.dataset import Binarisation, Dataset
from vae_pyro.errors import DataError


@dataclass(frozen=True)
class ImageSource(ABC):
    """Where images come from: one subclass and one YAML file per data set.

    Args:
        binarisation: of training images for a binary likelihood: ``dynamic``, anew for every batch;
            or ``static``, once. ``larochelle``: read as published (``MNIST`` only).
        preparation_seed: fixes static binarisation, and how held-out images are prepared.
        classes: keep only images with these labels, in every split; None for all.
    """

    binarisations: ClassVar[tuple[Binarisation, ...]] = ("dynamic", "static")
    """Those that this source has."""

    binarisation: Binarisation = "dynamic"
    preparation_seed: int = 0
    classes: tuple[int, ...] | None = field(default=None, kw_only=True)

    def load(self) -> Dataset:
        """Read the images, split them, and keep those of ``classes``.

        Raises:
            DataError: where files are missing or damaged, there is no such ``binarisation``, a
                split has no image of ``classes``, or ``Dataset.check`` refuses the images.
        """
        if self.binarisation not in self.binarisations:
            raise DataError(
                f"data.binarisation={self.binarisation}: {type(self).__name__} has no such files; "
                f"choose from {', '.join(self.binarisations)}"
            )
        dataset = replace(
            self._read(), preparation_seed=self.preparation_seed, binarisation=self.binarisation
        )
        dataset.check()
        classes = self.classes
        return dataset if classes is None else dataset.map(lambda split: split.of_classes(classes))

    @abstractmethod
    def _read(self) -> Dataset:
        """All images of this source, split; ``load`` does the rest."""
