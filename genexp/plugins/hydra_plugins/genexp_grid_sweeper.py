"""`hydra/sweeper=basic`, the default: every combination of the values given, as one batch of jobs."""

from __future__ import annotations

import time
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from genexp.sweep.ending import concluded


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, which ends in an answer."""

    def __init__(self, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> None:
        """Run all combinations. Raises GenexpError."""
        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        folder = Path(self.config.hydra.sweep.dir).absolute()
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        (batch,) = self.split_arguments(parser.parse_overrides(words), max_batch_size=None)
        with concluded(folder, time.time()):
            self.launcher.launch(batch, initial_job_idx=0)


# Not a file in conf/, which Hydra would hold against its own sweeper's schema.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={"_target_": f"{__name__}.GridSweeper", "params": None},
    provider="genexp",
)
