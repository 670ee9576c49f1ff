"""A sweep as data: the files that it leaves, and its own metrics in MLflow."""

import re
from collections.abc import Sequence

from vae_pyro.reporting.configurations import SEED, Configuration, Group
from vae_pyro.reporting.naming import in_words
from vae_pyro.reporting.results import JobResult, bound_names, setting
from vae_pyro.reporting.tables import to_csv

_DIM = "latent_dim"
_UNNAMEABLE = re.compile(r"[^\w\-. :]+")  # in the name of one of MLflow's metrics
_DIGITS = 7  # significant, of a number in a file


def sweep_metrics(groups: Sequence[Group]) -> list[tuple[dict[str, float], int]]:
    """The bounds and log p(x) of every configuration, for the sweep's own charts.

    ``sweep/elbo``, ``sweep/iwae_50``, ``sweep/log_px``: means over the training seeds, nats per
    test image, of a density as a lower bound on log P(image). Where the sweep varies something
    other than the latent dimension, its value comes in between: ``sweep/beta/elbo``.

    Returns:
        metrics and their step, which is the latent dimension, or 0 where all have the same.
    """
    rows = [one for group in groups for one in group.configurations]
    keys = dict.fromkeys(key for one in rows for key in one.settings)
    varying = {key for key in keys if len({one.settings.get(key) for one in rows}) > 1}
    found = []
    for group in groups:
        for one in group.configurations:
            words = in_words({k: v for k, v in one.settings.items() if k in varying - {_DIM}})
            place = ["sweep", *filter(None, [_UNNAMEABLE.sub(" ", words).strip()])]
            nats = {name: one.nats(name) for name in bound_names(group.runs)}
            metrics = {
                "/".join([*place, name.partition("/")[2]]): value
                for name, value in nats.items()
                if value is not None
            }
            found.append((metrics, int(one.settings[_DIM]) if _DIM in varying else 0))
    return found


def summary_csv(groups: Sequence[Group]) -> str:
    """One row for each configuration: means over seeds, difference to the highest, rank."""
    rows = []
    for group in groups:
        # A mean of error bars is no error bar of the mean; those of each run are in runs.csv.
        metrics = [
            name
            for name in dict.fromkeys(name for run in group.runs for name in run.metrics)
            if not name.endswith("_std_error")
        ]
        for one in group.configurations:
            row: dict[str, object] = {
                **_about_x(one.runs[0]),
                **one.settings,
                "seeds": one.scores.num_seeds,
                **_compared(group, one),
                **{name: one.mean(name) for name in metrics},
            }
            rows.append(row)
    return _csv(rows)


def _compared(group: Group, one: Configuration) -> dict[str, object]:
    """A configuration among those of its group."""
    comparison, best = group.comparison, group.comparison.highest
    low_rank, high_rank = comparison.ranks[one.name]
    parts = one.scores.components()
    row: dict[str, object] = {
        "log_px_seed_std": one.scores.value.mean(1).std().item() if len(one.runs) > 1 else None,
        **{f"log_px_variance_{name}": number for name, number in vars(parts).items()},
        "rank_first": low_rank,
        "rank_last": high_rank,
        "in_best_set": one.name in comparison.best_set,
    }
    if one.name != best:
        difference = comparison.difference(one.name, best)
        low, high = difference.interval()
        row |= {
            "difference_to_highest": difference.value,
            "difference_std_error": difference.std_error,
            "difference_low": low,
            "difference_high": high,
            "difference_is_about": difference.scope.name.lower(),
        }
    return row


def runs_csv(groups: Sequence[Group]) -> str:
    """One row for each run, with every final metric and its own errors."""
    return _csv(
        [
            {
                **_about_x(run),
                **one.settings,
                SEED: setting(run, SEED),
                **run.metrics,
            }
            for group in groups
            for one in group.configurations
            for run in one.runs
        ]
    )


def comparison_csv(groups: Sequence[Group]) -> str:
    """One row for each pair of configurations with one kind of x."""
    rows: list[dict[str, object]] = []
    for group in groups:
        seeds = {one.name: one.scores.num_seeds for one in group.configurations}
        for difference in group.comparison.differences:
            low, high = difference.interval()
            rows.append(
                {
                    "x": group.x,
                    "first": difference.first,
                    "second": difference.second,
                    "first_seeds": seeds[difference.first],
                    "second_seeds": seeds[difference.second],
                    "num_images": group.configurations[0].scores.num_images,
                    "difference": difference.value,
                    "std_error": difference.std_error,
                    "degrees_of_freedom": difference.degrees_of_freedom,
                    "low": low,
                    "high": high,
                    "is_about": difference.scope.name.lower(),
                    "monte_carlo_std_error": difference.monte_carlo_std_error,
                    "unpaired_std_error": difference.unpaired_std_error,
                    "p_value": difference.p_value,
                    "p_value_holm": difference.adjusted_p_value,
                    "verdict": difference.verdict,
                }
            )
    return _csv(rows)


def _about_x(run: JobResult) -> dict[str, object]:
    return {"x": run.x, "images": run.images, "log_cell_volume": run.log_cell_volume}


def _csv(rows: Sequence[dict[str, object]]) -> str:
    """Rows with the columns of all of them; numbers have seven significant digits."""
    columns = list({name: None for row in rows for name in row})
    return to_csv([{name: _cell(cell) for name, cell in row.items()} for row in rows], columns)


def _cell(cell: object) -> object:
    if isinstance(cell, float):
        return float(f"{cell:.{_DIGITS}g}")
    return "" if cell is None else cell
