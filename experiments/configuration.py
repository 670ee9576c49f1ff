"""The configuration of ``conf/`` with overrides, as plain nested dictionaries."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from vae_pyro.cli.presets import conf_folder
from vae_pyro.config import flatten
from vae_pyro.errors import ConfigError


def configuration(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The resolved configuration, and the choice of each group.

    Raises:
        ConfigError: if an override does not fit the configuration.
    """
    try:
        return _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"{_explain(error)} (python run.py --help lists the keys)") from error


def _compose(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", list(overrides), return_hydra_config=True)
    choices = cfg.hydra.runtime.choices
    with open_dict(cfg):
        del cfg["hydra"]
    tree = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(tree, dict)
    return (
        {str(key): value for key, value in tree.items()},
        {k: v for k, v in choices.items() if not k.startswith("hydra/")},
    )


def _explain(error: Exception) -> str:
    """What is wrong, in one line, and the closest key where one does not exist."""
    unknown = re.match(r"Could not override '(.+?)'", str(error))
    if unknown is None:
        return " ".join(str(error).partition("Config search path")[0].split())
    tree, choices = _compose([])
    close = difflib.get_close_matches(unknown[1], [*flatten(tree), *choices], n=1)
    return f"{unknown[1]}: no such key" + (f"; did you mean {close[0]}?" if close else "")
