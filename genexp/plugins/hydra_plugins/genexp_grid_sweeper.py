"""`hydra/sweeper=basic`, the default: every combination of the values given, as one batch of jobs."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

from genexp.sweep.hydra_overrides import launcher_of, overrides_of
from genexp.sweep.summary import concluded


class GridSweeper(BasicSweeper):
    """Hydra's own sweeper, which ends in an answer."""

    def __init__(self, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> None:
        """Run all combinations. Raises GenexpError."""
        launcher = launcher_of(self)
        (batch,) = self.split_arguments(overrides_of(self, arguments), max_batch_size=None)
        with concluded(launcher.folder, launcher.begun):
            launcher.launch(batch, initial_job_idx=0)


# Not a file in conf/, which Hydra would hold against its own sweeper's schema.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={"_target_": f"{__name__}.GridSweeper", "params": None},
    provider="genexp",
)
