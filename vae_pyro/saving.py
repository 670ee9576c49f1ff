"""A VAE on disk, trained or on the way: written atomically, verified on load, no code in it."""

import hashlib
import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vae_pyro.config import build, resolve
from vae_pyro.errors import CheckpointError, ConfigError
from vae_pyro.files import (
    make_folder,
    parse_json,
    read_regular,
    tensor_shapes,
    write_atomically,
)
from vae_pyro.guide import Guide
from vae_pyro.likelihoods import Likelihood
from vae_pyro.networks import Network
from vae_pyro.vae import VAE, build_vae

MODEL_FOLDER = "model"
"""Where a job keeps its trained VAE, in its own folder."""
_WEIGHTS = "weights.safetensors"
_BLUEPRINT = "model.json"
_MOST_WORDS = 1_000_000  # bytes of a blueprint, and of the header that safetensors have
_MEMORY = Path("/proc/meminfo")
_MOST_JOBS = 50  # named in a message
_COPIES = (
    5  # of every weight in training: itself, its gradient, Adam's two moments, the best so far
)


@dataclass(frozen=True)
class Blueprint:
    """What is needed to build a VAE before its weights are known.

    Attributes:
        latent_dim: the size of z.
        image_shape: ``(C, H, W)``.
        num_levels: how many values a pixel of the data can have; None for real-valued pixels.
        network, likelihood, guide: the groups of the configuration, ``_target_`` and options.
    """

    latent_dim: int
    image_shape: tuple[int, int, int]
    num_levels: int | None
    network: Mapping[str, Any]
    likelihood: Mapping[str, Any]
    guide: Mapping[str, Any]

    def build_likelihood(self) -> Likelihood:
        """The likelihood alone, which prepares x from the images of a data set.

        Raises:
            ConfigError: where the group does not name a likelihood.
            DataError: where it cannot score data of so many levels.
        """
        return build(self.likelihood, Likelihood, "likelihood", num_levels=self.num_levels)

    @property
    def starts_at_data(self) -> bool:
        """Whether ``build`` needs training images, for the first output bias of the decoder."""
        return build(self.network, Network, "network").output_bias == "data"

    def build(self, train_x: Tensor | None = None) -> VAE:
        """The VAE with freshly initialised weights.

        Args:
            train_x: prepared training images for the decoder's first output bias.

        Raises:
            ConfigError: where a group does not name a part of its kind.
            DataError: where the likelihood cannot score data of so many levels.
        """
        guide, guide_options = resolve(self.guide, Guide, "guide")
        network = build(self.network, Network, "network")
        likelihood = self.build_likelihood()
        try:
            return build_vae(
                self.latent_dim,
                self.image_shape,
                network,
                likelihood,
                guide,
                guide_options,
                train_x,
                seed=None,  # the caller has chosen where random numbers come from
            )
        except ValueError as error:
            option = str(error).partition(":")[0]
            if option in guide_options:
                raise ConfigError(f"guide.{error}") from error
            raise

    def sketch(self) -> VAE:
        """The VAE with the names and shapes of all its weights, but without the numbers.

        Built on PyTorch's meta device, it takes milliseconds and no memory at any size. A
        part of the user's own that needs numbers to be built gets them: then so does the whole.

        Raises:
            ConfigError: as ``build``, and where a tensor would be too large for any machine.
            DataError: as ``build``.
        """
        try:
            with torch.device("meta"):
                return self.build()
        except (RuntimeError, TypeError, OverflowError) as error:
            if "meta" in str(error):  # so PyTorch refuses to read a number that is not there
                return self.build()
            cause = str(error).partition("\n")[0]  # PyTorch's own stack comes after it
            raise ConfigError(
                f"no VAE can be built of latent_dim={self.latent_dim} and these options of "
                f"network, likelihood and guide ({cause}): choose smaller numbers"
            ) from error

    def require_memory(self, device: torch.device) -> None:
        """Refuse a VAE that is too large to be trained, before its weights are allocated.

        Args:
            device: where it is to be trained.

        Raises:
            ConfigError: with the number of weights, the memory they need and what there is.
        """
        weights = list(self.sketch().parameters())
        count = sum(weight.numel() for weight in weights)
        needed = _COPIES * sum(weight.nbytes for weight in weights)
        available = available_memory(device)
        if needed > available:
            raise ConfigError(
                f"the VAE would have {count:,} weights. Training it takes {needed / 1e9:,.1f} GB "
                f"(weights, gradients, two moments of Adam and a copy of the best weights), but "
                f"{available / 1e9:,.1f} GB of memory are available. Reduce latent_dim "
                f"(now {self.latent_dim:,}), the widths of the network (network.hidden, "
                "network.channels) or the options of guide and likelihood"
            )


def save_model(folder: Path, vae: VAE, blueprint: Blueprint) -> list[Path]:
    """Write ``weights.safetensors`` and then ``model.json``, which holds the blueprint and the
    SHA-256 of the weights, into ``folder``, created where it is missing.

    Returns:
        the two files.
    """
    make_folder(folder)
    weights = safetensors.torch.save({k: v.contiguous() for k, v in vae.state_dict().items()})
    write_atomically(folder / _WEIGHTS, weights)
    description = {
        "latent_dim": blueprint.latent_dim,
        "image_shape": list(blueprint.image_shape),
        "num_levels": blueprint.num_levels,
        "network": dict(blueprint.network),
        "likelihood": dict(blueprint.likelihood),
        "guide": dict(blueprint.guide),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    write_atomically(folder / _BLUEPRINT, json.dumps(description, indent=2).encode())
    return [folder / _WEIGHTS, folder / _BLUEPRINT]


def model_digest(folder: Path) -> str:
    """SHA-256 of the weights in the folder that ``save_model`` wrote.

    Raises:
        CheckpointError: where it cannot be read.
    """
    try:
        return hashlib.sha256((folder / _WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{folder / _WEIGHTS} cannot be read: {error.strerror}") from error


def model_folder(folder: Path) -> Path:
    """The folder with the saved model: this one, or ``model`` in it.

    Raises:
        CheckpointError: where there is none; for a sweep's folder, naming its jobs' folders.
    """
    for candidate in (folder, folder / MODEL_FOLDER):
        if (candidate / _BLUEPRINT).exists():
            return candidate
    if not folder.is_dir():
        raise CheckpointError(
            f"no trained model can be read from {folder}: there is no such folder; give a job's "
            "folder, or the id of its run"
        )
    jobs = sorted(blueprint.parents[1] for blueprint in folder.glob(f"*/model/{_BLUEPRINT}"))
    if jobs:
        shown = ", ".join(map(str, jobs[:_MOST_JOBS])) + (", ..." if len(jobs) > _MOST_JOBS else "")
        raise CheckpointError(
            f"{folder} holds {len(jobs)} trained models: give the folder of one of them: {shown}"
        )
    raise CheckpointError(
        f"no trained model can be read from {folder}: neither it nor {folder / 'model'} holds "
        f"{_BLUEPRINT}, which a job writes when its training ends"
    )


def load_model(folder: Path | str, device: torch.device | str = "cpu") -> VAE:
    """Rebuild a trained VAE from the folder that ``save_model`` wrote.

    Nothing in the folder is executed: the weights are safetensors, and the blueprint can name
    only parts of a VAE, in this package or in modules that the caller has imported. Nothing is
    allocated before the shapes in both files are the same.

    Raises:
        CheckpointError: where a file is missing, damaged, or does not fit the other.
        ConfigError: where the blueprint names something that is no part of a VAE, or a size that
            no VAE can have.
    """
    folder = Path(folder)
    try:
        description = parse_json(read_regular(folder / _BLUEPRINT, _MOST_WORDS))
        sha256 = description.pop("weights_sha256")
        for group in ("network", "likelihood", "guide"):
            _refuse_unknown_module(description[group]["_target_"])
        description["image_shape"] = tuple(description["image_shape"])
        blueprint = Blueprint(**description)
        expected = blueprint.sketch().state_dict()
        _require_shapes(folder / _WEIGHTS, {k: tuple(v.shape) for k, v in expected.items()})
        limit = sum(tensor.nbytes for tensor in expected.values()) + _MOST_WORDS
        weights = read_regular(folder / _WEIGHTS, limit)
        if hashlib.sha256(weights).hexdigest() != sha256:
            raise CheckpointError(
                f"{folder / _WEIGHTS} is damaged: its SHA-256 is not the saved one"
            )
        vae = blueprint.build()
        vae.load_state_dict(safetensors.torch.load(weights))
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RuntimeError,
        SafetensorError,
    ) as error:
        raise CheckpointError(
            f"no trained model can be read from {folder}: {error}; expected the model/ folder of a "
            f"run, with {_BLUEPRINT} and {_WEIGHTS}"
        ) from error
    return vae.to(device).eval()


def _require_shapes(path: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = tensor_shapes(path)
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} does not fit {_BLUEPRINT} beside it: {name} is "
                f"{found.get(name, 'missing')} in the weights and "
                f"{expected.get(name, 'missing')} by {_BLUEPRINT}. Copy both files from the same "
                "run"
            )


def _refuse_unknown_module(target: str) -> None:
    """Importing a module runs it, so a file must not choose which."""
    module = target.rpartition(".")[0]
    if not module.startswith("vae_pyro.") and module not in sys.modules:
        raise CheckpointError(
            f"the model is made of {target}: import {module or target} before loading it, "
            "if you trust it"
        )


def available_memory(device: torch.device) -> float:
    """Bytes that can be allocated on a device without swapping; on a CPU an estimate.

    If what is available is unknown: all memory of the machine (macOS), or infinity if that is
    unknown too (Windows).
    """
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    with suppress(OSError):
        for line in _MEMORY.read_text().splitlines():
            name, _, amount = line.partition(":")
            if name == "MemAvailable":
                return int(amount.removesuffix("kB")) * 1024
    with suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf
