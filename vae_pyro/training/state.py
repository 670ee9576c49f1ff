"""The state of a training: saved in checkpoints, so that a stopped training ends the same."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vae_pyro.errors import CheckpointError
from vae_pyro.randomness import RandomStream
from vae_pyro.training.checkpoints import Checkpoint
from vae_pyro.training.updates import Updates
from vae_pyro.vae import VAE


@dataclass
class TrainingState:
    """Everything that the rest of a training depends on.

    Attributes:
        vae: holds the weights of the last epoch.
        updates: their optimiser, and their average.
        streams: the random streams that go on from epoch to epoch, by name.
        epoch: number of finished epochs.
        is_done: whether the training has ended.
        kept_epoch: the epoch whose weights are kept.
        best: valid ELBO of the kept weights, nats per image; -inf while the objective warms up.
        kept: the kept weights.
        seconds: spent on training steps.
        history: metrics of every epoch, with the time at which they were recorded.
        settings: what else the training depends on, by name; as JSON has it.
        threads: that the process computes with, outside of the training too. The order of a sum,
            and with it the last bit, depends on it.
    """

    vae: VAE
    updates: Updates
    streams: Mapping[str, RandomStream]
    epoch: int = 0
    is_done: bool = False
    kept_epoch: int = 0
    best: float = -math.inf
    kept: dict[str, Tensor] = field(default_factory=dict)
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    settings: Mapping[str, Any] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)

    def add_metrics(self, metrics: Mapping[str, float]) -> None:
        """Append the metrics of the epoch that has just ended."""
        self.history.append({"step": self.epoch, "time": time.time(), "metrics": dict(metrics)})

    def keep_weights(self, best: float) -> None:
        """Keep the weights of this epoch, whose valid ELBO is ``best``."""
        self.kept_epoch, self.best = self.epoch, best
        self.kept = {name: t.clone() for name, t in self.vae.state_dict().items()}

    def checkpoint(self) -> Checkpoint:
        """A copy on the CPU, which further steps do not change."""
        tensors = {
            **_named("weights", self.vae.state_dict()),
            **{f"kept/{name}": t.cpu() for name, t in self.kept.items()},  # copies that stay
            **_named("updates", self.updates.state()),
            **_named("random", {n: s.generator.get_state() for n, s in self.streams.items()}),
        }
        about = {
            "epoch": self.epoch,
            "is_done": self.is_done,
            "kept_epoch": self.kept_epoch,
            "best": self.best,
            "seconds": self.seconds,
            "history": list(self.history),
            "settings": dict(self.settings),
            "threads": self.threads,
        }
        return Checkpoint(self.epoch, tensors, about)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint, with as many threads as before.

        Raises:
            CheckpointError: where it belongs to another VAE, or to a training with other settings.
        """
        about, tensors = dict(checkpoint.about), checkpoint.tensors
        try:
            for name, value in self.settings.items():
                if about["settings"][name] != value:
                    raise CheckpointError(
                        f"the checkpoint belongs to another training: its {name} was "
                        f"{about['settings'][name]}, not {value}. Use the same settings, or "
                        "another folder"
                    )
            self.vae.load_state_dict(_of("weights", tensors))
            self.updates.restore(_of("updates", tensors))
            self.kept = {
                name: tensor.to(self.vae.state_dict()[name].device)
                for name, tensor in _of("kept", tensors).items()
            }
            for name, state in _of("random", tensors).items():
                self.streams[name].generator.set_state(state)
            torch.set_num_threads(about["threads"])
            for name in ("epoch", "is_done", "kept_epoch", "best", "seconds", "history", "threads"):
                setattr(self, name, about[name])
        except (KeyError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"the checkpoint belongs to another training: {error}") from error


def _named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{kind}/{name}": t.detach().cpu().clone() for name, t in tensors.items()}


def _of(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n[len(kind) + 1 :]: t for n, t in tensors.items() if n.startswith(f"{kind}/")}
