"""Running the program in tests: in this process, or in one that can be killed."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genexp.run_dir.checkpoint import list_checkpoints, load_checkpoint
from genexp.train import main

REPO_ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = REPO_ROOT.parent / "shared" / "data"

# Small enough for every technique; intervals such that everything is recorded often.
TINY_RUN = ("dataset.limit=40", "trainer.checkpoint_spacing=0", "device=cpu", "device.threads=1")
TINY_BATCH_SIZE = 8
PRELOADED_MODULES = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.optimize",
    "sklearn.metrics",
    "tensorboardX",
)


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
    """Run any of the commands in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
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
            sys.argv = before
    return CommandResult(exit_code, out.getvalue(), err.getvalue())


def run_dir_override(run_dir: Path) -> str:
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


@contextlib.contextmanager
def start_genexp(
    *arguments: str, prepare: Callable[..., None] | None = None, prepare_args: tuple[Any, ...] = ()
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run the command line in another process, which is killed at the end of the block.

    `prepare(*prepare_args)` runs in it first. The server has imported what takes long: a start takes no second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["genexp.runs.run", "genexp.train", "tests.support.command", *PRELOADED_MODULES]
    )
    process = context.Process(target=_run_child, args=(arguments, prepare, prepare_args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_genexp_process(*arguments: str) -> int:
    """Run the command line in another process and return its exit code."""
    with start_genexp(*arguments) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def read_metrics_log(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def load_status(run_dir: Path) -> dict[str, Any]:
    """Return a run's status.json."""
    content: dict[str, Any] = json.loads((run_dir / "status.json").read_text())
    return content


def load_newest_state(run_dir: Path) -> dict[str, Any]:
    """Return a run's newest checkpoint, without what depends on the file system."""
    state = load_checkpoint(list_checkpoints(run_dir)[0])
    state.pop("log_offsets")
    return state


def assert_same(left: Any, right: Any, path: str = "state") -> None:
    """Assert that two nested values are equal, tensors bit for bit."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, path
        assert torch.equal(torch.nan_to_num(left), torch.nan_to_num(right)), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_same(left[key], right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), path
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{path}[{index}]")
    else:
        assert left == right, path


def assert_same_run(left: Path, right: Path) -> None:
    """Assert that two runs ended with the same weights, optimizer state, metrics and GIFs."""
    assert_same(load_newest_state(left), load_newest_state(right))
    assert read_metrics_log(left) == read_metrics_log(right)
    animations = sorted(path.name for path in left.glob("*.gif"))
    assert animations == sorted(path.name for path in right.glob("*.gif"))
    for name in animations:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)
