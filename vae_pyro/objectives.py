"""What SVI maximises."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import pyro.infer


@dataclass(frozen=True)
class Objective(ABC):
    """A choice for ``objective=``: one class, and one YAML file that names it.

    Args:
        num_particles: z's drawn per image and step.

    Raises:
        ValueError: where ``num_particles`` is not positive.
    """

    num_particles: int = 1

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles: must be at least 1, got {self.num_particles}")

    @abstractmethod
    def estimator(self) -> pyro.infer.ELBO:
        """Pyro's estimator of this objective, which ``pyro.infer.SVI`` takes as its loss."""


@dataclass(frozen=True)
class ELBO(Objective):
    """E_q(z|x)[log p(x, z) - log q(z | x)], by reparameterised draws: ``pyro.infer.Trace_ELBO``.

    Source: Kingma and Welling (2014), equation 3.
    """

    def estimator(self) -> pyro.infer.ELBO:
        return pyro.infer.Trace_ELBO(
            num_particles=self.num_particles,
            max_plate_nesting=1,
            vectorize_particles=self.num_particles > 1,
        )
