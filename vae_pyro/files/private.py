"""A folder of the user's, where what took long to make is kept for later processes."""

import logging
import os
import stat
from functools import cache
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = "VAE_PYRO_GRAPHS"


def private_folder() -> Path | None:
    """``$VAE_PYRO_GRAPHS``, else a folder of the user's cache.

    None where it is switched off (``VAE_PYRO_GRAPHS=``), cannot be made, or where somebody else
    could write there.
    """
    chosen = os.environ.get(_FOLDER)
    if chosen == "" or not hasattr(os, "getuid"):
        return None
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(chosen or Path(caches) / "vae-pyro" / "graphs")
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = path.lstat()
    except (OSError, RuntimeError) as error:  # for instance, the user has no home folder
        if chosen:
            _tell(f"{chosen} is not a folder that can be made ({error})")
        return None
    is_mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_mine or status.st_mode & 0o022:
        _tell(f"{path} is not a folder that you alone can write (chmod 700)")
        return None
    return path


@cache
def _tell(why: str) -> None:
    """Once in a process, not for each graph."""
    logger.warning("compiled graphs are not kept: %s", why)
