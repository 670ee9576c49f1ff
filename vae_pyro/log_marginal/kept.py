"""The answers for one chunk of images as a file, from which an evaluation is continued."""

import hashlib
from pathlib import Path

import safetensors.torch
from torch import Tensor

from vae_pyro.errors import CheckpointError
from vae_pyro.files import code_digest, make_folder, read_tensors, write_tensors
from vae_pyro.log_marginal.estimate import Bound, Estimate
from vae_pyro.vae import VAE

Chunk = tuple[dict[str, Estimate], float]
"""The estimates by name, and the seconds that they took."""


class Kept:
    """The file of one chunk's answers, named by a hash of all that they depend on."""

    def __init__(
        self, folder: Path | str | None, question: tuple[object, ...], vae_digest: str, x: Tensor
    ) -> None:
        self._path: Path | None = None
        if folder is not None:
            digest = hashlib.sha256(repr((code_digest(), question, vae_digest)).encode())
            digest.update(safetensors.torch.save({"x": x.contiguous()}))
            self._path = Path(folder) / f"{digest.hexdigest()[:32]}.safetensors"

    def read(self) -> Chunk | None:
        """The answers; None where there are none, or the file is damaged."""
        if self._path is None or not self._path.is_file():
            return None
        try:
            tensors, about = read_tensors(self._path)
        except CheckpointError:
            return None
        estimates = {}
        for name, (bound, evaluations) in about["estimates"].items():
            own = {
                key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}/")
            }
            value, std_error = own.pop("value"), own.pop("std_error")
            estimates[name] = Estimate(value, std_error, Bound(bound), own, evaluations)
        return estimates, about["seconds"]

    def write(self, chunk: Chunk) -> None:
        """Keep the answers."""
        if self._path is None:
            return
        estimates, seconds = chunk
        tensors = {
            f"{name}/{key}": tensor
            for name, e in estimates.items()
            for key, tensor in {"value": e.value, "std_error": e.std_error, **e.diagnostics}.items()
        }
        about = {
            "seconds": seconds,
            "estimates": {name: [e.bound.value, e.evaluations] for name, e in estimates.items()},
        }
        make_folder(self._path.parent)
        write_tensors(self._path, tensors, about)


def digest_of(vae: VAE) -> str:
    """SHA-256 of the weights, and of each module's class and plain attributes."""
    plain = (bool, int, float, str, tuple)
    state = {name: tensor.contiguous().clone() for name, tensor in vae.state_dict().items()}
    digest = hashlib.sha256(safetensors.torch.save(state))
    for module in vae.modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        options = {name: value for name, value in vars(module).items() if type(value) in plain}
        digest.update(repr((kind, options)).encode())
    return digest.hexdigest()
