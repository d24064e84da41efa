"""Training loop of an ensemble: `genexp.training.trainer.train` for members that may end at different steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from genexp.data.stream import TrainingBatches, stack_batches
from genexp.ensemble.member import EnsembleMember
from genexp.ensemble.step import EnsembleStep
from genexp.technique import Batch, Clock
from genexp.training.stopping import StopRequest


def train_ensemble(members: Sequence[EnsembleMember], stop: StopRequest) -> None:
    """Train members, all at the same step, to the end of their runs. A failed member does not affect others."""
    first = members[0].run
    steps_per_epoch = first.data.batch_source.steps_per_epoch
    clock = Clock(members[0].context.completed_steps, first.total_steps, steps_per_epoch)
    active = _apply_to_members(members, lambda member: member.open())
    active = _apply_to_members(active, lambda member: member.initialize(clock))
    is_interrupted = clock.step > 0 and stop.should_interrupt(clock.completed_epochs)
    for member in active:
        member.is_finished = member.snapshot_builder.is_run_complete(clock)
        member.is_ending = member.is_finished or is_interrupted
    _apply_to_members(
        [member for member in active if member.is_ending], lambda member: member.record_final_snapshot(clock)
    )
    active = [member for member in active if not member.is_ending]
    try:
        while active:
            clock, active = _train_until_member_ends(active, clock, stop)
    except BaseException as error:
        for row in active:
            row.close_with_error(error)
        raise


def build_step(members: Sequence[EnsembleMember]) -> EnsembleStep:
    """Return the ensemble step of the members. Raises IncompatibleRunsError."""
    return EnsembleStep([member.run.learner for member in members], [member.run.config.seed for member in members])


def make_batches(members: Sequence[EnsembleMember], first_step: int) -> tuple[Iterator[Batch], bool]:
    """Return the batches of all members, and whether every member gets the same batch.

    The tensors of a batch are (members, batch, ...), or (batch, ...) if all members share it.
    """
    batch_sources = [member.run.data.batch_source for member in members]
    batch_streams = [batch_source for batch_source in batch_sources if isinstance(batch_source, TrainingBatches)]
    if len(batch_streams) < len(batch_sources) or batch_streams[0].are_all_equal:
        return batch_sources[0].iter_batches(first_step), True
    return stack_batches(batch_streams, first_step), False


def _train_until_member_ends(
    members: Sequence[EnsembleMember], clock: Clock, stop: StopRequest
) -> tuple[Clock, list[EnsembleMember]]:
    """Step all members until at least one ends. Return the clock then, and the members that continue."""
    ensemble_step = build_step(members)
    train_batches = members[0].run.data.train_batches
    batches, is_shared = make_batches(members, clock.step + 1)
    for batch in batches:
        clock = Clock(clock.step + 1, clock.total_steps, clock.steps_per_epoch)
        metrics = ensemble_step.step(batch, is_shared, train_batches, clock)
        member_metrics = {name: values.unbind() for name, values in metrics.items()}
        for index, member in enumerate(members):
            member.snapshot_builder.add_metrics({name: values[index] for name, values in member_metrics.items()})
        is_interrupted = stop.should_interrupt(clock.completed_epochs)
        for member in members:
            member.is_finished = member.snapshot_builder.is_run_complete(clock)
            member.is_ending = member.is_finished or is_interrupted
        if any(member.is_ending for member in members) or members[0].snapshot_builder.is_due(clock):
            ensemble_step.update_members()
            active = [
                row
                for row in _apply_to_members(members, partial(EnsembleMember.record, clock=clock))
                if not row.is_ending
            ]
            if len(active) < len(members):
                return clock, active
    raise AssertionError("iter_batches is endless")


def _apply_to_members(
    members: Sequence[EnsembleMember], action: Callable[[EnsembleMember], None]
) -> list[EnsembleMember]:
    """Call `action` for each member. Return those for which it did not fail; record the failure of the others."""
    succeeded = []
    for member in members:
        with member.redirect_logging():
            try:
                action(member)
            except Exception as error:
                member.record_failure(error)
            else:
                succeeded.append(member)
    return succeeded
