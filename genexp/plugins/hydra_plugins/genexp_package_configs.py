"""Hydra's search path: the directory `conf` of each installed package that registers techniques or data sets."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from genexp.cli.plugins import list_package_config_dirs


class PackageConfigs(SearchPathPlugin):
    """Extension of Hydra's search path. Hydra finds this class by its module."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the directories. Earlier ones take precedence."""
        for directory in list_package_config_dirs():
            search_path.append("genexp-packages", f"file://{directory}")
