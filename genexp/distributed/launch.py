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

from genexp.distributed.process_group import ProcessGroup, is_connection_error, join_process_group
from genexp.distributed.rank import RankInfo, read_rank_info
from genexp.distributed.store import LOCALHOST, RankTask, connect_rank_store, create_rank_store
from genexp.errors import RankFailedError

FAILURE_DETECTION_SECONDS = (
    5.0  # seconds in which the death of a process shows, once something sent to it did not arrive
)
SHUTDOWN_SECONDS = 20.0  # seconds for a process that has nothing left to do
POLL_SECONDS = 0.01  # seconds


class ProcessLauncher:
    """The processes of a run, from when they are started until they have ended, as their first one sees them."""

    def __init__(self, place: RankInfo, threads: int | None) -> None:
        """Start the others, unless torchrun has; each is given so many threads, or its share of them."""
        self.rank_info = place
        self._children: list[subprocess.Popen[bytes]] = []
        self._previous_threads = torch.get_num_threads()
        if place.world_size == 1:
            return
        if read_rank_info() is not None:
            self._store = connect_rank_store()
            return
        self._store, port = create_rank_store()
        threads_per_process = threads or max(1, self._previous_threads // place.world_size)
        torch.set_num_threads(threads_per_process)
        self._children = [
            _start_process(rank, place.world_size, port, threads_per_process)
            for rank in range(1, place.world_size)
        ]

    @contextmanager
    def dispatch_task(self, task: RankTask, device: torch.device, resume_command: str) -> Iterator[ProcessGroup]:
        """Give all processes their task, and yield their team. Raises ProcessError where one is lost.

        `again` is the command that goes on with the run.
        """
        if self.rank_info.world_size == 1:
            yield ProcessGroup()
            return
        self._store.publish_task(task)
        self._wait_until_ready()
        try:
            with join_process_group(self._store, self.rank_info, device) as group:
                yield group
        except RuntimeError as error:
            if not is_connection_error(error):
                raise
            raise RankFailedError(
                f"{self._wait_for_failure(FAILURE_DETECTION_SECONDS)}; go on with: {resume_command}"
            ) from None

    def close(self, *, failed: bool) -> None:
        """Let the others end; where the run has `failed`, at once."""
        if self._children:
            self._store.publish_task(None)
        for child in self._children:
            try:
                child.wait(0 if failed else SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        torch.set_num_threads(self._previous_threads)

    def _wait_until_ready(self) -> None:
        """Wait until all are ready. Raises ProcessError where one will not be."""
        while any(
            self._store.read_message(f"ready/{rank}") is None for rank in range(1, self.rank_info.world_size)
        ):
            failure = self._describe_failure()
            if failure is not None:
                raise RankFailedError(f"{failure}, before the first step; start the run again")
            time.sleep(POLL_SECONDS)

    def _wait_for_failure(self, timeout_seconds: float) -> str:
        """Return in words which process is gone, and why, as far as that shows within some seconds."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            failure = self._describe_failure()
            if failure is not None or time.monotonic() >= deadline:
                return failure or f"one of {self.rank_info.world_size} processes is gone"
            time.sleep(POLL_SECONDS)

    def _describe_failure(self) -> str | None:
        """Return in words what became of a process that is gone, if one is known to be."""
        for rank in range(1, self.rank_info.world_size):
            error = self._store.read_message(f"failed/{rank}")
            if error is not None:
                return f"process {rank} of {self.rank_info.world_size} failed ({error})"
        for rank, child in enumerate(self._children, 1):
            code = child.poll()
            if code is not None:
                reason = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {rank} of {self.rank_info.world_size} {reason}"
        return None


@contextmanager
def launch_processes(rank_info: RankInfo, threads: int | None) -> Iterator[ProcessLauncher]:
    """Yield the processes of a run; all that it started have ended when the block ends."""
    launcher = ProcessLauncher(rank_info, threads)
    failed = True
    try:
        yield launcher
        failed = False
    finally:
        launcher.close(failed=failed)


def _start_process(rank: int, world_size: int, port: int, threads: int) -> subprocess.Popen[bytes]:
    import_root = str(Path(__file__).resolve().parents[2])
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}  # no traces
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch would print where in its code it noticed the end of another
        "PYTHONPATH": os.pathsep.join(filter(None, (import_root, os.environ.get("PYTHONPATH")))),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "genexp.train"],
        env={**environment, **{name: str(value) for name, value in variables.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is the first process's to answer: it tells the others when to stop
    )
