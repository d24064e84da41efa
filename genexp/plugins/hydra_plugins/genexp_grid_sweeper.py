"""Grid sweeper `hydra/sweeper=basic`, the default: every combination of the given values in one batch of jobs."""

from __future__ import annotations

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore

from genexp.errors import ConfigError
from genexp.sweep.launcher import parse_sweep_overrides, require_sweep_launcher
from genexp.sweep.summary import report_on_exit


class GridSweeper(BasicSweeper):
    """Hydra's BasicSweeper with a summary at the end of the sweep."""

    def __init__(self, params: dict[str, str] | None) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> None:
        """Run all combinations of the values in `arguments`.

        Raises GenexpError if the sweep is invalid or jobs failed.
        """
        launcher = require_sweep_launcher(self)
        overrides = parse_sweep_overrides(self, arguments)
        for override in overrides:
            if override.is_sweep_override() and not override.is_discrete_sweep():
                raise ConfigError(
                    f"{override.input_line}: not a list of values. Use choice(...), or add hydra/sweeper=optuna."
                )
        (batch,) = self.split_arguments(overrides, max_batch_size=None)
        with report_on_exit(launcher.sweep_dir, launcher.started_at):
            launcher.launch(batch, initial_job_idx=0)


# Registered here, not in conf/: Hydra would validate a file there against the schema of its own sweeper.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={"_target_": f"{__name__}.GridSweeper", "params": None},
    provider="genexp",
)
