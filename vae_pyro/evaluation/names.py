"""The names of the metrics: what a number is recorded as, and which names are taken."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from vae_pyro.log_marginal import PerImage

Scope = Literal["test", "compared", "simulated"]
"""Over all test images, over the first of them, or over images simulated from the model."""

_ERRORS = ("std_error", "image_std_error")
_DIAGNOSTICS = (
    "effective_sample_size",
    "pareto_k",
    "acceptance",
    "disagreement",
)
_OF_EVERY_EVALUATION = (
    "elbo",
    "log_px",
    "log_px_true",
    "gap",
    "bits_per_dim",
    "pareto_k_high",
    "untrusted",
    "repeated_images",
    "disagreeing",
    "rounding_error",
    "active_units",
    "kl",
    "mutual_information",
    "mutual_information_upper",
    "marginal_kl",
    "num_images",
    "kl_to_posterior",
    "approximation_gap",
    "amortisation_gap",
    "image",  # the two first columns of per_image.csv
    "draw",
    *_DIAGNOSTICS,
)


def is_standard(name: str) -> bool:
    """Whether it is the ELBO, an IWAE bound or ``log_px``, which every evaluation computes."""
    return name in {"elbo", "log_px"} or name.startswith("iwae_")


def require_free_names(names: Iterable[str]) -> None:
    """Refuse further estimators that would overwrite a metric, or a column of ``per_image.csv``.

    Args:
        names: of the further estimators.

    Raises:
        ValueError: for the first name that is taken, by a number of every evaluation or by one of
            another of these estimators.

    >>> require_free_names(["log_px_ais", "my_ais"])
    >>> require_free_names(["my_ais", "my_ais_std_error"])
    Traceback (most recent call last):
    ValueError: estimators.my_ais_std_error: the metric or column my_ais_std_error already exists; \
choose another name
    """
    taken = {derived for name in _OF_EVERY_EVALUATION for derived in _derived(name)}
    for name in names:
        if name.startswith("iwae_"):
            raise ValueError(
                f"estimators.{name}: names that begin with iwae_ are those of the IWAE bounds; "
                "choose another name"
            )
        for derived in _derived(name):
            if derived in taken:
                raise ValueError(
                    f"estimators.{name}: the metric or column {derived} already exists; "
                    "choose another name"
                )
        taken.update(_derived(name))


def _derived(name: str) -> list[str]:
    """The metrics and columns that an estimator of this name may have."""
    return [name, *(f"{name}_{suffix}" for suffix in (*_ERRORS, *_DIAGNOSTICS))]


def metrics_of(scope: Scope, name: str, number: PerImage, draws: int = 1) -> dict[str, float]:
    """The mean over the images, and its two standard errors.

    Args:
        scope: which images.
        name: of the metric.
        number: of these images.
        draws: see ``PerImage.mean_std_error``.
    """
    return {
        f"{scope}/{name}": number.mean(),
        f"{scope}/{name}_std_error": number.mean_std_error(draws),
        f"{scope}/{name}_image_std_error": number.image_std_error(draws),
    }


def set_apart(metrics: Mapping[str, float]) -> dict[str, float]:
    """The names under which MLflow gets them: errors over images in a section of their own.

    MLflow draws each metric, in sections by what is left of the slash.

    >>> set_apart({"test/elbo": -3.0, "test/elbo_image_std_error": 0.1})
    {'test/elbo': -3.0, 'test_se/elbo_image_std_error': 0.1}
    """
    return {
        re.sub(rf"^(\w+)/(\w+_{_ERRORS[1]})$", r"\1_se/\2", name): value
        for name, value in metrics.items()
    }


def put_back(metrics: Mapping[str, float]) -> dict[str, float]:
    """What ``set_apart`` got.

    >>> put_back({"test_se/elbo_image_std_error": 0.1})
    {'test/elbo_image_std_error': 0.1}
    """
    return {name.replace("_se/", "/", 1): value for name, value in metrics.items()}


def merge(*parts: Mapping[str, float]) -> dict[str, float]:
    """All metrics in one dictionary, in this order.

    Raises:
        ValueError: where two of them have one name.

    >>> merge({"test/elbo": -3.0}, {"test/log_px": -2.5})
    {'test/elbo': -3.0, 'test/log_px': -2.5}
    """
    metrics: dict[str, float] = {}
    for part in parts:
        twice = metrics.keys() & part.keys()
        if twice:
            raise ValueError(f"two metrics have the name {min(twice)}; rename one of them")
        metrics |= part
    return metrics
