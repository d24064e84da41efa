"""Being a process that follows: it waits to be told what to do, and writes nothing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

import torch

from genexp.distributed.process_group import Team, is_of_connection, joined
from genexp.distributed.rank import given_place
from genexp.distributed.store import Task, given_board
from genexp.errors import GenexpError


class Follower:
    """A process that another one leads."""

    def __init__(self) -> None:
        place = given_place()
        assert place is not None
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        self.place, self._board = place, given_board()

    def tasks(self) -> Iterator[Task]:
        """Yield what there is to do until there is nothing more."""
        while (task := self._board.next_task()) is not None:
            yield task

    def at_work(self, device: torch.device) -> AbstractContextManager[Team]:
        """Say that all is ready, and return the team."""
        self._board.note(f"ready/{self.place.rank}")
        return joined(self._board, self.place, device)

    def explain(self, error: Exception) -> None:
        """Leave word of an error that ends this process, unless it is that another one has ended."""
        if is_of_connection(error):
            return
        words = str(error) if isinstance(error, GenexpError) else f"{type(error).__name__}: {error}"
        self._board.note(f"failed/{self.place.rank}", words.splitlines()[0])


def _end_with(parent: int) -> None:
    """End this process when who started it has ended, whatever it is doing or waiting for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def dismiss() -> None:
    """Tell those that torchrun has started to follow this process that nothing more is to do."""
    given_board().announce(None)
