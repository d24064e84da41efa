"""What a sweeper of ours gets from Hydra: the words of the command line, and a launcher."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from genexp.errors import ConfigError
from genexp.sweep.launcher import SweepLauncher


def parse_sweep_overrides(sweeper: BasicSweeper, arguments: list[str]) -> list[Override]:
    """Return what is swept over and what is fixed: `hydra.sweeper.params`, then the command line's."""
    assert sweeper.hydra_context is not None
    lines = [*(f"{key}={value}" for key, value in sweeper.params.items()), *arguments]
    parser = OverridesParser.create(config_loader=sweeper.hydra_context.config_loader)
    by_key = {override.get_key_element(): override for override in parser.parse_overrides(lines)}
    return list(by_key.values())


def get_sweep_launcher(sweeper: BasicSweeper) -> SweepLauncher:
    """Return the sweeper's launcher. Raises ConfigError where another package's has taken the name of ours."""
    launcher = sweeper.launcher
    if not isinstance(launcher, SweepLauncher):
        raise ConfigError(
            f"hydra/launcher is {type(launcher).__module__}.{type(launcher).__name__}, which keeps no record of a "
            f"sweep; uninstall its package: genexp has launchers of its own"
        )
    return launcher
