"""Sequential launcher `hydra/launcher=basic`, the default: all jobs of a sweep in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.sweep.job import Job, run_job
from genexp.sweep.launcher import SweepLauncher


class BasicLauncher(SweepLauncher):
    """Launcher that runs one job after the other in this process."""

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. A signal that stops one of them ends the sweep with exit code 128 + its number."""
        for job in jobs:
            if not self.can_start_job():
                return
            stop_signal = run_job(job)
            if stop_signal is not None:
                sys.exit(128 + stop_signal)


# Registered here, not in conf/: Hydra would validate a file there against the schema of its own launcher.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="basic",
    node={"_target_": f"{__name__}.BasicLauncher"},
    provider="genexp",
)
