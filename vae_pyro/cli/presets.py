"""A launcher or sweeper in ``conf/hydra`` replaces the plugin's own configuration of that name.

Without this, Hydra validates such a file against the plugin's configuration with a deprecation
warning, and refuses it where that configuration has a defaults list, as the Optuna sweeper's has.

The command registers this plugin for itself. In the folder ``hydra_plugins``, Hydra would load it
in every other Hydra program of the same environment, and change their launchers too.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.plugins.search_path_plugin import SearchPathPlugin


def conf_folder() -> Path:
    """The folder of the configurations: inside an installed package, beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


class Presets(SearchPathPlugin):
    """Hydra calls it once, after all plugins stored their configurations and before it composes."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:  # noqa: ARG002
        """Remove the stored configurations that ``conf/hydra`` replaces."""
        stored = ConfigStore.instance().repo["hydra"]
        for group in ("launcher", "sweeper"):
            for preset in (conf_folder() / "hydra" / group).glob("*.yaml"):
                stored[group].pop(preset.name, None)
