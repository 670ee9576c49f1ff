"""The layout of a folder of images: its splits, its classes, its files."""

from collections.abc import Sequence
from pathlib import Path

from vae_pyro.data.dataset import SplitName
from vae_pyro.errors import DataError

SPLITS: dict[str, SplitName] = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
}
_OF_THE_SYSTEM = "thumbs.db", "desktop.ini"
_NAMED = 5  # files in a message


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits that are made already; none where the images are to be split.

    Raises:
        DataError: where one of training and test is missing, or other folders lie beside them.
    """
    folders = [path for path in _visible(root) if path.is_dir()]
    splits: dict[str, Path] = {
        SPLITS[path.name.lower()]: path for path in folders if path.name.lower() in SPLITS
    }
    if not splits:
        return {}
    names = ", ".join(path.name for path in folders)
    if not {"train", "test"} <= splits.keys() or len(splits) < len(folders):
        raise DataError(
            f"{root.absolute()} has the folders {names}: for splits of your own it needs train and "
            "test, valid if you like, and no others"
        )
    if files := [path.name for path in _visible(root) if path.is_file()]:
        raise DataError(
            f"{root.absolute()} has files beside the folders {names}: {listed(files)}. Move them "
            "into one of the folders"
        )
    return splits


def class_names(places: Sequence[Path]) -> list[str]:
    """The folders of classes within some folders."""
    return sorted({path.name for place in places for path in _visible(place) if path.is_dir()})


def labelled_files(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """The files of a split and the numbers of their classes, sorted by their names.

    Raises:
        DataError: where some lie in folders of classes and some do not.
    """
    beside = [path for path in _visible(folder) if path.is_file()]
    found = [
        (path, names.index(place.name))
        for place in _visible(folder)
        if place.is_dir()
        for path in files_below(place)
    ]
    if beside and found:
        raise DataError(
            f"{folder.absolute()} has files beside folders: {listed([p.name for p in beside])}. "
            "Move them into the folders of their classes, or move all images into one folder"
        )
    return sorted(found or [(path, 0) for path in beside], key=lambda item: item[0].as_posix())


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and the folders in it, without hidden ones, sorted by their names."""
    return [
        path
        for place in _visible(folder)
        for path in (files_below(place) if place.is_dir() else [place])
    ]


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, without what the operating system puts there."""
    return [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and path.name.lower() not in _OF_THE_SYSTEM
    ]


def listed(words: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
