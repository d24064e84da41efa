"""The jobs of a sweep, as many as possible as one computation and the rest one after the other."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path

from omegaconf import DictConfig

from genexp.ensemble.autotune import tried
from genexp.ensemble.compatibility import UnlikeError
from genexp.ensemble.grouping import differences, groups, obstacle
from genexp.ensemble.loop import train_together
from genexp.ensemble.member import Row
from genexp.runs.build import Run
from genexp.runs.run import sitting_down
from genexp.sweep.job import Job, in_hydra, quiet_console, run_job
from genexp.training.stopping import stop_on_signals

Say = Callable[[str], None]


def run_together(
    jobs: Sequence[Job], may_begin: Callable[[], bool], say: Say, *, measure: bool
) -> signal.Signals | None:
    """Run jobs; return the signal that stopped them, if one did.

    What can be one computation and is faster so is; all of it that can be, where nothing is to be `measured`.
    """
    alone: list[Sequence[Job]] = []
    for group in groups(jobs):
        if len(group) == 1:
            alone.append(group)
            continue
        reason = obstacle(group)
        if reason is not None:
            say(f"{_names([job.number for job in group])} one after the other: {reason}")
            alone.append(group)
            continue
        if not may_begin():
            return None
        stopped, rest = _as_one(group, say, measure=measure)
        if stopped is not None:
            return stopped
        alone += rest
    single = [group for group in alone if len(group) == 1]
    if len(single) > 1:
        names = _names([job.number for (job,) in single])
        say(f"{names} one after the other: they differ in {differences(single)}")
    for job in (job for group in alone for job in group):
        if not may_begin():
            return None
        stopped = run_job(job)
        if stopped is not None:
            return stopped
    return None


def _as_one(jobs: Sequence[Job], say: Say, *, measure: bool) -> tuple[signal.Signals | None, list[Sequence[Job]]]:
    """Run jobs as one computation; return the signal that stopped them, and the jobs that are left."""
    left: list[Sequence[Job]] = []
    with _rows(jobs) as rows:
        for _, several in groupby(
            sorted(rows, key=lambda row: row.sitting.start), key=lambda row: row.sitting.start
        ):
            some = list(several)
            if not _is_worth_it(some, say, measure=measure):
                left.append([job for job in jobs if job.number in {row.number for row in some}])
                continue
            trainer, until = some[0].built.trainer, jobs[0].until_epoch
            with stop_on_signals(trainer.time_budget, until_epoch=until) as stop:
                train_together(some, stop)
            if stop.signal is not None:
                return stop.signal, []
    return None, left


def _is_worth_it(rows: Sequence[Row], say: Say, *, measure: bool) -> bool:
    names = _names([row.number for row in rows])
    if len(rows) == 1:
        return False
    try:
        trial = tried(rows, measure=measure)
    except UnlikeError as error:
        say(f"{names} one after the other: {error}")
        return False
    if trial is None:
        say(f"{names} as one computation")
        return True
    figures = f"{trial.together * 1000:.3g} ms a step of all, one after the other {trial.alone * 1000:.3g} ms"
    say(f"{names} {'as one computation' if trial.pays else 'one after the other'}: as one {figures}")
    return trial.pays


@contextmanager
def _rows(jobs: Sequence[Job]) -> Iterator[list[Row]]:
    """Build jobs that differ in numbers only, on one data set; one that cannot be built is left out."""
    rows: list[Row] = []
    with quiet_console(), warnings.catch_warnings():
        # Where vmap has no rule for an operation it calls it row by row, which is what a run alone does.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            for job in jobs:
                row = _built(job, rows[0].built if rows else None)
                if row is not None:
                    rows.append(row)
            yield rows
        finally:
            for row in rows:
                row.leave()


def _built(job: Job, like: Run | None) -> Row | None:
    def build(config: DictConfig, folder: Path) -> Row:
        with ExitStack() as left:
            sitting = left.enter_context(sitting_down(config, folder, like))
            return Row(job.number, sitting, left.pop_all())
        raise AssertionError

    row = in_hydra(job, build)
    return row if isinstance(row, Row) else None


def _names(jobs: Sequence[int]) -> str:
    numbers = sorted(jobs)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"jobs #{numbers[0]} to #{numbers[-1]}"
    return f"{'jobs' if len(numbers) > 1 else 'job'} {', '.join(f'#{number}' for number in numbers)}"
