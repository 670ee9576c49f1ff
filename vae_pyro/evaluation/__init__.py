"""From a trained VAE and held-out images to metrics, and to measures of the latent space."""

from vae_pyro.evaluation.agreement import EstimatorComparison
from vae_pyro.evaluation.comparison import Comparison, compare
from vae_pyro.evaluation.difference import Difference
from vae_pyro.evaluation.latent import (
    ACTIVE_VARIANCE,
    Information,
    active_units,
    active_units_std_error,
    information,
    kl_per_dimension,
    posterior_means,
)
from vae_pyro.evaluation.metrics import (
    Evaluation,
    evaluate,
    log_cell_volume,
    pareto_k_high,
    rounding_error,
)
from vae_pyro.evaluation.names import require_free_names
from vae_pyro.evaluation.plan import EvaluationPlan, first_ais
from vae_pyro.evaluation.scores import Components, Scores
from vae_pyro.evaluation.validation import validate

__all__ = [
    "ACTIVE_VARIANCE",
    "Comparison",
    "Components",
    "Difference",
    "EstimatorComparison",
    "Evaluation",
    "EvaluationPlan",
    "Information",
    "Scores",
    "active_units",
    "active_units_std_error",
    "compare",
    "evaluate",
    "first_ais",
    "information",
    "kl_per_dimension",
    "log_cell_volume",
    "pareto_k_high",
    "posterior_means",
    "require_free_names",
    "rounding_error",
    "validate",
]
