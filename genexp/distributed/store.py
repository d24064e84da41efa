"""Words that the processes of a run leave for each other: before they compute together, and when one fails."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from genexp.distributed.rank import given_place

# Nothing is ever late: the first process may judge for hours while the others wait. One that dies is noticed
# by its connections, which close.
FOREVER = timedelta(days=30)
TO_CONNECT = timedelta(minutes=5)
LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Task:
    """What the processes that follow are told of a run."""

    config: Mapping[str, Any]
    start: int  # the step that the run goes on from
    precision: str  # torch's default


class Board:
    """Words under names, anew for each run that the same processes do."""

    def __init__(self, store: Store) -> None:
        self._store, self._runs = store, 0
        self.of_run = store

    def announce(self, task: Task | None) -> None:
        """Tell those that follow what to do next; None is nothing more."""
        self._turn().set("task", json.dumps(asdict(task) if task else None))

    def next_task(self) -> Task | None:
        """Wait for what to do next; None is nothing more."""
        task = json.loads(self._turn().get("task"))
        return task and Task(**task)

    def note(self, name: str, words: str = "") -> None:
        """Leave word about the run."""
        self.of_run.set(name, words)

    def noted(self, name: str) -> str | None:
        """Return the words left under a name, if any."""
        return self.of_run.get(name).decode() if self.of_run.check([name]) else None

    def _turn(self) -> Store:
        self.of_run = PrefixStore(str(self._runs), self._store)
        self._runs += 1
        return self.of_run


def own_board() -> tuple[Board, int]:
    """Return a new board of this process's, and the port at which others reach it."""
    store = TCPStore(LOCAL, 0, is_master=True, wait_for_workers=False, timeout=FOREVER)
    return Board(PrefixStore(_prefix(), store)), store.port


@cache
def given_board() -> Board:
    """Return the board of those that torchrun, or a run, has started: its address came with their place."""
    place = given_place()
    assert place is not None
    hosts = place.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=hosts, wait_for_workers=False, timeout=TO_CONNECT)
    store.set_timeout(FOREVER)
    return Board(PrefixStore(_prefix(), store))


def _prefix() -> str:
    return f"genexp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"  # the store is torchrun's too
