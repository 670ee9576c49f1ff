"""How a user's own Pyro program provides what the estimators need."""

import pyro
import torch
from jaxtyping import Float
from pyro.poutine.messenger import Messenger
from torch import Tensor

from vae_pyro.errors import DataError
from vae_pyro.log_marginal.pair import Pair, Start
from vae_pyro.log_marginal.program import Images, PyroProgram
from vae_pyro.log_marginal.proposals import Proposal
from vae_pyro.log_marginal.sites import (
    Execution,
    FromUnconstrained,
    Given,
    ToUnconstrained,
    Widened,
    check_same,
    run,
)
from vae_pyro.log_marginal.weights import LogWeights

_DRAWS = 256  # of f_0, to measure its width
_NORMAL_QUARTILES = 1.349  # from the first to the third, in standard deviations


class ProgramPair(Pair):
    """The pair of a user's own model and guide."""

    def __init__(self, programs: PyroProgram) -> None:
        self.programs = self._programs = programs

    def check_form(self, x: Images) -> None:
        if not isinstance(x, Tensor):
            raise DataError(
                f"x: a torch.Tensor is needed, with one datum per row, got a {type(x).__name__}: "
                "try torch.from_numpy(...) for a NumPy array, torch.tensor(...) for a list"
            )
        if x.dim() == 0 or not len(x):
            raise DataError(
                f"x: at least one datum is needed, got a tensor of shape {tuple(x.shape)}"
            )

    def check(self, x: Images) -> None:
        self.check_form(x)

    def check_proposal(self, proposal: Proposal) -> None:
        """Nothing is known before the guide is run on x."""

    def outputs_per_row(self, x: Images) -> int:
        return x[0].numel()

    def log_weights(self, x: Images, num_samples: int, proposal: Proposal) -> LogWeights:
        rows = _repeated(x, num_samples)
        if proposal.prior_share == 1:
            model = self._model(rows)
            log_proposal = model.log_latent
        elif proposal.prior_share == 0:
            guide = self._guide(rows, Widened(proposal.inflation))
            model = self._model(rows, guide)
            log_proposal = guide.log_latent
        else:
            model, log_proposal = self._from_mixture(rows, proposal)
        parts = model.log_observed, model.log_latent, log_proposal
        return LogWeights(*(part.reshape(num_samples, len(x)) for part in parts))

    def _from_mixture(self, rows: Tensor, proposal: Proposal) -> tuple[Execution, Tensor]:
        """Each row's whole latent from the prior or from the guide, and the mixture's density."""
        prior, guide = self._model(rows), self._guide(rows, Widened(proposal.inflation))
        check_same(prior.latent, guide.latent)
        from_prior = torch.rand(len(rows), device=rows.device) < proposal.prior_share
        latent = {
            name: torch.where(
                _beside(from_prior, value, guide.plates[name]), prior.latent[name], value
            )
            for name, value in guide.latent.items()
        }
        guide = self._guide(rows, Given(latent), Widened(proposal.inflation))
        model = self._model(rows, guide)
        share = torch.tensor(proposal.prior_share, dtype=torch.float64)
        log_proposal = torch.logaddexp(
            guide.log_latent + torch.log1p(-share).item(), model.log_latent + share.log().item()
        )
        return model, log_proposal

    def draw_start(
        self, x: Images, start: Start, num_chains: int
    ) -> Float[Tensor, "chains batch dims"]:
        rows = _repeated(x, num_chains)
        vectors = ToUnconstrained(len(rows))
        if start == "prior":
            run("model", self._programs.model, rows, vectors)
        else:
            guide = self._guide(rows).latent
            model = run("model", self._programs.model, rows, Given(guide), vectors)
            check_same(model.latent, guide)
        return vectors.vectors().reshape(num_chains, len(x), -1)

    def step_unit(self, x: Images, start: Start) -> Float[Tensor, "batch dims"]:
        """From the quartiles, because a prior may have no variance."""
        ascending = self.draw_start(x, start, _DRAWS).sort(0).values
        width = ascending[3 * _DRAWS // 4] - ascending[_DRAWS // 4]
        return width / _NORMAL_QUARTILES

    def log_joint_at(
        self, x: Images, z: Float[Tensor, "points dims"]
    ) -> Float[Tensor, "points batch"]:
        each = z[:, None].expand(-1, len(x), -1)
        _, log_likelihood, log_prior = self.log_densities(x, each, "prior")
        return log_likelihood.double() + log_prior.double()

    def log_densities(
        self, x: Images, z: Float[Tensor, "chains batch dims"], start: Start
    ) -> tuple[
        Float[Tensor, "chains batch"], Float[Tensor, "chains batch"], Float[Tensor, "chains batch"]
    ]:
        rows = _repeated(x, len(z))
        at = FromUnconstrained(z.reshape(len(rows), -1))
        # A step may end where a density is not defined; it is rejected, and no error.
        with pyro.validation_enabled(False):
            model = run("model", self._programs.model, rows, at)
            log_prior = model.log_latent + at.log_det
            log_start = log_prior
            if start == "guide":
                log_start = self._guide(rows, Given(model.latent)).log_latent + at.log_det
        log_start, log_likelihood, log_prior = (
            part.reshape(len(z), len(x)) for part in (log_start, model.log_observed, log_prior)
        )
        return log_start, log_likelihood, log_prior

    def _model(self, rows: Tensor, guide: Execution | None = None) -> Execution:
        if guide is None:
            return run("model", self._programs.model, rows)
        found = run("model", self._programs.model, rows, Given(guide.latent))
        check_same(found.latent, guide.latent)
        return found

    def _guide(self, rows: Tensor, *handlers: Messenger) -> Execution:
        return run("guide", self._programs.guide, rows, *handlers)


def _repeated(x: Tensor, times: int) -> Tensor:
    """``(times * batch, *event)``: the whole batch, again and again."""
    return x.expand(times, *x.shape).reshape(times * len(x), *x.shape[1:])


def _beside(per_row: Tensor, values: Tensor, num_plates: int) -> Tensor:
    """``(rows,)`` beside values ``(*plates, rows, *event)``."""
    return per_row.reshape(-1, *[1] * (values.dim() - num_plates - 1))
