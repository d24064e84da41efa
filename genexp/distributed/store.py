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

from genexp.distributed.rank import read_rank_info

# Nothing is ever late: the first process may judge for hours while the others wait. One that dies is noticed
# by its connections, which close.
GROUP_TIMEOUT = timedelta(days=30)
CONNECT_TIMEOUT = timedelta(minutes=5)
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class RankTask:
    """What the processes that follow are told of a run."""

    config: Mapping[str, Any]
    start_step: int  # the step that the run goes on from
    default_dtype: str  # torch's default


class RankStore:
    """Words under names, anew for each run that the same processes do."""

    def __init__(self, store: Store) -> None:
        self._store, self._run_count = store, 0
        self.run_store = store

    def publish_task(self, task: RankTask | None) -> None:
        """Tell those that follow what to do next; None is nothing more."""
        self._next_run_store().set("task", json.dumps(asdict(task) if task else None))

    def wait_for_task(self) -> RankTask | None:
        """Wait for what to do next; None is nothing more."""
        task = json.loads(self._next_run_store().get("task"))
        return task and RankTask(**task)

    def write_message(self, name: str, message: str = "") -> None:
        """Leave word about the run."""
        self.run_store.set(name, message)

    def read_message(self, name: str) -> str | None:
        """Return the words left under a name, if any."""
        return self.run_store.get(name).decode() if self.run_store.check([name]) else None

    def _next_run_store(self) -> Store:
        self.run_store = PrefixStore(str(self._run_count), self._store)
        self._run_count += 1
        return self.run_store


def create_rank_store() -> tuple[RankStore, int]:
    """Return a new board of this process's, and the port at which others reach it."""
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=GROUP_TIMEOUT)
    return RankStore(PrefixStore(_format_key_prefix(), store)), store.port


@cache
def connect_rank_store() -> RankStore:
    """Return the board of those that torchrun, or a run, has started: its address came with their place."""
    rank_info = read_rank_info()
    assert rank_info is not None
    is_host = rank_info.is_rank_zero and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=is_host, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
    store.set_timeout(GROUP_TIMEOUT)
    return RankStore(PrefixStore(_format_key_prefix(), store))


def _format_key_prefix() -> str:
    return f"genexp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"  # the store is torchrun's too
