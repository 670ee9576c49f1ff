"""Every source of randomness has its own name and seed: changing one leaves the others alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class RandomStream:
    """One named, seeded sequence of random numbers.

    Two streams with different names are independent even at one seed: drawing more validation
    samples, say, does not move a single training batch.

    Args:
        name: what the numbers are for (``"training"``, ``"evaluation"``, ...).
        seed: the job's seed.
        device: where the numbers are drawn.

    Attributes:
        generator: the ``torch.Generator``, for calls that take one.
    """

    def __init__(self, name: str, seed: int, device: torch.device | str = "cpu") -> None:
        digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let ``pyro.sample``, which takes no generator, draw from this stream.

        The device's default generator is put back as it was on leaving.
        """
        before = default_state(self.device)
        set_default_state(self.device, self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(default_state(self.device))
            set_default_state(self.device, before)


def default_state(device: torch.device) -> torch.Tensor:
    """Where a device's default generator, which ``pyro.sample`` draws from, is."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_default_state(device: torch.device, state: torch.Tensor) -> None:
    """Put it there."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
