"""Where a result comes from, and what it is of: configuration, code, data, and x."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vae_pyro.config import flatten
from vae_pyro.data import Dataset
from vae_pyro.data.dataset import Binarisation
from vae_pyro.files import code_digest
from vae_pyro.likelihoods import Likelihood, Support

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
    digest.update(f"{code_digest()} {data_checksum}".encode())
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


def describe_x(data: str, binarisation: Binarisation, likelihood: Likelihood) -> str:
    """What log p(x) is of, for instance ``digits: 17 levels``; compare only what has one x."""
    static = binarisation == "static" and likelihood.support is Support.BINARY
    return f"{data}: {likelihood.x_kind}{' (static)' if static else ''}"


def identify_x(dataset: Dataset, likelihood: Likelihood) -> str:
    """What tells one set of test x from another: the data, and the draw of binary pixels."""
    if likelihood.support is Support.BINARY:
        return f"{dataset.checksum} {dataset.preparation_seed}"
    return dataset.checksum
