"""Process of nonzero rank, which receives tasks from rank 0 and writes no files."""

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
    """The current process as a nonzero rank. It exits when its parent process does."""

    def __init__(self) -> None:
        rank_info = read_rank_info()
        assert rank_info is not None
        threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()
        self.rank_info, self._store = rank_info, connect_rank_store()

    def receive_tasks(self) -> Iterator[RankTask]:
        """Yield tasks until rank 0 publishes None."""
        while (task := self._store.wait_for_task()) is not None:
            yield task

    def join_group(self, device: torch.device) -> AbstractContextManager[ProcessGroup]:
        """Report to rank 0 that this rank is ready, and return the context of the process group."""
        self._store.write_message(f"ready/{self.rank_info.rank}")
        return join_process_group(self._store, self.rank_info, device)

    def report_error(self, error: Exception) -> None:
        """Report `error` to rank 0, unless it is the loss of the connection to another rank."""
        if is_connection_error(error):
            return
        message = str(error) if isinstance(error, GenexpError) else f"{type(error).__name__}: {error}"
        self._store.write_message(f"failed/{self.rank_info.rank}", message.splitlines()[0])


def _exit_with_parent(parent_pid: int) -> None:
    """Exit this process with code 1 once its parent has exited. Runs in a thread."""
    while os.getppid() == parent_pid:
        time.sleep(1)
    os._exit(1)


def shut_down_ranks() -> None:
    """End the nonzero ranks that torchrun started, by publishing that there are no more tasks."""
    connect_rank_store().publish_task(None)
