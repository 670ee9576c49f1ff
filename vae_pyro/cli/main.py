"""The command: ``vae-pyro`` where the package is installed, ``python run.py`` in a clone."""

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from vae_pyro.cli import startup
from vae_pyro.cli.command_line import check, did_you_mean
from vae_pyro.cli.presets import Presets, conf_folder
from vae_pyro.errors import ConfigError, UserError

_COMMANDS = {  # no overrides: they hold no =
    "compare": "compare:main",
    "deliver": "deliver:main",
    "encode": "trained:encode",
    "register": "register:main",
    "reconstruct": "trained:reconstruct",
    "report": "report:main",
    "sample": "trained:sample",
    "score": "trained:score",
    "ui": "ui:main",
}
_EVALUATE = "evaluate"  # a job, with the settings of an earlier one
_PLAN = "plan"  # before any other command line


def run_job(cfg: DictConfig) -> float | None:
    """Run one job. Launchers import this function by its name, in processes of their own."""
    startup.prepare()
    startup.begin_tracking(OmegaConf.select(cfg, "tracking._target_"))
    with startup.importing():  # torch is slow to import, and --help needs none of it
        from vae_pyro.cli.app import main as run
    return run(cfg)


def main() -> None:
    """Run the job or the sweep that the command line describes.

    A configuration may name the user's own classes, so the current folder is importable. It is
    searched last: a file in it does not replace a module of the same name that is installed.
    """
    startup.prepare()
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first in _COMMANDS:
        module, _, command = _COMMANDS[first].partition(":")
        run = getattr(importlib.import_module(f"vae_pyro.cli.{module}"), command)
        sys.exit(run(sys.argv[2:]))
    if first == _EVALUATE:
        sys.argv[1:] = _evaluation(sys.argv[2:])
        first = ""
    is_plan = first == _PLAN
    if is_plan:
        del sys.argv[1]
        first = ""
    commands = sorted([*_COMMANDS, _EVALUATE, _PLAN])
    hint = did_you_mean(first, commands)
    if first.isalpha() and (hint or len(sys.argv) == 2):  # more words may be "seed 3"
        sys.exit(
            f"error: there is no command {first}{hint}; commands are {', '.join(commands)}, and "
            "settings are written key=value"
        )
    startup.arrange_arguments()
    sys.path.append(os.getcwd())
    Plugins.instance().register(Presets)
    OmegaConf.register_new_resolver("program", _program, replace=True)  # for the text of --help
    try:
        sys.argv[1:] = check(sys.argv[1:], _program(), _PLAN if is_plan else "")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    if is_plan:
        sys.exit(importlib.import_module("vae_pyro.cli.plan").main(sys.argv[1:]))
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(run_job)()


def _evaluation(arguments: Sequence[str]) -> list[str]:
    from vae_pyro.cli.evaluate import arguments_for  # torch is slow to import

    try:
        return arguments_for(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


def _program() -> str:
    """What the user typed to start this program."""
    name = Path(sys.argv[0]).name
    return "python run.py" if name == "run.py" else name
