"""The processes of a run as seen from one of them: what they agree on, and what they tell each other."""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from genexp.distributed.global_batch import Loss, shared_loss
from genexp.distributed.rank import Place
from genexp.distributed.store import FOREVER, Board
from genexp.sharding import Shard
from genexp.technique import Clock, GradientPhase

MEET_SECONDS = 0.1  # between two agreements: so soon a signal stops all
TO_FREE = 0.05  # seconds in which torch's threads free what was sent before, see `Team._send`


class Aligned(Protocol):
    """What can be brought to the state of the first process's."""

    def state(self) -> dict[str, Any]:
        """Return all of the state."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a state."""
        ...


class Team:
    """Those who do a run together; by itself a process is a team of one, and nothing is sent.

    All but `share` is asked of every member, at the same steps.
    """

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.part = Shard(self.place.rank, self.place.processes)
        self._sent: deque[Tensor] = deque(maxlen=16)
        self._next = 0  # the step of the next agreement
        self._before = 0, time.monotonic()  # step and time of the last one

    @property
    def leads(self) -> bool:
        """Return whether this process keeps the records, judges and saves."""
        return self.place.leads

    @property
    def alone(self) -> bool:
        return self.place.processes == 1

    def share(self, phase: GradientPhase, *, synchronised: bool) -> Loss:
        """Return the loss of `phase` for this process's rows; its gradients are those of the whole batch."""
        return phase.loss if self.alone else shared_loss(phase, self.part, synchronised=synchronised)

    def meets(self, clock: Clock) -> bool:
        """Return whether the team agrees on how to go on after this step: alone always, else every few steps."""
        return self.alone or clock.is_epoch_end or clock.is_last_step or clock.step >= self._next

    def agree(self, clock: Clock, *wishes: int) -> list[int]:
        """Return for each wish the greatest that any member has. Only at steps where the team `meets`."""
        if self.alone:
            return list(wishes)
        step, since = self._before
        seconds = (time.monotonic() - since) / max(1, clock.step - step)  # a step
        rest = max(1, int(MEET_SECONDS / max(seconds, 1e-6)))
        # The slowest says how many steps there are to the next meeting: the greatest of negative numbers.
        ballot = self._send(torch.tensor([-rest, *wishes]), dist.ReduceOp.MAX)
        self._next = clock.step - int(ballot[0])
        self._before = clock.step, time.monotonic()
        return [int(wish) for wish in ballot[1:]]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the members' values, without a gradient."""
        if self.alone:
            return values
        return self._send(values.detach().clone(), dist.ReduceOp.SUM) / self.place.processes

    def align(self, learner: Aligned) -> None:
        """Bring all members' learners to the state of the first."""
        if self.alone:
            return
        state = [_on_cpu(learner.state()) if self.leads else None]
        dist.broadcast_object_list(state, src=0, device=torch.device("cpu"))
        if not self.leads:
            assert state[0] is not None
            learner.restore(state[0])

    def _send(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Return what all members' values come to, in the place of those given."""
        dist.all_reduce(values, operation)
        # What was sent last is not freed before the group ends: torch's thread would ask for the interpreter's
        # lock to do so, and who ends the group has that lock and waits for the thread.
        self._sent.append(values)
        return values


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if isinstance(value, list | tuple) else value


@contextmanager
def joined(board: Board, place: Place, device: torch.device) -> Iterator[Team]:
    """Yield the team of all processes of a run, each of which calls this with its own place."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    excepthook = sys.excepthook  # torch puts its own before it
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", board.of_run),
        rank=place.rank,
        world_size=place.processes,
        timeout=FOREVER,
    )
    try:
        with warnings.catch_warnings():
            # Filters of one channel lie both channels first and channels last, whatever strides say.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield Team(place)
    finally:
        sys.excepthook = excepthook
        time.sleep(TO_FREE)
        dist.destroy_process_group()


def is_of_connection(error: Exception) -> bool:
    """Return whether an error is that something could not be sent or received."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )
