"""Images of the Hugging Face Hub, or of a data set that was saved from it to disk."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vae_pyro.data.dataset import Dataset
from vae_pyro.data.encoded import EncodedImages
from vae_pyro.data.folders import SPLITS, listed
from vae_pyro.errors import DataError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class HuggingFace(EncodedImages):
    """A data set of images in the form of the library ``datasets`` (extra ``hf``).

    The first column of images is used, and the first of classes as labels, unless they are named.
    The splits ``train``, ``validation`` and ``test`` are used as far as they exist; what is missing
    is split off at random.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        size, crop, colour, bad_files: see ``EncodedImages``.
        valid_share, test_share, split_seed: see ``RandomSplit``.
        name: of a data set on the Hub, or the folder that ``save_to_disk`` wrote.
        config: which of the data set's configurations, where it has several.
        image_column, label_column: their names.
    """

    name: str | None = None
    config: str | None = field(default=None, kw_only=True)
    image_column: str | None = field(default=None, kw_only=True)
    label_column: str | None = field(default=None, kw_only=True)

    def _read(self) -> Dataset:
        if self.name is None:
            raise DataError("name the data set, or its folder: data.name=NAME")
        splits = self._splits(self.name)
        found: dict[str, list[tuple[tuple[str, int], int]]] = {}
        contents: dict[str, Any] = {}
        for split, rows in splits.items():
            image = self._column(rows, "Image", self.image_column, "data.image_column")
            label = self._column(rows, "ClassLabel", self.label_column, "data.label_column")
            assert image is not None
            import datasets

            contents[split] = rows.cast_column(image, datasets.Image(decode=False)), image
            labels = np.array(rows[label] if label else [0] * len(rows))
            if labels.ndim != 1 or labels.dtype.kind not in "iub":
                raise DataError(
                    f"the labels in {label} are no whole numbers: choose data.label_column=COLUMN"
                )
            found[split] = [((split, index), one) for index, one in enumerate(labels.tolist())]

        def content(key: tuple[str, int]) -> bytes:
            rows, column = contents[key[0]]
            encoded = rows[key[1]][column]
            if encoded["bytes"] is None:
                raise DataError("its bytes are not in the data set")
            return bytes(encoded["bytes"])

        return self._assembled(found, content, lambda key: f"{key[0]}[{key[1]}]", self.name)

    def _splits(self, name: str) -> "dict[str, datasets.Dataset]":
        """The tables of rows, as ``all`` or as ``train``, ``valid`` and ``test``.

        Raises:
            DataError: where the library is missing, or there is no such data set.
        """
        try:
            import datasets
        except ImportError as error:
            raise DataError("data=huggingface needs: pip install datasets") from error
        try:
            if Path(name).is_dir():
                loaded = datasets.load_from_disk(name)
            else:
                loaded = datasets.load_dataset(name, self.config)
        except Exception as error:  # of many libraries: files, the network, tables
            raise DataError(
                f"the data set {name} cannot be read: {error}. Name a folder that save_to_disk "
                "wrote, or a data set on the Hub"
            ) from error
        if isinstance(loaded, datasets.Dataset):
            return {"all": loaded}
        splits: dict[str, datasets.Dataset] = {
            SPLITS[split]: rows for split, rows in loaded.items() if split in SPLITS
        }
        if "train" not in splits:
            raise DataError(f"{name} has the splits {listed(list(loaded))}, and none is train")
        return splits

    def _column(
        self, rows: "datasets.Dataset", kind: str, named: str | None, key: str
    ) -> str | None:
        """The name of a column; None where there are no labels.

        Raises:
            DataError: where there is none of this name, or no column of images.
        """
        kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
        if named is not None:
            if named not in kinds:
                raise DataError(f"{key}={named}: columns are {listed(list(kinds))}")
            if kind == "Image" and kinds[named] != kind:
                raise DataError(f"{key}={named}: this column holds no images")
            return named
        found = [column for column, its_kind in kinds.items() if its_kind == kind]
        if not found and kind == "Image":
            raise DataError(
                f"{self.name} has no column of images: its columns are {listed(list(kinds))}"
            )
        return found[0] if found else None
