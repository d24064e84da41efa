"""Process group of a run: collective operations on top of `torch.distributed`."""

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
from genexp.distributed.store import COLLECTIVE_TIMEOUT, RankStore
from genexp.sharding import Shard
from genexp.technique import Clock, GradientPhase

SYNC_SECONDS = 0.1  # seconds between two synchronizations, the delay until a signal stops all ranks
RELEASE_SECONDS = 0.05  # seconds for torch's threads to free sent tensors, see `ProcessGroup._all_reduce`


class Stateful(Protocol):
    """An object whose state can be saved and restored, e.g. a Learner."""

    def state_dict(self) -> dict[str, Any]:
        """Return the complete state."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        ...


class ProcessGroup:
    """All processes of a run, as seen from one of them. With a single process, all methods are local.

    The methods `wrap_loss`, `all_reduce_max`, `all_reduce_mean` and `broadcast_state` are collective. Every rank
    calls them, in the same order.
    """

    def __init__(self, rank_info: RankInfo | None = None) -> None:
        self.rank_info = rank_info or RankInfo()
        self.shard = Shard(self.rank_info.rank, self.rank_info.world_size)
        self._recent_tensors: deque[Tensor] = deque(maxlen=16)
        self._next_sync_step = 0  # step of the next synchronization
        # Step and monotonic time, in seconds, of the last synchronization; None before the first one.
        self._last_sync: tuple[int, float] | None = None

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone evaluates, renders previews and writes files."""
        return self.rank_info.is_rank_zero

    @property
    def is_single_process(self) -> bool:
        """Whether this process is the only one of the run."""
        return self.rank_info.world_size == 1

    def wrap_loss(self, phase: GradientPhase, *, should_sync_batch_norm: bool) -> LossFunction:
        """Return the loss of `phase` on this rank's rows. Its gradients are those of the global batch."""
        return (
            phase.loss
            if self.is_single_process
            else build_distributed_loss(phase, self.shard, should_sync_batch_norm=should_sync_batch_norm)
        )

    def should_sync(self, clock: Clock) -> bool:
        """Return whether the ranks synchronize after this step. A single process does so after every step.

        Several ranks do so about every SYNC_SECONDS, at the end of each epoch, and at the last step.
        """
        return (
            self.is_single_process
            or clock.is_epoch_end
            or clock.is_last_step
            or clock.step >= self._next_sync_step
        )

    def all_reduce_max(self, clock: Clock, *values: int) -> list[int]:
        """Return the maximum over all ranks of each of `values`.

        Call it before the first step, and after each step for which `should_sync` returns True. It also schedules
        the next synchronization, from the time per step between the last one and `clock`.
        """
        if self.is_single_process:
            return list(values)
        steps_until_sync = 1  # the duration of a step is not known before the first one
        if self._last_sync is not None:
            last_step, last_time = self._last_sync
            seconds_per_step = (time.monotonic() - last_time) / max(1, clock.step - last_step)
            steps_until_sync = max(1, int(SYNC_SECONDS / max(seconds_per_step, 1e-6)))
        # The slowest rank has the fewest steps until the next synchronization: the maximum of negative numbers.
        maxima = self._all_reduce(torch.tensor([-steps_until_sync, *values]), dist.ReduceOp.MAX)
        self._next_sync_step = clock.step - int(maxima[0])
        self._last_sync = clock.step, time.monotonic()
        return [int(value) for value in maxima[1:]]

    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Return the elementwise mean of `values` over all ranks, in their shape and without a gradient."""
        if self.is_single_process:
            return values
        return self._all_reduce(values.detach().clone(), dist.ReduceOp.SUM) / self.rank_info.world_size

    def broadcast_state(self, learner: Stateful) -> None:
        """Copy the state of rank 0's `learner` to the learners of all ranks."""
        if self.is_single_process:
            return
        state = [_to_cpu(learner.state_dict()) if self.is_rank_zero else None]
        dist.broadcast_object_list(state, src=0, device=torch.device("cpu"))
        if not self.is_rank_zero:
            assert state[0] is not None
            learner.load_state_dict(state[0])

    def _all_reduce(self, values: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Reduce `values` over all ranks in place, and return them."""
        dist.all_reduce(values, operation)
        # Recently sent tensors are kept alive until the group ends, to avoid a deadlock. To free one, a torch
        # thread needs the GIL, which `destroy_process_group` holds while it waits for that thread.
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
    """Yield the process group of a run. Every rank calls this function with its own `rank_info`."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    excepthook = sys.excepthook  # init_process_group replaces it
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        store=dist.PrefixStore("group", store.run_store),
        rank=rank_info.rank,
        world_size=rank_info.world_size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    try:
        with warnings.catch_warnings():
            # Filters of one channel have the same memory order in both formats. Only their strides differ.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield ProcessGroup(rank_info)
    finally:
        sys.excepthook = excepthook
        time.sleep(RELEASE_SECONDS)
        dist.destroy_process_group()


def is_connection_error(error: Exception) -> bool:
    """Return whether `error` is a failed send or receive between ranks."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL"))
    )
