"""``vae-pyro plan``: the jobs of a command, with their times, and none of them run."""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vae_pyro.cli.app import split_overrides
from vae_pyro.cli.command_line import jobs_of
from vae_pyro.cli.console import attempt, make_console
from vae_pyro.cli.presets import conf_folder
from vae_pyro.progress import duration_in_words
from vae_pyro.reporting.naming import job_name
from vae_pyro.reporting.tables import SummaryTable, print_notes, print_table
from vae_pyro.runs.forecast import Forecast, forecast
from vae_pyro.runs.manifest import relevant_overrides


def main(arguments: Sequence[str]) -> int:
    """The jobs that a command would start, and about how long they would take on this machine."""
    parser = argparse.ArgumentParser(
        prog="vae-pyro plan",
        usage="%(prog)s [-h] [KEY=VALUE ...] [-m]",
        description=main.__doc__,
        epilog="For instance: vae-pyro plan latent_dim=2,10,20 -m (vae-pyro --help lists all "
        "settings)",
    )
    _, words = parser.parse_known_args(arguments)

    def plan() -> None:
        torch.set_flush_denormal(True)  # as a job does
        known: dict[tuple[str, ...], Forecast] = {}
        rows, seconds = [], 0.0
        whole = split_overrides(relevant_overrides([word for word in words if "=" in word]))
        for overrides in jobs_of(words):
            unseeded = tuple(one for one in overrides if not one.startswith("seed="))
            if unseeded not in known:
                known[unseeded] = _forecast(overrides)
            times = known[unseeded]
            seconds += times.together
            name = job_name(split_overrides(relevant_overrides(overrides)), whole)
            parts = (times.training, times.evaluation, times.together)
            rows.append([name, *map(duration_in_words, parts)])
        table = SummaryTable("", ["job", "training", "evaluation", "together"], rows)
        console = make_console()
        print_table(table, console)
        one_by_one = "" if len(rows) == 1 else ", one after another"
        print_notes(
            [
                f"{len(rows)} job{'s' * (len(rows) > 1)}{one_by_one}: "
                f"about {duration_in_words(seconds)} on this machine, "
                f"with {torch.get_num_threads()} threads",
                "measured on a few steps and images; training may end sooner, when validation no "
                "longer improves. Nothing was recorded",
            ],
            console,
        )

    return attempt(plan)


def _forecast(overrides: Sequence[str]) -> Forecast:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("config", list(overrides), return_hydra_config=True)
    choices = {
        group: option
        for group, option in config.hydra.runtime.choices.items()
        if not group.startswith("hydra/")
    }
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    tree: Any = OmegaConf.to_container(own, resolve=True)
    return forecast(tree, choices)
