"""Whether it pays: a few steps of several runs as one, and of one of them alone, on the clock."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from genexp.device import synchronize
from genexp.ensemble.compatibility import UnlikeError
from genexp.ensemble.loop import batches_for, stacked
from genexp.ensemble.member import Row
from genexp.ensemble.step import Stack
from genexp.seeding import seed_generators
from genexp.technique import Batch, Clock, Descent
from genexp.training.trainer import begin

ROUNDS = 5  # of which the first is not counted
STEPS = 4  # of one run alone in a round
PARTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a run, at which its losses are tried: schedules may take another branch


@dataclass(frozen=True)
class Trial:
    """What a step of all runs takes, in seconds."""

    together: float
    alone: float

    @property
    def pays(self) -> bool:
        return self.together < self.alone


def tried(rows: Sequence[Row], *, measure: bool) -> Trial | None:
    """Return how long steps take, where that is to be measured. Raises UnlikeError where rows cannot be one.

    Leaves the rows as they were.
    """
    with _unchanged(rows):
        clock = Clock(
            rows[0].sitting.start, rows[0].built.total_steps, rows[0].built.material.feed.steps_per_epoch
        )
        for row in rows:
            if clock.step == 0:
                begin(row.built.learner, row.built.material.train, row.built.seed)
        stack = stacked(rows)
        batches, shared = batches_for(rows, clock.step + 1)
        batch = next(batches)
        try:
            _try_losses(stack, batch, shared, clock)
            return _measure(rows, stack, batch, shared, clock) if measure else None
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
            raise UnlikeError(_in_words(stack, error)) from error


def _try_losses(stack: Stack, batch: Batch, shared: bool, clock: Clock) -> None:
    for part in PARTS:
        step = max(clock.step + 1, round(part * clock.total_steps))
        then = Clock(step, clock.total_steps, clock.steps_per_epoch)
        for phase in stack.learners[0].phases:
            if isinstance(phase, Descent):
                stack.losses(phase, batch, shared, then)


def _measure(rows: Sequence[Row], stack: Stack, batch: Batch, shared: bool, clock: Clock) -> Trial:
    first, whole = rows[0].built, rows[0].built.material.train
    own = batch if shared else {name: stream[0] for name, stream in batch.items()}
    together, alone = [], []
    for count in range(1, ROUNDS + 1):
        now = Clock(clock.step + count, clock.total_steps, clock.steps_per_epoch)

        def all_of_them(now: Clock = now) -> None:
            stack.step(batch, shared, whole, now)

        def one(now: Clock = now) -> None:
            for _ in range(STEPS):
                seed_generators(first.learner.device, first.seed, now.step)
                first.learner.step(own, whole, now)

        together.append(_seconds(all_of_them, first.learner.device))
        alone.append(_seconds(one, first.learner.device) * len(rows) / STEPS)
    return Trial(statistics.median(together[1:]), statistics.median(alone[1:]))


def _seconds(work: Callable[[], None], device: torch.device) -> float:
    begun = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begun


@contextmanager
def _unchanged(rows: Sequence[Row]) -> Iterator[None]:
    learners = [row.built.learner for row in rows]
    states = [copy.deepcopy(learner.state()) for learner in learners]
    try:
        yield
    finally:
        for learner, state in zip(learners, states, strict=True):
            learner.restore(state)


def _in_words(stack: Stack, error: Exception) -> str:
    # Python wants a value where vmap has one a row.
    wants_value = isinstance(error, TypeError) or any(word in str(error) for word in ("control flow", "item()"))
    names = ", ".join(f"model.{number.name.removeprefix('config.')}" for number in stack.numbers.found)
    if wants_value:
        return f"what is computed depends on {names or 'a value'}"
    return " ".join(str(error).split())[:200]
