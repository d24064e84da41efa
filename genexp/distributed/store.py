"""Key-value store shared by the ranks of a run, for tasks, readiness and errors.

It works before the process group exists, and after a rank has failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from genexp.distributed.rank import read_rank_info

# In effect unlimited: rank 0 may evaluate for hours while the other ranks wait. A rank that dies is detected by
# its closed connections.
COLLECTIVE_TIMEOUT = timedelta(days=30)
CONNECT_TIMEOUT = timedelta(minutes=5)
LOCALHOST = "127.0.0.1"


@dataclass(frozen=True)
class RankTask:
    """Description of a run that rank 0 sends to the other ranks."""

    config: Mapping[str, Any]  # plain and resolved
    completed_steps: int  # last step already done; 0 for a new run
    default_dtype: str  # name of torch's default dtype, e.g. "float32"
    plugins: list[str] = field(default_factory=list)  # files and modules


class RankStore:
    """Named messages between ranks. Processes that train several runs use another key prefix for each run.

    All ranks switch to the next prefix when a task is published or received, so their prefixes agree.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._run_count = store, 0
        self.run_store = store

    def publish_task(self, task: RankTask | None) -> None:
        """Send the next task to the other ranks. None ends them."""
        self._open_next_run_store().set("task", json.dumps(asdict(task) if task else None))

    def wait_for_task(self) -> RankTask | None:
        """Wait for the next task and return it, or None if there are no more."""
        task = json.loads(self._open_next_run_store().get("task"))
        return task and RankTask(**task)

    def write_message(self, name: str, message: str = "") -> None:
        """Store `message` under `name`, for the current run."""
        self.run_store.set(name, message)

    def read_message(self, name: str) -> str | None:
        """Return the message under `name` of the current run, or None."""
        return self.run_store.get(name).decode() if self.run_store.check([name]) else None

    def _open_next_run_store(self) -> Store:
        self.run_store = PrefixStore(str(self._run_count), self._store)
        self._run_count += 1
        return self.run_store


def create_rank_store() -> tuple[RankStore, int]:
    """Return a new store that this process hosts, and its TCP port on LOCALHOST."""
    store = TCPStore(LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT)
    return RankStore(PrefixStore(_format_key_prefix(), store)), store.port


@cache
def connect_rank_store() -> RankStore:
    """Connect to the store at MASTER_ADDR:MASTER_PORT, or host it on rank 0 unless torchrun's agent does."""
    rank_info = read_rank_info()
    assert rank_info is not None
    is_host = rank_info.is_rank_zero and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=is_host, wait_for_workers=False, timeout=CONNECT_TIMEOUT)
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return RankStore(PrefixStore(_format_key_prefix(), store))


def _format_key_prefix() -> str:
    # torchrun has its own keys in the same store, and keeps the store when it restarts the ranks.
    return f"genexp/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
