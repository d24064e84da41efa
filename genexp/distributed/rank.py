"""Which process of a run this is. Light on purpose: every start asks, and must not wait for torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from genexp.errors import ConfigError

# What torchrun tells each process that it starts, and what a run tells those that it starts itself.
RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """A process among those of a run."""

    rank: int = 0
    processes: int = 1
    local_rank: int = 0  # on its machine
    local_processes: int = 1

    @property
    def leads(self) -> bool:
        """Return whether this process keeps the records, judges and saves."""
        return self.rank == 0


def given_place(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Return the place that torchrun, or the run that started this process, has given it; None for any other."""
    if any(name not in environment for name in RENDEZVOUS) or int(environment["WORLD_SIZE"]) < 2:
        return None
    rank, processes, local = (int(environment[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return Place(rank, processes, local, int(environment.get("LOCAL_WORLD_SIZE", processes)))


def follows() -> bool:
    """Return whether this process waits to be told what to do, instead of reading its command line."""
    place = given_place()
    return place is not None and not place.leads


def chosen_place(processes: int) -> Place:
    """Return the place of the process that reads the command line. Raises ConfigError."""
    place = given_place()
    if place is None:
        return Place(processes=processes, local_processes=processes)
    if processes > 1:
        raise ConfigError(
            f"device.processes={processes}: torchrun has started {place.processes} processes already; "
            f"set device.processes=1, or start the run without torchrun"
        )
    return place


def check_rows(rows: int, processes: int, what: str) -> None:
    """Raise ConfigError where `rows` of a batch have no equal part for each process; `what` names the batch."""
    if rows < processes:
        raise ConfigError(
            f"{what} is less than one sample for each of {processes} processes; raise it, or use fewer processes"
        )
    if rows % processes:
        below = rows - rows % processes
        raise ConfigError(
            f"{what} cannot be divided among {processes} processes; use {below} or {below + processes}"
        )
