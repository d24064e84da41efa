"""Vectorized launcher `hydra/launcher=vectorized`: one ensemble of jobs that differ in seeds and floats only."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore

from genexp.sweep.job import Job
from genexp.sweep.launcher import SweepLauncher


class VectorizedLauncher(SweepLauncher):
    """Launcher that trains compatible jobs as one ensemble, and all other jobs one after the other.

    With `measure`, jobs are trained as an ensemble only if this is faster than one after the other.
    """

    def __init__(self, measure: bool) -> None:
        self.measure = measure

    def execute(self, jobs: Sequence[Job]) -> None:
        """Run the jobs. A signal that stops them ends the sweep with exit code 128 + its number."""
        from genexp.ensemble.run import run_jobs  # imports torch; every command imports this module

        stop_signal = run_jobs(jobs, self.can_start_job, self.progress.print_line, should_measure=self.measure)
        if stop_signal is not None:
            sys.exit(128 + stop_signal)


# Registered here, not in conf/, like the launchers that have the name of a Hydra plugin.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="vectorized",
    node={"_target_": f"{__name__}.VectorizedLauncher", "measure": True},
    provider="genexp",
)
