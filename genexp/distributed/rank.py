"""Rank and world size of this process.

Every start of the program imports this module, so it must not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from genexp.errors import ConfigError

# Environment variables that torchrun, or rank 0 of a run, sets for the processes that it starts.
RENDEZVOUS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class RankInfo:
    """Rank of a process, and number of processes of its run."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0  # rank among the processes on this machine
    local_world_size: int = 1  # number of processes on this machine

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which alone evaluates, renders previews and writes files."""
        return self.rank == 0


def read_rank_info(environment: Mapping[str, str] = os.environ) -> RankInfo | None:
    """Return the rank that torchrun or rank 0 gave this process, or None if it is the only process of its run."""
    if any(name not in environment for name in RENDEZVOUS_VARIABLES) or int(environment["WORLD_SIZE"]) < 2:
        return None
    rank, world_size, local_rank = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return RankInfo(rank, world_size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", world_size)))


def is_nonzero_rank() -> bool:
    """Return whether this process receives its tasks from rank 0, instead of reading the command line."""
    rank_info = read_rank_info()
    return rank_info is not None and not rank_info.is_rank_zero


def resolve_rank_info(num_processes: int) -> RankInfo:
    """Return the rank of the process that reads the command line, rank 0 of `num_processes`.

    Raises ConfigError where `num_processes` is above 1 and torchrun has started processes too.
    """
    rank_info = read_rank_info()
    if rank_info is None:
        return RankInfo(world_size=num_processes, local_world_size=num_processes)
    if num_processes > 1:
        raise ConfigError(
            f"device.processes={num_processes}: torchrun has already started {rank_info.world_size} processes. "
            f"Use device.processes=1, or start the run without torchrun."
        )
    return rank_info


def check_divisible_batch(batch_size: int, world_size: int, batch_label: str) -> None:
    """Raise ConfigError unless `world_size` divides `batch_size`; `batch_label` names the batch in the message."""
    if batch_size < world_size:
        raise ConfigError(
            f"{batch_label}: fewer samples than processes ({world_size}). Use a larger value, or fewer processes."
        )
    if batch_size % world_size:
        lower_size = batch_size - batch_size % world_size
        raise ConfigError(
            f"{batch_label}: must be divisible by the number of processes ({world_size}). "
            f"Use {lower_size} or {lower_size + world_size}."
        )
