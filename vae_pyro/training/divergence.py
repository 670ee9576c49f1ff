"""Divergence: numbers that are no longer finite, found before they change a weight."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from vae_pyro.errors import DivergenceError
from vae_pyro.objectives import SVILoss
from vae_pyro.randomness import default_state, set_default_state
from vae_pyro.vae import VAE


class Watch:
    """Stops an epoch at its first infinite or NaN loss, before that changes a weight.

    On a GPU only the first step is checked at once, because every check waits for the GPU. The
    others are checked at the end of the epoch.
    """

    def __init__(self, vae: VAE, device: torch.device, epoch: int) -> None:
        self._vae = vae
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._epoch = epoch
        self._learning_rate = 0.0
        self._step = 0
        self._x = self._before = torch.empty(0)

    @property
    def looks(self) -> bool:
        """Whether this step is checked."""
        return self._on_cpu or self._step == 1

    def next_step(self, x: Tensor, learning_rate: float) -> None:
        """Keep the state before a step, so that it can be repeated to find the broken site."""
        self._step += 1
        self._learning_rate = learning_rate
        self._x = x
        if self.looks:
            self._before = default_state(self._device)

    def over(self, loss: SVILoss) -> Callable[..., Any]:
        """``loss_and_grads``, with a check of the losses that it returns."""

        def loss_and_grads(model: Any, guide: Any, x: Tensor) -> Any:
            try:
                losses = loss.loss_and_grads(model, guide, x)
            except ValueError as error:
                # Pyro's validation reports a broken parameter first.
                site = self._broken_site()
                if site is None:
                    raise
                raise self._diverged("training broke", site=site, step=self._step) from error
            self.require_finite(torch.as_tensor(losses).reshape(-1))
            return losses

        return loss_and_grads

    def require_finite(self, losses: Tensor) -> None:
        """Raise DivergenceError where the loss of this step is not finite."""
        # A list, because torch's own check of two numbers takes 0.05 ms.
        if self.looks and not all(map(math.isfinite, losses.tolist())):
            what = _names(losses / -len(self._x))
            raise self._diverged(what, site=self._broken_site(), step=self._step)

    def require_finite_epoch(self, steps: Sequence[Tensor]) -> None:
        """Raise DivergenceError where any step of the epoch, or a weight now, is not finite."""
        for step, losses in enumerate([] if self._on_cpu else steps, 1):
            if not losses.isfinite().all():
                raise self._diverged(_names(losses), site=self._broken_site(), step=step)
        if (weight := broken_weight(self._vae)) is not None:
            what = "a weight is no longer finite"
            raise self._diverged(what, site=f"weight {weight}", step=self._step)

    def _diverged(self, what: str, *, site: str | None, step: int) -> DivergenceError:
        where = f" ({site})" if site else ""
        return DivergenceError(
            f"{what} in epoch {self._epoch}, step {step}{where}: try a smaller "
            f"training.learning_rate (it is {self._learning_rate:g})"
        )

    def _broken_site(self) -> str | None:
        if self.looks:
            set_default_state(self._device, self._before)
        return broken_site(self._vae, self._x)


def _names(values: Tensor) -> str:
    """Which of (objective, ELBO) or (ELBO,) is not finite, in words."""
    pairs = zip(("ELBO", "objective"), values.tolist()[::-1], strict=False)
    name, value = next(pair for pair in pairs if not math.isfinite(pair[1]))
    return f"the {name} became {value}"


def broken_weight(vae: VAE) -> str | None:
    """The name of the first weight that is not finite, or None."""
    weights = dict(vae.named_parameters())
    # One pass over them: their sums are finite only if they are. If one overflows, each is looked
    # at number by number.
    with torch.no_grad():
        if weights and torch.stack([weight.sum() for weight in weights.values()]).isfinite().all():
            return None
    return next((name for name, weight in weights.items() if not weight.isfinite().all()), None)


def broken_site(vae: VAE, x: Tensor) -> str | None:
    """The first site with a value or log-probability that is not finite; guide first, then model.

    Args:
        vae: run once, with the next random numbers.
        x: ``(batch, C, H, W)``.

    Returns:
        In words, for instance ``site 'x' of the model: its log-probability is nan``, with the
        first weight that is not finite, where there is one; None where everything is finite.
    """
    weight = broken_weight(vae)
    because = f", and so is weight {weight}" if weight else ""
    # Validation would stop at the first parameter with a message about its constraint.
    with torch.no_grad(), pyro.validation_enabled(False), pyro.get_param_store().scope():
        try:
            guide = poutine.trace(vae.guide).get_trace(x)
            model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
            guide.compute_log_prob()
            model.compute_log_prob()
        except (ValueError, RuntimeError) as error:  # as a matrix that has no Cholesky factor
            return f"the programs cannot be run: {str(error).splitlines()[0]}{because}"
    for name, trace in (("guide", guide), ("model", model)):
        for site in trace.stochastic_nodes + trace.observation_nodes:
            for part, values in (("value", "value"), ("log-probability", "log_prob")):
                broken = trace.nodes[site][values]
                if not broken.isfinite().all():
                    number = broken[~broken.isfinite()].flatten()[0].item()
                    return f"site {site!r} of the {name}: its {part} is {number}{because}"
    return f"weight {weight} is not finite" if weight else None
