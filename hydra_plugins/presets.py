"""Where ``conf/hydra`` has a launcher or sweeper by a plugin's name, it replaces the plugin's own.

Hydra finds this file because it lies in a folder of this name beside ``run.py``. Left to itself,
Hydra validates such a file against the plugin's configuration with a deprecation warning, and
refuses it where that one has a defaults list, as the Optuna sweeper's has.
"""

import os
from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin

# A suite that people run on their own data has no business reporting on its use.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_OURS = Path(__file__).parents[1] / "conf" / "hydra"


class Presets(SearchPathPlugin):
    """Called once, when all plugins have stored their configurations and none is composed yet."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:  # noqa: ARG002
        stored = ConfigStore.instance().repo["hydra"]
        for group in ("launcher", "sweeper"):
            for preset in (_OURS / group).glob("*.yaml"):
                stored[group].pop(preset.name, None)
