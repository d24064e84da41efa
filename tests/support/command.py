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

REPOSITORY = Path(__file__).resolve().parents[2]
REAL_DATA = REPOSITORY.parent / "shared" / "data"

# Small enough for every technique; intervals such that everything is recorded often.
TINY = ("dataset.limit=40", "trainer.checkpoint_spacing=0", "device=cpu", "device.threads=1")
TINY_BATCH = 8
SLOW_IMPORTS = (
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "scipy.optimize",
    "sklearn.metrics",
    "tensorboardX",
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def genexp(*arguments: str) -> Ended:
    """Run the command line in this process."""
    return called("genexp", main, *arguments)


def called(program: str, command: Callable[[], None], *arguments: str) -> Ended:
    """Run any of the commands in this process."""
    out, err = io.StringIO(), io.StringIO()
    before = sys.argv
    sys.argv = [program, *arguments]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command()
        except SystemExit as ending:
            if isinstance(ending.code, str):
                err.write(ending.code + "\n")
                code = 1
            else:
                code = int(ending.code or 0)
        finally:
            sys.argv = before
    return Ended(code, out.getvalue(), err.getvalue())


def in_folder(folder: Path) -> str:
    """Return the override that puts a run into `folder`."""
    return f"hydra.run.dir='{folder}'"


def _child(arguments: tuple[str, ...], prepare: Callable[..., None] | None, options: tuple[Any, ...]) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    if prepare is not None:
        prepare(*options)
    sys.argv = ["genexp", *arguments]
    main()


@contextlib.contextmanager
def background(
    *arguments: str, prepare: Callable[..., None] | None = None, options: tuple[Any, ...] = ()
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run the command line in another process, which is killed at the end of the block.

    `prepare(*options)` runs in it first. The server has imported what takes long: a start takes no second.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["genexp.runs.run", "genexp.train", "tests.support.command", *SLOW_IMPORTS])
    process = context.Process(target=_child, args=(arguments, prepare, options))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_to_end(*arguments: str) -> int:
    """Run the command line in another process and return its exit code."""
    with background(*arguments) as process:
        process.join()
        assert process.exitcode is not None
        return process.exitcode


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def status(folder: Path) -> dict[str, Any]:
    """Return a run's status.json."""
    content: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


def last_state(folder: Path) -> dict[str, Any]:
    """Return a run's newest checkpoint, without what depends on the file system."""
    state = load_checkpoint(list_checkpoints(folder)[0])
    state.pop("log_offsets")
    return state


def assert_same(left: Any, right: Any, where: str = "state") -> None:
    """Assert that two nested values are equal, tensors bit for bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(torch.nan_to_num(left), torch.nan_to_num(right)), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (a, b) in enumerate(zip(left, right, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert left == right, where


def assert_same_run(left: Path, right: Path) -> None:
    """Assert that two runs ended with the same weights, optimizer state, metrics and GIFs."""
    assert_same(last_state(left), last_state(right))
    assert metrics(left) == metrics(right)
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
