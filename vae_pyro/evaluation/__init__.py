from vae_pyro.evaluation.metrics import (
    Evaluation,
    EvaluationPlan,
    evaluate,
    log_cell_volume,
    validate,
)

__all__ = ["Evaluation", "EvaluationPlan", "evaluate", "log_cell_volume", "validate"]
