"""Bringing the processes of a run together: starting them, telling them what to do, noticing that one is gone.

A process that follows is the same program with the variables set that torchrun would set. It reads no command
line: the first process sends it the configuration, and later its own state. It is one way, whoever started it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from genexp.distributed.process_group import Team, is_of_connection, joined
from genexp.distributed.rank import Place, given_place
from genexp.distributed.store import LOCAL, Task, given_board, own_board
from genexp.errors import RankFailedError

TO_SHOW = 5.0  # seconds in which the death of a process shows, once something sent to it did not arrive
TO_END = 20.0  # seconds for a process that has nothing left to do
POLL = 0.01  # seconds


class Gathering:
    """The processes of a run, from when they are started until they have ended, as their first one sees them."""

    def __init__(self, place: Place, threads: int | None) -> None:
        """Start the others, unless torchrun has; each is given so many threads, or its share of them."""
        self.place = place
        self._helpers: list[subprocess.Popen[bytes]] = []
        self._threads = torch.get_num_threads()
        if place.processes == 1:
            return
        if given_place() is not None:
            self._board = given_board()
            return
        self._board, port = own_board()
        share = threads or max(1, self._threads // place.processes)
        torch.set_num_threads(share)
        self._helpers = [_started(rank, place.processes, port, share) for rank in range(1, place.processes)]

    @contextmanager
    def at_work(self, task: Task, device: torch.device, again: str) -> Iterator[Team]:
        """Give all processes their task, and yield their team. Raises ProcessError where one is lost.

        `again` is the command that goes on with the run.
        """
        if self.place.processes == 1:
            yield Team()
            return
        self._board.announce(task)
        self._await()
        try:
            with joined(self._board, self.place, device) as team:
                yield team
        except RuntimeError as error:
            if not is_of_connection(error):
                raise
            raise RankFailedError(f"{self._lost(TO_SHOW)}; go on with: {again}") from None

    def close(self, *, failed: bool) -> None:
        """Let the others end; where the run has `failed`, at once."""
        if self._helpers:
            self._board.announce(None)
        for helper in self._helpers:
            try:
                helper.wait(0 if failed else TO_END)
            except subprocess.TimeoutExpired:
                helper.kill()
                helper.wait()
        torch.set_num_threads(self._threads)

    def _await(self) -> None:
        """Wait until all are ready. Raises ProcessError where one will not be."""
        while any(self._board.noted(f"ready/{rank}") is None for rank in range(1, self.place.processes)):
            fate = self._fate()
            if fate is not None:
                raise RankFailedError(f"{fate}, before the first step; start the run again")
            time.sleep(POLL)

    def _lost(self, seconds: float) -> str:
        """Return in words which process is gone, and why, as far as that shows within some seconds."""
        deadline = time.monotonic() + seconds
        while True:
            fate = self._fate()
            if fate is not None or time.monotonic() >= deadline:
                return fate or f"one of {self.place.processes} processes is gone"
            time.sleep(POLL)

    def _fate(self) -> str | None:
        """Return in words what became of a process that is gone, if one is known to be."""
        for rank in range(1, self.place.processes):
            error = self._board.noted(f"failed/{rank}")
            if error is not None:
                return f"process {rank} of {self.place.processes} failed ({error})"
        for rank, helper in enumerate(self._helpers, 1):
            code = helper.poll()
            if code is not None:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {rank} of {self.place.processes} {how}"
        return None


@contextmanager
def gathering(place: Place, threads: int | None) -> Iterator[Gathering]:
    """Yield the processes of a run; all that it started have ended when the block ends."""
    gathered = Gathering(place, threads)
    failed = True
    try:
        yield gathered
        failed = False
    finally:
        gathered.close(failed=failed)


def _started(rank: int, processes: int, port: int, threads: int) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).resolve().parent.parent.parent)
    inherited = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}  # no traces
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": LOCAL,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch would print where in its code it noticed the end of another
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "genexp.train"],
        env={**inherited, **{name: str(value) for name, value in variables.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the first process's to answer: it tells the others when to stop
    )
