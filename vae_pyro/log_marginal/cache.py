"""The results for one chunk of images as a file, from which an evaluation is continued."""

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
from torch import Tensor

from vae_pyro.errors import CheckpointError, EstimatorError
from vae_pyro.files import code_digest, make_folder, read_tensors, write_tensors
from vae_pyro.log_marginal.estimate import Bound, Estimate
from vae_pyro.log_marginal.program import Images, ModelAndGuide, PyroProgram
from vae_pyro.vae import VAE

Chunk = tuple[dict[str, Estimate], float]
"""The estimates by name, and the seconds that they took."""


class ChunkCache:
    """Files of estimates, each named by a hash of all that its numbers depend on.

    Args:
        folder: where the files are; None for no cache.
        vae: the pair that the estimates are of.

    Raises:
        EstimatorError: where there is a folder, and the pair is a ``PyroProgram``.
    """

    def __init__(self, folder: Path | str | None, vae: ModelAndGuide) -> None:
        self._folder = None if folder is None else Path(folder)
        self._vae_digest = ""
        if folder is not None:
            if isinstance(vae, PyroProgram):
                raise EstimatorError(
                    "the results of a PyroProgram cannot be kept in a folder, because its code and "
                    "parameters have no fingerprint to recognise them by: pass folder=None"
                )
            self._vae_digest = digest_of(vae)

    def read_or_compute(
        self, given: tuple[object, ...], x: Images, compute: Callable[[], dict[str, Estimate]]
    ) -> Chunk:
        """The estimates of one chunk: from its file where there is one, else computed and written.

        Args:
            given: what, besides the pair and the images, the estimates depend on.
            x: the images of the chunk, ``(batch, C, H, W)``.
            compute: gives the estimates.
        """
        path = self._path(given, x)
        found = None if path is None else _read(path)
        if found is not None:
            return found
        begin = time.perf_counter()
        estimates = compute()
        chunk = estimates, time.perf_counter() - begin
        if path is not None:
            _write(path, chunk)
        return chunk

    def _path(self, given: tuple[object, ...], x: Tensor) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(repr((code_digest(), given, self._vae_digest)).encode())
        digest.update(safetensors.torch.save({"x": x.contiguous()}))
        return self._folder / f"{digest.hexdigest()[:32]}.safetensors"


def _read(path: Path) -> Chunk | None:
    """The estimates; None where there is no file, or it is damaged."""
    if not path.is_file():
        return None
    try:
        tensors, about = read_tensors(path)
    except CheckpointError:
        return None
    estimates = {}
    for name, (bound, evaluations, num_weights) in about["estimates"].items():
        own = {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}/")}
        value, std_error = own.pop("value"), own.pop("std_error")
        estimates[name] = Estimate(value, std_error, Bound(bound), own, evaluations, num_weights)
    return estimates, about["seconds"]


def _write(path: Path, chunk: Chunk) -> None:
    estimates, seconds = chunk
    tensors = {
        f"{name}/{key}": tensor
        for name, e in estimates.items()
        for key, tensor in {"value": e.value, "std_error": e.std_error, **e.diagnostics}.items()
    }
    about = {
        "seconds": seconds,
        "estimates": {
            name: [e.bound.value, e.evaluations, e.num_weights] for name, e in estimates.items()
        },
    }
    make_folder(path.parent)
    write_tensors(path, tensors, about)


def digest_of(vae: VAE) -> str:
    """SHA-256 of the weights, and of each module's class and plain attributes."""
    plain = (bool, int, float, str, tuple)
    state = {name: tensor.contiguous().clone() for name, tensor in vae.state_dict().items()}
    digest = hashlib.sha256(safetensors.torch.save(state))
    # Found at its first use, and from then on one of the attributes below.
    digest.update(repr(vae.image_shape).encode())
    for module in vae.modules():
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        options = {name: value for name, value in vars(module).items() if type(value) in plain}
        digest.update(repr((kind, options)).encode())
    return digest.hexdigest()
