"""Every source of randomness has its own name and seed; changing one leaves the others alone."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


class RandomStream:
    """A named, seeded sequence of random numbers.

    Streams with different names are independent, even with the same seed. So more validation
    samples, for example, do not change a single training batch.

    Args:
        name: what the numbers are for (``"training"``, ``"evaluation"``, ...).
        seed: the job's seed.
        device: where the numbers are drawn; a GPU draws other numbers than the CPU.

    Attributes:
        generator: the ``torch.Generator``, for calls that take one.

    >>> import torch
    >>> from vae_pyro.randomness import RandomStream
    >>> first, second = (RandomStream("noise", seed=0).generator for _ in range(2))
    >>> torch.equal(torch.randn(3, generator=first), torch.randn(3, generator=second))
    True
    """

    def __init__(self, name: str, seed: int, device: torch.device | str = "cpu") -> None:
        digest = hashlib.sha256(f"{name}/{seed}".encode()).digest()
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(int.from_bytes(digest[:8], "big") >> 1)

    @contextmanager
    def active(self) -> Iterator[None]:
        """``pyro.sample``, which takes no generator, draws from this stream in the block.

        After it, the device's default generator is as it was before.
        """
        before = default_state(self.device)
        set_default_state(self.device, self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(default_state(self.device))
            set_default_state(self.device, before)


@contextmanager
def drawing(name: str, seed: int | None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Draw from ``RandomStream(name, seed, device)`` in the block; with None, as before it."""
    with nullcontext() if seed is None else RandomStream(name, seed, device).active():
        yield


def default_state(device: torch.device) -> torch.Tensor:
    """The state of the device's default generator, from which ``pyro.sample`` draws."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_default_state(device: torch.device, state: torch.Tensor) -> None:
    """Set the state of the device's default generator."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
