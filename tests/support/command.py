"""Commands run in this process or in one that can be killed, and the files of their runs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genexp.distributed.launch import build_rank_variables
from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from genexp.run_dir.files import LogFileHandler
from genexp.train import main

REPO_ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = REPO_ROOT.parent / "shared" / "data"

# Overrides of a small run of any technique, without a minimum time between two checkpoints. Figures take as long
# as the rest of such a run. A test that needs them adds `FIGURES_ON`.
TINY_RUN_OVERRIDES = (
    "dataset.limit=40",
    "trainer.checkpoint_spacing=0",
    "device=cpu",
    "device.threads=1",
    "recorders.figures=false",
)
FIGURES_ON = "recorders.figures=true"
TINY_BATCH_SIZE = 8


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    exit_code: int
    stdout: str
    stderr: str


def run_genexp(*arguments: str) -> CommandResult:
    """Run the command line in this process."""
    return run_main("genexp", main, *arguments)


def run_main(program: str, command: Callable[[], None], *arguments: str) -> CommandResult:
    """Run a command in this process, under the name `program`."""
    out, err = io.StringIO(), io.StringIO()
    previous_argv = sys.argv
    sys.argv = [program, *arguments]
    exit_code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command()
        except SystemExit as error:
            if isinstance(error.code, str):
                err.write(error.code + "\n")
                exit_code = 1
            else:
                exit_code = int(error.code or 0)
        finally:
            sys.argv = previous_argv
            _close_log_files()
    return CommandResult(exit_code, out.getvalue(), err.getvalue())


def _close_log_files() -> None:
    """Close the log of a run. A command in its own process closes it at exit."""
    for handler in [handler for handler in logging.root.handlers if isinstance(handler, LogFileHandler)]:
        logging.root.removeHandler(handler)
        handler.close()


def format_run_dir_override(run_dir: Path) -> str:
    """Return the override that makes `run_dir` the directory of a run."""
    return f"hydra.run.dir='{run_dir}'"


def _run_child(
    arguments: tuple[str, ...], prepare: Callable[..., None] | None, prepare_args: tuple[Any, ...]
) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if prepare is not None:
        prepare(*prepare_args)
    sys.argv = ["genexp", *arguments]
    main()


def get_fork_context() -> multiprocessing.context.ForkServerContext:
    """Return the context of a fork server that has imported everything that a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.preload"])
    return context


@contextlib.contextmanager
def start_genexp(
    *arguments: str, prepare: Callable[..., None] | None = None, prepare_args: tuple[Any, ...] = ()
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run the command line in another process, which is killed at the end of the block.

    `prepare(*prepare_args)` runs in it first. The fork server has imported the slow modules: a start takes less
    than a second.
    """
    process = get_fork_context().Process(target=_run_child, args=(arguments, prepare, prepare_args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


class ForkedRank:
    """A rank started by the fork server, with the methods of `subprocess.Popen` that `ProcessLauncher` calls."""

    def __init__(self, rank: int, world_size: int, port: int, num_threads: int) -> None:
        variables = build_rank_variables(rank, world_size, port, num_threads)
        self._process = get_fork_context().Process(target=_run_rank, args=(variables,))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("genexp", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()


def _run_rank(variables: dict[str, str]) -> None:
    os.environ.pop("HYDRA_FULL_ERROR", None)
    os.environ |= variables
    torch.set_num_threads(int(variables["OMP_NUM_THREADS"]))
    sys.argv = ["genexp"]
    main()


def run_genexp_process(*arguments: str) -> int:
    """Run the command line in another process and return its exit code."""
    with start_genexp(*arguments) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def read_metrics_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the parsed lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def load_status(run_dir: Path) -> dict[str, Any]:
    """Return a run's status.json."""
    content: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return content


def load_newest_state(run_dir: Path) -> dict[str, Any]:
    """Return a run's newest checkpoint without `log_offsets`, which may differ between equal runs."""
    state = load_checkpoint(list_checkpoints(run_dir)[0])
    state.pop("log_offsets")
    return state


def list_files(run_dir: Path) -> set[str]:
    """Return the paths of all files of a run, without what pages of a sweep share. Event files have no time."""
    paths = (path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file())
    return {re.sub(r"(tfevents)\.\d+$", r"\1", path) for path in paths if not path.startswith(".assets/")}


def list_file_names(folder: Path) -> list[str]:
    """Return the names of the files in a folder, without the time in the names of event files."""
    return sorted(re.sub(r"\d{9,}", "TIME", path.name) for path in folder.iterdir())


def get_error_line(result: CommandResult, *programs: str) -> str:
    """Return the one line of a failed command, which must start with the name of one of `programs`."""
    assert result.exit_code == 1, result
    (line,) = result.stderr.splitlines()
    assert line.startswith(tuple(f"{program}: " for program in programs))
    assert "Traceback" not in result.stdout + result.stderr
    return line


def format_import_check(module: str, forbidden: Set[str]) -> str:
    """Return a script that runs `main` of a module and fails if a forbidden library was imported."""
    return f"""
import sys
from {module} import main
try:
    main()
except SystemExit as exit_request:
    assert not exit_request.code, exit_request.code
imported = sys.modules.keys() & {sorted(forbidden)}
assert not imported, imported
"""


def wait_for(
    condition: Callable[[], object],
    seconds: float = 60,
    process: multiprocessing.process.BaseProcess | None = None,
) -> None:
    """Wait until `condition` holds. Fail after a time limit, or when `process` has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"timed out after {seconds} seconds"
        assert process is None or process.is_alive(), "the process has ended"
        time.sleep(0.005)
