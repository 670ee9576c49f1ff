"""Samples of z and their log weights: of a VAE, or of a user's own Pyro program."""

from collections.abc import Callable

from torch import Tensor

from vae_pyro.compilation import Outputs, compiled
from vae_pyro.log_marginal.pair import Pair, VAEPair
from vae_pyro.log_marginal.program import Images, ModelAndGuide, PyroProgram
from vae_pyro.log_marginal.program_pair import ProgramPair
from vae_pyro.log_marginal.proposals import THE_GUIDE, Proposal
from vae_pyro.log_marginal.weights import LogWeights


def pair_of(vae: ModelAndGuide) -> Pair:
    """What the estimators use of a VAE, or of a user's own model and guide."""
    return ProgramPair(vae) if isinstance(vae, PyroProgram) else VAEPair(vae)


def log_weights(
    vae: ModelAndGuide, x: Images, num_samples: int, proposal: Proposal = THE_GUIDE
) -> LogWeights:
    """Draw z_ik ~ q(z | x_i) and weigh each: one row per sample, one column per image.

    No ``poutine.scale``, beta or subsampling factor enters: Pyro's unscaled log-probabilities are
    read. Gradients flow where the caller has them enabled.

    Args:
        vae: the pair; or any two Pyro programs whose sites have one value per image.
        x: images, ``(batch, C, H, W)``; for a ``PyroProgram`` ``(batch, *event)``.
        num_samples: K.
        proposal: what stands in for q(z | x); by default the guide.
    """
    return pair_of(vae).log_weights(x, num_samples, proposal)


def drawing_log_weights(
    vae: ModelAndGuide, x: Images, num_samples: int, calls: int, proposal: Proposal = THE_GUIDE
) -> Callable[[Tensor], LogWeights]:
    """``log_weights`` for many x of one shape, compiled where the scope allows it and it saves
    time.

    Args:
        vae: as for ``log_weights``.
        x: the first images, ``(batch, C, H, W)``.
        num_samples: K.
        calls: how often it will be called.
        proposal: what stands in for q(z | x).

    Returns:
        x ``(batch, C, H, W)`` -> its log weights, without gradients.
    """

    def program(vae: ModelAndGuide, x: Images) -> Outputs:
        drawn = log_weights(vae, x, num_samples, proposal)
        return drawn.log_likelihood, drawn.log_prior, drawn.log_proposal

    programs = pair_of(vae).programs
    run = compiled(program, programs, [x], key=("log_weights", num_samples, proposal), calls=calls)
    return lambda x: LogWeights(*run(x))
