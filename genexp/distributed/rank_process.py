"""Being a process that follows: it waits to be told what to do, and writes nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from genexp.distributed.process_group import ProcessGroup, is_connection_error, join_process_group
from genexp.distributed.rank import read_rank_info
from genexp.distributed.store import RankTask, connect_rank_store
from genexp.errors import GenexpError


class RankProcess:
    """A process that another one leads."""

    def __init__(self) -> None:
        rank_info = read_rank_info()
        assert rank_info is not None
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
        self.rank_info, self._store = rank_info, connect_rank_store()

    def receive_tasks(self) -> Iterator[RankTask]:
        """Yield what there is to do until there is nothing more."""
        while (task := self._store.wait_for_task()) is not None:
            yield task

    def join_group(self, device: torch.device) -> AbstractContextManager[ProcessGroup]:
        """Say that all is ready, and return the team."""
        self._store.write_message(f"ready/{self.rank_info.rank}")
        return join_process_group(self._store, self.rank_info, device)

    def report_error(self, error: Exception) -> None:
        """Leave word of an error that ends this process, unless it is that another one has ended."""
        if is_connection_error(error):
            return
        message = str(error) if isinstance(error, GenexpError) else f"{type(error).__name__}: {error}"
        self._store.write_message(f"failed/{self.rank_info.rank}", message.splitlines()[0])


def _exit_with_parent(parent_pid: int) -> None:
    """End this process when who started it has ended, whatever it is doing or waiting for."""
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)


def release_ranks() -> None:
    """Tell those that torchrun has started to follow this process that nothing more is to do."""
    connect_rank_store().publish_task(None)
