"""Timing of a few ensemble steps against the same steps of a single run."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from genexp.device import synchronize
from genexp.ensemble.compatibility import IncompatibleRunsError
from genexp.ensemble.loop import build_step, make_batches
from genexp.ensemble.member import EnsembleMember
from genexp.ensemble.step import EnsembleStep
from genexp.seeding import seed_generators
from genexp.technique import Batch, Clock, GradientPhase
from genexp.training.trainer import initialize_technique

TIMING_ROUNDS = 5  # the first round is a warm-up and is not counted
STEPS_PER_ROUND = 4  # steps of the single run in each round
# Fractions of a run at which the losses are computed once, since a schedule may change the computation.
CHECKED_FRACTIONS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TimingResult:
    """Median duration of one step of all members."""

    ensemble_seconds: float  # one step of all members together
    sequential_seconds: float  # one step of each member, one after the other

    @property
    def is_ensemble_faster(self) -> bool:
        return self.ensemble_seconds < self.sequential_seconds


def time_both(members: Sequence[EnsembleMember], *, should_measure: bool) -> TimingResult | None:
    """Check that the members can be one ensemble. Return the step durations if `should_measure`, else None.

    The members are left unchanged. Raises IncompatibleRunsError where they cannot be one ensemble.
    """
    with _preserve_states(members):
        clock = Clock(
            members[0].context.completed_steps,
            members[0].run.total_steps,
            members[0].run.data.batch_source.steps_per_epoch,
        )
        for member in members:
            if clock.step == 0:
                initialize_technique(member.run.learner, member.run.data.train_batches, member.run.config.seed)
        ensemble_step = build_step(members)
        batches, is_shared = make_batches(members, clock.step + 1)
        batch = next(batches)
        try:
            _require_computable_losses(ensemble_step, batch, is_shared, clock)
            return _time_steps(members, ensemble_step, batch, is_shared, clock) if should_measure else None
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise IncompatibleRunsError(_format_error(ensemble_step, error)) from error


def _require_computable_losses(ensemble_step: EnsembleStep, batch: Batch, is_shared: bool, clock: Clock) -> None:
    for fraction in CHECKED_FRACTIONS:
        step = max(clock.step + 1, round(fraction * clock.total_steps))
        later_clock = Clock(step, clock.total_steps, clock.steps_per_epoch)
        for phase in ensemble_step.learners[0].phases:
            if isinstance(phase, GradientPhase):
                ensemble_step.compute_losses(phase, batch, is_shared, later_clock)


def _time_steps(
    members: Sequence[EnsembleMember], ensemble_step: EnsembleStep, batch: Batch, is_shared: bool, clock: Clock
) -> TimingResult:
    first_run, train_batches = members[0].run, members[0].run.data.train_batches
    member_batch = batch if is_shared else {name: stream[0] for name, stream in batch.items()}
    ensemble_times, sequential_times = [], []
    for round_number in range(1, TIMING_ROUNDS + 1):
        step_clock = Clock(clock.step + round_number, clock.total_steps, clock.steps_per_epoch)

        def run_ensemble(clock: Clock = step_clock) -> None:
            ensemble_step.step(batch, is_shared, train_batches, clock)

        def run_member(clock: Clock = step_clock) -> None:
            for _ in range(STEPS_PER_ROUND):
                seed_generators(first_run.learner.device, first_run.config.seed, clock.step)
                first_run.learner.step(member_batch, train_batches, clock)

        ensemble_times.append(_time_call(run_ensemble, first_run.learner.device))
        sequential_times.append(_time_call(run_member, first_run.learner.device) * len(members) / STEPS_PER_ROUND)
    return TimingResult(statistics.median(ensemble_times[1:]), statistics.median(sequential_times[1:]))


def _time_call(function: Callable[[], None], device: torch.device) -> float:
    started_at = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started_at


@contextmanager
def _preserve_states(members: Sequence[EnsembleMember]) -> Iterator[None]:
    learners = [member.run.learner for member in members]
    states = [copy.deepcopy(learner.state_dict()) for learner in learners]
    try:
        yield
    finally:
        for learner, state in zip(learners, states, strict=True):
            learner.load_state_dict(state)


def _format_error(ensemble_step: EnsembleStep, error: Exception) -> str:
    # Python code such as `if` requires one number, but under vmap a hyperparameter has one number per member.
    needs_python_value = isinstance(error, TypeError) or any(
        word in str(error) for word in ("control flow", "item()")
    )
    names = ", ".join(
        f"model.{hyperparameter.name.removeprefix('config.')}"
        for hyperparameter in ensemble_step.hyperparameters.entries
    )
    if needs_python_value:
        return f"control flow depends on {names or 'a tensor'}"
    return " ".join(str(error).split())[:200]
