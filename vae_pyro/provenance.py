"""Where a result comes from: configuration, code and data in one hash, and the commit."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_pyro.config import flatten

# Recorded like the rest of the configuration, but no part of what a result depends on.
_NOT_IN_FINGERPRINT = ("tracking.", "data.root")


def fingerprint(tree: Mapping[str, Any], data_checksum: str) -> str:
    """SHA-256 of everything that a result depends on: configuration, code, data."""
    relevant = {
        key: value
        for key, value in flatten(tree).items()
        if not key.startswith(_NOT_IN_FINGERPRINT)
    }
    digest = hashlib.sha256(json.dumps(relevant, sort_keys=True).encode())
    package = Path(__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    digest.update(data_checksum.encode())
    return digest.hexdigest()


def git_tags() -> dict[str, str]:
    """The commit of the code that runs, under MLflow's own tag; nothing outside a repository."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", __file__)  # not some other project's repository
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD")}
    except (OSError, subprocess.SubprocessError):
        return {}
