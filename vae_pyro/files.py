"""Files that are whole or not there at all, and the files that this code is made of."""

import functools
import hashlib
import os
from pathlib import Path


@functools.cache
def code_digest() -> str:
    """SHA-256 of this package's own code, in hexadecimal."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, whole."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
