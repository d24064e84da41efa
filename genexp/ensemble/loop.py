"""The loop of runs that learn as one. It is `genexp.trainer.train` for several rows, which end when each does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from genexp.data.stream import BatchStream, side_by_side
from genexp.ensemble.member import Row
from genexp.ensemble.step import Stack
from genexp.technique import Batch, Clock
from genexp.training.stopping import StopRequest


def train_together(rows: Sequence[Row], stop: StopRequest) -> None:
    """Run rows that stand at the same step to their ends. A row that fails leaves the others alone."""
    first = rows[0].built
    per_epoch = first.material.feed.steps_per_epoch
    clock = Clock(rows[0].sitting.start, first.total_steps, per_epoch)
    going = _each(rows, lambda row: row.open())
    going = _each(going, lambda row: row.begin(clock))
    if clock.ends or (clock.step > 0 and stop.interrupts(clock.complete_epochs)):
        _each(going, lambda row: row.look_back(clock))
        return
    try:
        while going:
            clock, going = _lockstep(going, clock, stop)
    except BaseException as error:
        for row in going:
            row.close(error)
        raise


def stacked(rows: Sequence[Row]) -> Stack:
    """Return the rows as one computation. Raises UnlikeError."""
    return Stack([row.built.learner for row in rows], [row.built.seed for row in rows])


def batches_for(rows: Sequence[Row], first_step: int) -> tuple[Iterator[Batch], bool]:
    """Return the rows' batches, and whether these are the same for all of them."""
    feeds = [row.built.material.feed for row in rows]
    streams = [feed for feed in feeds if isinstance(feed, BatchStream)]
    if len(streams) < len(feeds) or rows[0].built.trainer.batch_size is None:
        return feeds[0].batches(first_step), True
    return side_by_side(streams, first_step), False


def _lockstep(rows: Sequence[Row], clock: Clock, stop: StopRequest) -> tuple[Clock, list[Row]]:
    """Step all rows until one leaves; return where they stand, and those that go on."""
    stack = stacked(rows)
    whole = rows[0].built.material.train
    batches, shared = batches_for(rows, clock.step + 1)
    for batch in batches:
        clock = Clock(clock.step + 1, clock.total_steps, clock.steps_per_epoch)
        metrics = stack.step(batch, shared, whole, clock)
        parts = {name: values.unbind() for name, values in metrics.items()}
        for place, row in enumerate(rows):
            row.observer.keep({name: values[place] for name, values in parts.items()})
        over = clock.ends or stop.out_of_time
        interrupted = stop.interrupts(clock.complete_epochs)
        for row in rows:
            row.done = over or (clock.epoch_ends and row.built.learner.technique.converged)
            row.ending = row.done or interrupted
        if any(row.ending for row in rows) or rows[0].observer.is_due(clock):
            stack.publish()
            going = [row for row in _each(rows, partial(Row.record, clock=clock)) if not row.ending]
            if len(going) < len(rows):
                return clock, going
    raise AssertionError("batches have no end")


def _each(rows: Sequence[Row], action: Callable[[Row], None]) -> list[Row]:
    """Do something for each row; return those that it did not end."""
    kept = []
    for row in rows:
        with row.logging():
            try:
                action(row)
            except Exception as error:
                row.fail(error)
            else:
                kept.append(row)
    return kept
