"""A folder of images, as people have them: PNG or JPEG, with or without a folder for each class."""

from dataclasses import dataclass
from pathlib import Path

from vae_pyro.data.dataset import Dataset
from vae_pyro.data.encoded import EncodedImages
from vae_pyro.data.folders import class_names, labelled_files, split_folders
from vae_pyro.data.pixels import content_of
from vae_pyro.errors import DataError


@dataclass(frozen=True)
class ImageFolder(EncodedImages):
    """Your own images: the PNG and JPEG files of a folder, as levels 0 to 255.

    - ``root/*.png``: images without labels. ``root/<class>/*.png``: the folders are the classes,
      numbered from 0 in the order of their names.
    - ``root/train``, ``root/test`` and, optionally, ``root/valid`` (or ``val``), each laid out like
      that, are used as they are. Otherwise the images are split at random by ``split_seed``, which
      depends on the names of the files.
    - Hidden files are ignored.

    Args:
        binarisation, preparation_seed, classes: see ``ImageSource``.
        size, crop, colour, bad_files: see ``EncodedImages``.
        valid_share, test_share, split_seed: see ``RandomSplit``.
        root: the folder.
    """

    root: str | None = None

    def _read(self) -> Dataset:
        if self.root is None:
            raise DataError("name the folder of your images: data.root=FOLDER")
        root = Path(self.root)
        if not root.is_dir():
            raise DataError(f"{root.absolute()} is not a folder: correct data.root")
        folders = split_folders(root)
        names = class_names(list(folders.values()) or [root])
        found = {
            split: labelled_files(folder, names)
            for split, folder in (folders or {"all": root}).items()
        }
        if not any(found.values()):
            raise DataError(f"no images in {root.absolute()}: PNG and JPEG files are read")
        return self._assembled(
            found, content_of, lambda path: str(path.relative_to(root)), str(root.absolute())
        )
