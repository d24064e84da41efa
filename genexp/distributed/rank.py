"""Which process of a run this is. Light on purpose: every start asks, and must not wait for torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from genexp.errors import ConfigError

# What torchrun tells each process that it starts, and what a run tells those that it starts itself.
RENDEZVOUS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """A process among those of a run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # on its machine
    local_world_size: int = 1

    @property
    def is_rank_zero(self) -> bool:
        """Return whether this process keeps the records, judges and saves."""
        return self.rank == 0


def read_rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo | None:
    """Return the place that torchrun, or the run that started this process, has given it; None for any other."""
    if any(name not in environment for name in RENDEZVOUS_VARIABLES) or int(environment["WORLD_SIZE"]) < 2:
        return None
    rank, world_size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return RankInfo(rank, world_size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", world_size)))


def is_nonzero_rank() -> bool:
    """Return whether this process waits to be told what to do, instead of reading its command line."""
    rank_info = read_rank_info()
    return rank_info is not None and not rank_info.is_rank_zero


def resolve_rank_info(processes: int) -> RankInfo:
    """Return the place of the process that reads the command line. Raises ConfigError."""
    rank_info = read_rank_info()
    if rank_info is None:
        return RankInfo(world_size=processes, local_world_size=processes)
    if processes > 1:
        raise ConfigError(
            f"device.processes={processes}: torchrun has started {rank_info.world_size} processes already; "
            f"set device.processes=1, or start the run without torchrun"
        )
    return rank_info


def check_divisible_batch(batch_size: int, world_size: int, batch_label: str) -> None:
    """Raise ConfigError unless `world_size` divides `batch_size`; `batch_label` names the batch in the message."""
    if batch_size < world_size:
        raise ConfigError(
            f"{batch_label} is less than one sample for each of {world_size} processes; "
            f"raise it, or use fewer processes"
        )
    if batch_size % world_size:
        lower_size = batch_size - batch_size % world_size
        raise ConfigError(
            f"{batch_label} cannot be divided among {world_size} processes; "
            f"use {lower_size} or {lower_size + world_size}"
        )
