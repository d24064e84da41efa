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

from genexp.distributed.global_batch import LossFunction, build_distributed_loss
from genexp.distributed.rank import RankInfo
from genexp.distributed.store import GROUP_TIMEOUT, RankStore
from genexp.sharding import Shard
from genexp.technique import Clock, GradientPhase

SYNC_SECONDS = 0.1  # between two agreements: so soon a signal stops all
RELEASE_SECONDS = 0.05  # seconds in which torch's threads free what was sent before, see `Team._send`


class Stateful(Protocol):
    """What can be brought to the state of the first process's."""

    def state_dict(self) -> dict[str, Any]:
        """Return all of the state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take on a state."""
        ...


class ProcessGroup:
    """Those who do a run together; by itself a process is a team of one, and nothing is sent.

    All but `share` is asked of every member, at the same steps.
    """

    def __init__(self, place: RankInfo | None = None) -> None:
        self.rank_info = place or RankInfo()
        self.shard = Shard(self.rank_info.rank, self.rank_info.world_size)
        self._recent_tensors: deque[Tensor] = deque(maxlen=16)
        self._next_sync_step = 0  # the step of the next agreement
        self._last_sync = 0, time.monotonic()  # step and time of the last one

    @property
    def is_rank_zero(self) -> bool:
        """Return whether this process keeps the records, judges and saves."""
        return self.rank_info.is_rank_zero

    @property
    def is_single_process(self) -> bool:
        return self.rank_info.world_size == 1

    def wrap_loss(self, phase: GradientPhase, *, sync_batch_norm: bool) -> LossFunction:
        """Return the loss of `phase` for this process's rows; its gradients are those of the whole batch."""
        return (
            phase.loss
            if self.is_single_process
            else build_distributed_loss(phase, self.shard, sync_batch_norm=sync_batch_norm)
        )

    def should_sync(self, clock: Clock) -> bool:
        """Return whether the team agrees on how to go on after this step: alone always, else every few steps."""
        return (
            self.is_single_process
            or clock.is_epoch_end
            or clock.is_last_step
            or clock.step >= self._next_sync_step
        )

    def all_reduce_max(self, clock: Clock, *values: int) -> list[int]:
        """Return for each wish the greatest that any member has. Only at steps where the team `meets`."""
        if self.is_single_process:
            return list(values)
        last_step, last_time = self._last_sync
        seconds_per_step = (time.monotonic() - last_time) / max(1, clock.step - last_step)  # a step
        steps_until_sync = max(1, int(SYNC_SECONDS / max(seconds_per_step, 1e-6)))
        # The slowest says how many steps there are to the next meeting: the greatest of negative numbers.
        maxima = self._all_reduce(torch.tensor([-steps_until_sync, *values]), dist.ReduceOp.MAX)
        self._next_sync_step = clock.step - int(maxima[0])
        self._last_sync = clock.step, time.monotonic()
        return [int(value) for value in maxima[1:]]

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the mean of the members' values, without a gradient."""
        if self.is_single_process:
            return values
        return self._all_reduce(values.detach().clone(), dist.ReduceOp.SUM) / self.rank_info.world_size

    def broadcast_state(self, learner: Stateful) -> None:
        """Bring all members' learners to the state of the first."""
        if self.is_single_process:
            return
        state = [_to_cpu(learner.state_dict()) if self.is_rank_zero else None]
        dist.broadcast_object_list(state, src=0, device=torch.device("cpu"))
        if not self.is_rank_zero:
            assert state[0] is not None
            learner.load_state_dict(state[0])

    def _all_reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Return what all members' values come to, in the place of those given."""
        dist.all_reduce(values, operation)
        # What was sent last is not freed before the group ends: torch's thread would ask for the interpreter's
        # lock to do so, and who ends the group has that lock and waits for the thread.
        self._recent_tensors.append(values)
        return values


def _to_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    return type(value)(map(_to_cpu, value)) if isinstance(value, list | tuple) else value


@contextmanager
def join_process_group(store: RankStore, rank_info: RankInfo, device: torch.device) -> Iterator[ProcessGroup]:
    """Yield the team of all processes of a run, each of which calls this with its own place."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    excepthook = sys.excepthook  # torch puts its own before it
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        store=dist.PrefixStore("group", store.run_store),
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=GROUP_TIMEOUT,
    )
    try:
        with warnings.catch_warnings():
            # Filters of one channel lie both channels first and channels last, whatever strides say.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield ProcessGroup(rank_info)
    finally:
        sys.excepthook = excepthook
        time.sleep(RELEASE_SECONDS)
        dist.destroy_process_group()


def is_connection_error(error: Exception) -> bool:
    """Return whether an error is that something could not be sent or received."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )
