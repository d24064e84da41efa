"""`hydra/launcher=basic`, the default: the jobs of a sweep in this process, one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.sweep.job import Job, run_job
from genexp.sweep.launcher import SweepLauncher


class BasicLauncher(SweepLauncher):
    """One job after the other."""

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs; a signal that stops one ends the sweep."""
        for job in jobs:
            if not self.can_start_job():
                return
            stop_signal = run_job(job)
            if stop_signal is not None:
                sys.exit(128 + stop_signal)


# Not a file in conf/, which Hydra would hold against its own launcher's schema.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="basic",
    node={"_target_": f"{__name__}.BasicLauncher"},
    provider="genexp",
)
