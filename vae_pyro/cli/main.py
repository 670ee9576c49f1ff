"""The command: ``vae-pyro`` where the package is installed, ``python run.py`` in a clone."""

import importlib
import os
import sys
from pathlib import Path

import hydra
from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from vae_pyro.cli import startup
from vae_pyro.cli.command_line import check, did_you_mean
from vae_pyro.cli.presets import Presets, conf_folder
from vae_pyro.errors import ConfigError

_COMMANDS = ("compare", "deliver", "ui")  # no overrides: they hold no =


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
        sys.exit(importlib.import_module(f"vae_pyro.cli.{first}").main(sys.argv[2:]))
    hint = did_you_mean(first, _COMMANDS)
    if first.isalpha() and (hint or len(sys.argv) == 2):  # more words may be "seed 3"
        sys.exit(
            f"error: there is no command {first}{hint}; commands are {', '.join(_COMMANDS)}, and "
            "settings are written key=value"
        )
    startup.arrange_arguments()
    sys.path.append(os.getcwd())
    Plugins.instance().register(Presets)
    OmegaConf.register_new_resolver("program", _program, replace=True)  # for the text of --help
    try:
        check(sys.argv[1:], _program())
    except ConfigError as error:
        sys.exit(f"error: {error}")
    hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(run_job)()


def _program() -> str:
    """What the user typed to start this program."""
    name = Path(sys.argv[0]).name
    return "python run.py" if name == "run.py" else name
