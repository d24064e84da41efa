"""Start of the ranks of a run, dispatch of their task, and detection of failed ranks.

A nonzero rank is the same program, started with the environment variables that torchrun sets. It reads no command
line: rank 0 sends it the configuration, and later the training state. This holds under torchrun too.
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

FAILURE_DETECTION_SECONDS = 5.0  # seconds to find the failed rank after a failed send or receive
SHUTDOWN_SECONDS = 20.0  # seconds for a rank to exit before it is killed
POLL_SECONDS = 0.01  # seconds between two checks of the ranks


class ProcessLauncher:
    """Launcher of the nonzero ranks of a run, used by rank 0. It owns them from start to exit."""

    def __init__(self, rank_info: RankInfo, num_threads: int | None) -> None:
        """Start the nonzero ranks, unless torchrun has started them.

        Each started rank uses `num_threads` CPU threads, or an equal share of torch's threads if None.
        """
        self.rank_info = rank_info
        self._children: list[subprocess.Popen[bytes]] = []
        self._previous_threads = torch.get_num_threads()
        if rank_info.world_size == 1:
            return
        if read_rank_info() is not None:
            self._store = connect_rank_store()
            return
        self._store, port = create_rank_store()
        threads_per_process = num_threads or max(1, self._previous_threads // rank_info.world_size)
        torch.set_num_threads(threads_per_process)
        self._children = [
            _start_process(rank, rank_info.world_size, port, threads_per_process)
            for rank in range(1, rank_info.world_size)
        ]

    @contextmanager
    def dispatch_task(self, task: RankTask, device: torch.device, resume_command: str) -> Iterator[ProcessGroup]:
        """Send `task` to all ranks and yield their process group. Raises RankFailedError where a rank fails.

        `resume_command` is the command line, for the error message, that resumes the run.
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
                f"{self._wait_for_failure(FAILURE_DETECTION_SECONDS)}. Resume it with: {resume_command}"
            ) from None

    def close(self, *, has_failed: bool) -> None:
        """Wait until the started ranks exit, and kill those that do not. If the run `has_failed`, do not wait."""
        if self._children:
            self._store.publish_task(None)
        for child in self._children:
            try:
                child.wait(0 if has_failed else SHUTDOWN_SECONDS)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        torch.set_num_threads(self._previous_threads)

    def _wait_until_ready(self) -> None:
        """Wait until all ranks are ready. Raises RankFailedError where one fails before."""
        while any(
            self._store.read_message(f"ready/{rank}") is None for rank in range(1, self.rank_info.world_size)
        ):
            failure = self._describe_failure()
            if failure is not None:
                raise RankFailedError(f"{failure}, before the first step. Start the run again.")
            time.sleep(POLL_SECONDS)

    def _wait_for_failure(self, timeout_seconds: float) -> str:
        """Return a description of the rank that failed; a generic one if none is found in `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            failure = self._describe_failure()
            if failure is not None or time.monotonic() >= deadline:
                return failure or f"one of {self.rank_info.world_size} processes is gone"
            time.sleep(POLL_SECONDS)

    def _describe_failure(self) -> str | None:
        """Return a description of a rank that failed or exited, or None if none is known."""
        for rank in range(1, self.rank_info.world_size):
            error = self._store.read_message(f"failed/{rank}")
            if error is not None:
                return f"process {rank} of {self.rank_info.world_size} failed ({error})"
        for rank, child in enumerate(self._children, 1):
            code = child.poll()
            if code is not None:
                reason = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                return f"process {rank} of {self.rank_info.world_size} {reason}"
        return None


@contextmanager
def launch_processes(rank_info: RankInfo, num_threads: int | None) -> Iterator[ProcessLauncher]:
    """Yield the launcher of a run's ranks. All ranks it started have exited when the block ends."""
    launcher = ProcessLauncher(rank_info, num_threads)
    has_failed = True
    try:
        yield launcher
        has_failed = False
    finally:
        launcher.close(has_failed=has_failed)


def build_rank_variables(rank: int, world_size: int, port: int, num_threads: int) -> dict[str, str]:
    """Return the environment variables by which a process is the rank `rank` of a run, as torchrun sets them."""
    import_root = str(Path(__file__).resolve().parents[2])
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": world_size,
        "LOCAL_WORLD_SIZE": world_size,
        "MASTER_ADDR": LOCALHOST,
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": num_threads,
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # torch would print a C++ stack trace when another rank exits
        "PYTHONPATH": os.pathsep.join(filter(None, (import_root, os.environ.get("PYTHONPATH")))),
    }
    return {name: str(value) for name, value in variables.items()}


def _start_process(rank: int, world_size: int, port: int, num_threads: int) -> subprocess.Popen[bytes]:
    # Without HYDRA_FULL_ERROR the process prints no tracebacks.
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    return subprocess.Popen(
        [sys.executable, "-m", "genexp.train"],
        env={**environment, **build_rank_variables(rank, world_size, port, num_threads)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # Ctrl-C reaches rank 0 only, which stops all ranks at the same step. The second line does so on Windows.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )
