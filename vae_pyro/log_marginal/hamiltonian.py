"""Hamiltonian Monte Carlo for many images and chains at once, along a path to the posterior."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vae_pyro.compilation import Outputs, compiled
from vae_pyro.log_marginal.chunking import rows_per_chunk
from vae_pyro.log_marginal.drawing import pair_of
from vae_pyro.log_marginal.pair import Start
from vae_pyro.log_marginal.program import Images, ModelAndGuide


@dataclass(frozen=True)
class Point:
    """Where the chains are, and the densities and gradients there; each ``(chains, batch, ...)``.

    Attributes:
        z: ``(chains, batch, D)``.
        log_start: log f_0(z), ``(chains, batch)``.
        log_joint: log p(x, z), likewise.
        grad_start, grad_joint: their gradients, ``(chains, batch, D)``.
    """

    z: Float[Tensor, "chains batch dims"]
    log_start: Float[Tensor, "chains batch"]
    log_joint: Float[Tensor, "chains batch"]
    grad_start: Float[Tensor, "chains batch dims"]
    grad_joint: Float[Tensor, "chains batch dims"]

    def log_density(self, b: float) -> Float[Tensor, "chains batch"]:
        """log f_b(z) = (1 - b) log f_0(z) + b log p(x, z)."""
        return (1 - b) * self.log_start + b * self.log_joint

    def gradient(self, b: float) -> Float[Tensor, "chains batch dims"]:
        """d log f_b(z) / dz."""
        return (1 - b) * self.grad_start + b * self.grad_joint

    def replaced(self, where: Bool[Tensor, "chains batch"], other: "Point") -> "Point":
        """The chains of ``other`` where ``where`` ``(chains, batch)`` is true, else these."""
        fields = {
            name: torch.where(where[..., None] if mine.dim() == 3 else where, theirs, mine)
            for (name, mine), theirs in zip(vars(self).items(), vars(other).values(), strict=True)
        }
        return Point(**fields)


class AnnealingPath:
    """f_b(z) = f_0(z)^(1-b) p(x, z)^b from what one can draw from (b = 0) to the posterior (1).

    Args:
        vae: the pair.
        x: images, ``(batch, C, H, W)``.
        start: f_0: the ``prior`` or the ``guide``.
        times: about how often paths like it will be evaluated, which decides on compiling.
    """

    def __init__(self, vae: ModelAndGuide, x: Images, start: Start, times: int = 1) -> None:
        self._vae, self._x, self._start, self._times = vae, x, start, times
        self._pair = pair_of(vae)
        with torch.no_grad():
            self._unit = self._pair.step_unit(x, start)

    def draw(self, num_chains: int) -> Point:
        """z ~ f_0."""
        with torch.no_grad():
            z = self._pair.draw_start(self._x, self._start, num_chains)
        return self.at(z)

    def at(self, z: Float[Tensor, "chains batch dims"]) -> Point:
        """Evaluate at z ``(chains, batch, D)``: one pass through the decoder and back."""
        chains_at_once = max(1, rows_per_chunk(self._vae, self._x) // len(self._x))
        points = [self._at(part) for part in z.split(chains_at_once)]
        if len(points) == 1:
            return points[0]
        fields = zip(*(vars(point).values() for point in points), strict=True)
        return Point(*(torch.cat(parts) for parts in fields))

    def _at(self, z: Tensor) -> Point:
        start = self._start

        def evaluate(vae: ModelAndGuide, x: Tensor, z: Tensor) -> Outputs:
            z = z.detach().requires_grad_()
            with torch.enable_grad():
                log_start, log_likelihood, log_prior = pair_of(vae).log_densities(x, z, start)
                # The three may share a part of their graphs, as z's transform.
                (grad_likelihood,) = torch.autograd.grad(log_likelihood.sum(), z, retain_graph=True)
                (grad_prior,) = torch.autograd.grad(log_prior.sum(), z, retain_graph=True)
                (grad_start,) = torch.autograd.grad(log_start.sum(), z)
            return (
                log_start.detach(),
                (log_likelihood + log_prior).detach(),
                grad_start,
                grad_likelihood + grad_prior,
            )

        inputs = [self._x, z]
        # In units of whole chunks: the few pilot chains are not worth a graph of their own.
        share = z[..., 0].numel() / rows_per_chunk(self._vae, self._x)
        calls = round(self._times * share)
        run = compiled(evaluate, self._pair.programs, inputs, key=("path", start), calls=calls)
        return Point(z, *run(*inputs))

    def transition(
        self, point: Point, b: float, step_size: Float[Tensor, " batch"], num_leapfrog: int
    ) -> tuple[Point, Float[Tensor, "chains batch"]]:
        """One Hamiltonian move of every chain that leaves f_b as it is.

        Args:
            point: where the chains are.
            b: between 0 and 1.
            step_size: in units of f_0's standard deviations, ``(batch,)``; varied by up to a fifth
                from move to move, so that the step never matches a period of the dynamics.
            num_leapfrog: steps of the move.

        Returns:
            where the chains are then; and with what probability each was moved,
            ``(chains, batch)``.

        Source: Neal (2011), sections 5.2 and 5.4.2.2.
        """
        jitter = 0.8 + 0.4 * torch.rand_like(point.log_joint)
        step = (jitter * step_size)[..., None] * self._unit
        momentum = torch.randn_like(point.z)
        energy = point.log_density(b) - momentum.square().sum(-1) / 2
        proposed = point
        stable = torch.ones_like(point.log_joint, dtype=torch.bool)
        for _ in range(num_leapfrog):
            momentum = momentum + step / 2 * proposed.gradient(b)
            z = proposed.z + step * momentum
            # A diverged step may lead to values that a decoder cannot take.
            stable &= z.isfinite().all(-1)
            proposed = self.at(torch.where(stable[..., None], z, point.z))
            momentum = momentum + step / 2 * proposed.gradient(b)
        change = proposed.log_density(b) - momentum.square().sum(-1) / 2 - energy
        acceptance = torch.where(stable, change, -torch.inf).nan_to_num(-torch.inf).clamp(max=0)
        accepted = torch.rand_like(acceptance).log() < acceptance
        return point.replaced(accepted, proposed), acceptance.exp()
