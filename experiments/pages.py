"""The numbers in the READMEs: written between marks from ``results.json``, never by hand."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.numbers import Number

HERE = Path(__file__).parent
NAMES = (
    "what_is_p_of_an_image",
    "how_to_estimate_p_of_x",
    "is_two_dimensions_enough",
    "autoencoder_pca_vae",
    "why_approximate_the_posterior",
    "which_likelihood",
    "do_networks_output_distributions",
    "prior_or_aggregated_posterior",
    "generate_and_classify",
    "moving_in_latent_space",
    "can_the_error_bars_be_trusted",
)
_MARK = re.compile(r"<!--([\w.]+)-->(.*?)<!---->", re.DOTALL)
_TABLE = re.compile(r"(<!-- table -->\n).*(<!-- end -->)", re.DOTALL)


def read_results(folder: Path) -> dict[str, Any]:
    """The contents of an experiment's ``results.json``."""
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return results


def values(results: Mapping[str, Any]) -> dict[str, str]:
    """All that a page can quote, by name: numbers, predictions, the answer and the cost."""
    numbers = {name: Number(**number) for name, number in results["numbers"].items()}
    found = {name: str(number) for name, number in numbers.items()}
    found |= {f"{name}.brief": number.brief for name, number in numbers.items()}
    found |= {f"{name}.interval": number.shown_interval for name, number in numbers.items()}
    found["num_seeds"] = str(max(len(number.seeds) for number in numbers.values()))
    found |= {name: f"**{verdict}**" for name, verdict in results["predictions"].items()}
    return found | {"answer": results["answer"], "cost": results["cost"]}


def fill(page: str, results: Mapping[str, Any]) -> str:
    """A page with every ``<!--name-->...<!---->`` filled from the results.

    A mark whose name was not measured becomes ``none``, so that a long run is not lost for it.
    """
    known = values(results)
    return _MARK.sub(lambda mark: f"<!--{mark[1]}-->{known.get(mark[1], 'none')}<!---->", page)


def fill_table(page: str, names: Sequence[str]) -> str:
    """The page of all experiments with a new table of questions, answers and figures."""
    rows = ["| question | answer | figure |", "|---|---|---|"]
    for name in names:
        if not (HERE / name / "results.json").is_file():
            continue
        results = read_results(HERE / name)
        picture = (
            f'<a href="{name}/README.md"><img src="{name}/figure.png" width="320" alt="figure"></a>'
        )
        # The bar in p(x | z) would end a cell.
        question, answer = (results[key].replace("|", "\\|") for key in ("question", "answer"))
        rows.append(f"| [{question}]({name}/README.md) | {answer} | {picture} |")
    return _TABLE.sub(lambda match: match[1] + "\n".join(rows) + "\n" + match[2], page)
