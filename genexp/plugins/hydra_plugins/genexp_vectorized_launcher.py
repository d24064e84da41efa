"""`hydra/launcher=vectorized`: jobs that differ in seeds and numbers only, as one computation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher


class VectorizedLauncher(SweepLauncher):
    """Many models as one; what cannot be, or is not faster so, runs one job after the other."""

    def __init__(self, measure: bool) -> None:
        self.measure = measure

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs; a signal that stops them ends the sweep."""
        from genexp.ensemble.run import run_jobs  # with torch: every start imports this module

        stop_signal = run_jobs(jobs, self.can_start_job, self.progress.print_line, should_measure=self.measure)
        if stop_signal is not None:
            sys.exit(128 + stop_signal)


# Not a file in conf/, which Hydra would hold against a launcher's schema.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="vectorized",
    node={"_target_": f"{__name__}.VectorizedLauncher", "measure": True},
    provider="genexp",
)
