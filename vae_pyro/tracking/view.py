"""The saved view *ELBO vs IWAE* of MLflow's runs page: which columns and charts it opens with.

MLflow keeps saved views as tags of an experiment. Their content is undocumented; what is here
follows MLflow 3.17, with which it is tested.
"""

import base64
import json
import zlib
from typing import Any
from urllib.parse import urlencode

NAME = "ELBO vs IWAE"
_KEY = "elbo-vs-iwae"
_TAG = f"mlflow.sharedViewState.{_KEY}"
_MADE = 1_764_460_800_000  # milliseconds since 1970; any constant will do
_BOUNDS = ("elbo", "iwae_50", "log_px")
_SHOWN = "log p(x), higher is better", "training", "pictures"
_FOLDED = "sweep", "final", "test", "test_se", "compared", "time", "train", "valid"


def link(address: str, experiment_id: str) -> str:
    """The page of an experiment's runs, with the saved view.

    Args:
        address: of MLflow's server, for instance ``http://127.0.0.1:5000``.
        experiment_id: MLflow's.

    >>> link("http://127.0.0.1:5000", "1").partition("?")[0]
    'http://127.0.0.1:5000/#/experiments/1/runs'
    """
    query = {
        "workflowType": "machine_learning",  # of MLflow's two faces, the one for trained models
        "compareRunsMode": "CHART",
        "viewStateShareKey": _KEY,
    }
    return f"{address}/#/experiments/{experiment_id}/runs?{urlencode(query)}"


def missing_view(tags: dict[str, str]) -> dict[str, str]:
    """The tag that holds the view, where an experiment has none or an older one of ours.

    Args:
        tags: of the experiment. A view that somebody has changed in MLflow stays as it is.
    """
    tag = _tag()
    if _TAG in tags and (tags[_TAG] == tag or _was_changed(tags[_TAG])):
        return {}
    return {_TAG: tag}


def _was_changed(tag: str) -> bool:
    """Whether MLflow has saved this view since it was made here."""
    try:
        view = json.loads(tag)
        return bool(view["createdAt"] != view["updatedAt"])
    except (ValueError, KeyError, TypeError):
        return True


def _tag() -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(_state()).encode(), 9)).decode()
    # A tag of an experiment holds 5,000 characters.
    view = {"name": NAME, "createdAt": _MADE, "updatedAt": _MADE, "state": f"deflate;{packed}"}
    return json.dumps(view)


def _state() -> dict[str, Any]:
    """The page's state, by the names that MLflow has for it."""
    columns = [
        *(f"params.`{name}`" for name in ("latent_dim", "likelihood", "seed")),
        *(f"metrics.`test/{name}`" for name in (*_BOUNDS, "pareto_k_high")),
    ]
    return {
        "searchFilter": "",
        # Sorted by time, MLflow would hide the jobs of a sweep behind their parent.
        "orderByKey": "metrics.`test/log_px`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
        "columnOrder": columns,
        "runsHiddenMode": "SHOW_ALL",
        "isAccordionReordered": True,
        "compareRunCharts": [
            {
                "uuid": str(number),
                "runsCountToCompare": 100,
                "deleted": False,
                "isGenerated": False,
                **chart,
            }
            for number, chart in enumerate(_charts())
        ],
        "compareRunSections": [
            {
                "uuid": name,
                "name": name,
                "display": name in _SHOWN,
                "isReordered": True,
                "deleted": False,
                "isGenerated": False,
            }
            for name in (*_SHOWN, *_FOLDED)
        ],
    }


def _charts() -> list[dict[str, Any]]:
    numbers, training, pictures = _SHOWN
    return [
        _lines(numbers, *(f"sweep/{name}" for name in _BOUNDS)),
        *(_against_latent_dim(numbers, f"test/{name}") for name in _BOUNDS),
        {"type": "BAR", "metricSectionId": numbers, "metricKey": "test/pareto_k_high"},
        *(_lines(training, f"{name}/elbo") for name in ("train", "valid")),
        *(_lines(training, f"valid/{name}") for name in ("reconstruction", "kl")),
        *(
            {
                "type": "IMAGE",
                "metricSectionId": pictures,
                "imageKeys": [f"final/{name}"],
                "step": 0,
                "showRunParams": False,
            }
            for name in ("samples", "reconstructions", "latent_space")
        ),
    ]


def _lines(section: str, *metrics: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricSectionId": section,
        "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics),
        "lineSmoothness": 0,
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "range": {},
        "xAxisKey": "step",
        "selectedXAxisMetricKey": "",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _against_latent_dim(section: str, metric: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "metricSectionId": section,
        "xaxis": {"key": "latent_dim", "type": "PARAM"},
        "yaxis": {"key": metric, "type": "METRIC"},
    }
