"""Execution of a sweep's jobs: compatible jobs as an ensemble, the others one after the other."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from genexp.ensemble.autotune import time_both
from genexp.ensemble.compatibility import (
    IncompatibleRunsError,
    find_incompatibility,
    format_differing_keys,
    group_jobs,
)
from genexp.ensemble.loop import train_ensemble
from genexp.ensemble.member import EnsembleMember
from genexp.errors import RunDirInUseError
from genexp.runs.build import Run
from genexp.runs.run import open_run_context
from genexp.sweep.job import Job, run_hydra_task, run_job, silence_console
from genexp.training.stopping import stop_on_signals

MessageCallback = Callable[[str], None]


def run_jobs(
    jobs: Sequence[Job], can_start_job: Callable[[], bool], print_line: MessageCallback, *, should_measure: bool
) -> signal.Signals | None:
    """Run jobs. Return the signal that stopped them, or None.

    Compatible jobs run as an ensemble. With `should_measure`, they run as an ensemble only if this is faster. No
    further job starts after `can_start_job` has returned False.
    """
    sequential_groups: list[Sequence[Job]] = []
    for group in group_jobs(jobs):
        if len(group) == 1:
            sequential_groups.append(group)
            continue
        obstacle = find_incompatibility(group)
        if obstacle is not None:
            print_line(f"{_format_job_numbers([job.number for job in group])} run sequentially: {obstacle}")
            sequential_groups.append(group)
            continue
        if not can_start_job():
            return None
        stop_signal, remaining_groups = _run_ensemble(group, print_line, should_measure=should_measure)
        if stop_signal is not None:
            return stop_signal
        sequential_groups += remaining_groups
    single_jobs = [group for group in sequential_groups if len(group) == 1]
    if len(single_jobs) > 1:
        job_label = _format_job_numbers([job.number for (job,) in single_jobs])
        print_line(f"{job_label} run sequentially: they differ in {format_differing_keys(single_jobs)}")
    for job in (job for group in sequential_groups for job in group):
        if not can_start_job():
            return None
        stop_signal = run_job(job)
        if stop_signal is not None:
            return stop_signal
    return None


def _run_ensemble(
    jobs: Sequence[Job], print_line: MessageCallback, *, should_measure: bool
) -> tuple[signal.Signals | None, list[Sequence[Job]]]:
    """Run jobs as ensembles, one for each start step. Return the stop signal and the groups that did not run."""
    remaining_groups: list[Sequence[Job]] = []
    with _open_members(jobs) as (all_members, locked_jobs):
        if locked_jobs:
            job_label = _format_job_numbers([job.number for job in locked_jobs])
            print_line(f"{job_label} run later: another process has locked the run directory")
        for _, members_at_step in groupby(
            sorted(all_members, key=lambda member: member.context.completed_steps),
            key=lambda member: member.context.completed_steps,
        ):
            members = list(members_at_step)
            if not _should_run_ensemble(members, print_line, should_measure=should_measure):
                remaining_groups.append([job for job in jobs if job.number in {row.job_number for row in members}])
                continue
            trainer_config, until_epoch = members[0].run.config.trainer, jobs[0].until_epoch
            with stop_on_signals(trainer_config.time_budget, until_epoch=until_epoch) as stop:
                train_ensemble(members, stop)
            if stop.received_signal is not None:
                return stop.received_signal, []
    # Locked jobs come last, because `run_job` waits for their locks.
    return None, [*remaining_groups, locked_jobs] if locked_jobs else remaining_groups


def _should_run_ensemble(
    members: Sequence[EnsembleMember], print_line: MessageCallback, *, should_measure: bool
) -> bool:
    job_label = _format_job_numbers([member.job_number for member in members])
    if len(members) == 1:
        return False
    try:
        timing = time_both(members, should_measure=should_measure)
    except IncompatibleRunsError as error:
        print_line(f"{job_label} run sequentially: {error}")
        return False
    if timing is None:
        print_line(f"{job_label} run as an ensemble")
        return True
    ensemble_ms, sequential_ms = timing.ensemble_seconds * 1000, timing.sequential_seconds * 1000
    times = f"{ensemble_ms:.3g} ms per step of all jobs, sequentially {sequential_ms:.3g} ms"
    print_line(f"{job_label} run {'as an ensemble' if timing.is_ensemble_faster else 'sequentially'}: {times}")
    return timing.is_ensemble_faster


@contextmanager
def _open_members(jobs: Sequence[Job]) -> Iterator[tuple[list[EnsembleMember], list[Job]]]:
    """Build the members of one group of jobs on one shared data set.

    The second list has the jobs whose directories another process locks. Jobs that cannot be built are in neither
    list: their failure is recorded.
    """
    members: list[EnsembleMember] = []
    locked_jobs: list[Job] = []
    with silence_console(), warnings.catch_warnings():
        # Warning of vmap about operations without a batching rule, which it computes member by member.
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            for job in jobs:
                result = _build_member(job, members[0].run if members else None)
                if isinstance(result, EnsembleMember):
                    members.append(result)
                elif isinstance(result, RunDirInUseError):
                    locked_jobs.append(job)
            yield members, locked_jobs
        finally:
            for member in members:
                member.release()


def _build_member(job: Job, data_from: Run | None) -> EnsembleMember | RunDirInUseError | None:
    """Return the member of `job`; an error if another process locks its directory; None if it cannot be built."""

    def build(values: Mapping[str, Any], run_dir: Path) -> EnsembleMember:
        with ExitStack() as exit_stack:
            context = exit_stack.enter_context(open_run_context(values, run_dir, data_from))
            return EnsembleMember(job.number, context, exit_stack.pop_all())
        raise AssertionError

    result: EnsembleMember | RunDirInUseError | None = run_hydra_task(job, build)
    return result


def _format_job_numbers(job_numbers: Sequence[int]) -> str:
    numbers = sorted(job_numbers)
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"jobs #{numbers[0]} to #{numbers[-1]}"
    return f"{'jobs' if len(numbers) > 1 else 'job'} {', '.join(f'#{number}' for number in numbers)}"
