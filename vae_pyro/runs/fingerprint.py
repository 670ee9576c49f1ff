"""Where a result comes from: configuration, code, data, and the x that was scored."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from vae_pyro.config import flatten
from vae_pyro.data import Dataset
from vae_pyro.data.dataset import Binarisation
from vae_pyro.files import code_digest, parse_json, read_regular, write_atomically
from vae_pyro.likelihoods import Likelihood, Support
from vae_pyro.runs.manifest import NOT_IN_FINGERPRINT

FINGERPRINT_FILE = "fingerprint.json"
_LIBRARIES = ("torch", "pyro-ppl")
_MOST_BYTES = 10_000_000  # of a fingerprint


@dataclass(frozen=True)
class Fingerprint:
    """Everything that a result depends on: two jobs with one fingerprint have one result.

    Attributes:
        config: values by dotted key; ``device`` is the one that was chosen.
        code: SHA-256 of this package's computing code (see ``code_digest``) and of each module of
            the user's that the configuration names; versions of the libraries that compute.
        data: the data set's checksum.
    """

    config: Mapping[str, Any]
    code: Mapping[str, str]
    data: str

    @classmethod
    def of(cls, tree: Mapping[str, Any], device: str, data_checksum: str) -> "Fingerprint":
        """The fingerprint of a resolved configuration, whose classes are imported."""
        flat = {
            key: value
            for key, value in flatten({**tree, "device": device}).items()
            if not key.startswith(NOT_IN_FINGERPRINT)
        }
        code = {"vae_pyro": code_digest()}
        code |= {library: metadata.version(library) for library in _LIBRARIES}
        for key, target in flat.items():
            module = sys.modules.get(str(target).rpartition(".")[0])
            file = module.__file__ if module else None
            if key.endswith("_target_") and not target.startswith("vae_pyro.") and module and file:
                code[module.__name__] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return cls(json.loads(json.dumps(flat)), code, data_checksum)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hexadecimal."""
        return hashlib.sha256(self._json()).hexdigest()

    @property
    def code_digest(self) -> str:
        """SHA-256 of the code and the versions alone."""
        return hashlib.sha256(json.dumps(dict(self.code), sort_keys=True).encode()).hexdigest()

    def changes_since(self, earlier: "Fingerprint") -> str:
        """The differences in words, for instance ``latent_dim=10 (was 2), code of vae_pyro``."""
        return ", ".join(
            [
                *(
                    f"{key}={v} (was {was})"
                    for key, was, v in _unequal(earlier.config, self.config)
                ),
                *(f"code of {key}" for key, _, _ in _unequal(earlier.code, self.code)),
                *(["data"] if earlier.data != self.data else []),
            ]
        )

    def write(self, path: Path) -> None:
        write_atomically(path, self._json())

    @classmethod
    def read(cls, path: Path) -> "Fingerprint | None":
        """None where there is none, or it cannot be read."""
        try:
            return cls(**parse_json(read_regular(path, _MOST_BYTES)))
        except (OSError, ValueError, TypeError):
            return None

    def _json(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()


def _unequal(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield key, old.get(key), new.get(key)


def git_tags() -> dict[str, str]:
    """The commit of the running code, under MLflow's own tag; empty outside a repository."""

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
    """What x is, for instance ``digits: 17 levels``; only equal x are comparable."""
    is_drawn_anew = binarisation == "dynamic" or likelihood.support is not Support.BINARY
    return f"{data}: {likelihood.x_kind}{'' if is_drawn_anew else f' ({binarisation})'}"


def identify_x(dataset: Dataset, likelihood: Likelihood) -> str:
    """Identifies a set of test x: the test images, and how binary pixels were drawn."""
    if likelihood.support is Support.BINARY:
        return f"{dataset.test_checksum} {dataset.preparation_seed}"
    return dataset.test_checksum
