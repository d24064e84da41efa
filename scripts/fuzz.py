"""Property-based test of the commands: random settings, damaged run directories and damaged data files.

    python scripts/fuzz.py --cases 500 --seed 1 --minutes 60

Every case runs a command in a forked interpreter. A command must succeed, or end with exit code 1 and one line on
standard error. It must not print a traceback, run longer than the time limit, take more than the memory limit, or
change files outside its output directory. Distinct faults are printed with the command that causes them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a forked process cannot use the threads of its parent

import numpy as np
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

MAX_SECONDS = 20  # of processor time
MAX_WALL_SECONDS = 120.0  # a command that waits is killed after this
MAX_EXTRA_BYTES = 10**9  # beyond the memory of the interpreter that is forked
MODELS = ("kmeans", "stacked_autoencoder", "vae", "gan", "conv_autoencoder", "deep_kmeans", "style_transfer")
FAST_OVERRIDES = (
    *("dataset.limit=40", "trainer.max_steps=2", "trainer.batch_size=4", "device=cpu", "device.threads=1"),
    "dataset.resident_gb=1",
)
TOOLS = ("genexp-evaluate", "genexp-sample", "genexp-compare", "genexp-diff")
PRELOADED_MODULES = (
    *("genexp.train", "genexp.runs.run", "genexp.cli.evaluate", "genexp.cli.sample", "genexp.cli.compare"),
    *("genexp.cli.diff", "genexp.cli.scores", "genexp.cli.generate", "sklearn.metrics", "scipy.optimize"),
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "plotly.graph_objects"),
)

# Values that a setting may get: of every type, at and beyond the limits, and texts with special characters.
SCALARS = (
    *(
        "0",
        "1",
        "-1",
        "2",
        "3",
        "7",
        "0.5",
        "-0.5",
        "1e-9",
        "1e23",
        "1e400",
        "nan",
        "inf",
        "-inf",
        "true",
        "false",
    ),
    *(
        "null",
        "''",
        "abc",
        "1000000000",
        "99999999999999999999",
        "'[red]x[/red]'",
        "'a b'",
        "'ä€😀'",
        "'../x'",
        "'/'",
    ),
    *("'%s%d'", "'<script>'", "'{}'", '"\'"', "'\\'", "${seed}", "${oc.env:HOME}", "???", "[]", "[1]", "[1,2]"),
    *("[[1]]", "[a]", "[null]", "[0,-1]", "{}", "{a:1}", "{a:{b:2}}", "[1e9,1e9]", "0x10", "1_000", "1.0", "'1'"),
)
SWEEP_VALUES = (
    "0,1",
    "range(0)",
    "range(2)",
    "interval(0,1)",
    "interval(0.5,0.1)",
    "choice()",
    "choice(1,2)",
    "1,",
    ",",
)
EXTRA_ARGUMENTS = (
    *(
        "-m",
        "--cfg",
        "job",
        "--resolve",
        "--info",
        "~seed",
        "~model",
        "~notes",
        "+x=1",
        "++x.y=1",
        "+model.recipe.foo=3",
    ),
    *(
        "model=",
        "=1",
        "model",
        "model=none",
        "dataset=none",
        "experiment=none",
        "resume=none",
        "resume=",
        "hydra.run.dir=",
    ),
    *(
        "--config-dir=none",
        "--config-name=x",
        "--unknown",
        "-x",
        "hydra/launcher=none",
        "hydra.launcher.n_jobs=0",
        "--",
    ),
)


@dataclass(frozen=True)
class Command:
    """A command line, and a change of files before it runs."""

    program: str
    arguments: tuple[str, ...]
    damage: tuple[str, Callable[[Path], None]] | None = None  # description and function of the work directory

    def __str__(self) -> str:
        text = shlex.join([self.program, *self.arguments])
        return f"{self.damage[0]}; {text}" if self.damage else text


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    exit_code: int
    stderr: str
    seconds: float
    peak_bytes: int
    changed_files: tuple[str, ...]  # outside the output directory

    def find_fault(self, base_bytes: int) -> str | None:
        """Return a description of the fault, or None if the command behaved."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        if self.exit_code < 0:
            name = "hang" if self.exit_code == -signal.SIGKILL else signal.Signals(-self.exit_code).name
            return f"{name} after {self.seconds:.0f} s"
        if any("Traceback (most recent call last)" in line for line in lines):
            return f"traceback: {lines[-1]}"
        if self.exit_code not in (0, 1):
            return f"exit code {self.exit_code}: {lines[-1] if lines else ''}"
        if self.exit_code == 1 and len(lines) != 1:
            return f"{len(lines)} lines on standard error: {' | '.join(lines[:3])}"
        if self.changed_files:
            return f"changed {', '.join(self.changed_files[:3])}"
        if self.peak_bytes > base_bytes + MAX_EXTRA_BYTES:
            return f"took {self.peak_bytes / 1e9:.1f} GB"
        return None


class Sandbox:
    """Work directory with small finished runs, where commands run in forked interpreters."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.runs = {name: directory / "runs" / name for name in MODELS}
        self.work_dir = directory / "work"  # working directory of the commands; `out` below it is their output
        self.data_dir = directory / "data"
        os.environ.update(HOME=str(directory / "home"), XDG_CACHE_HOME=str(directory / "home" / "cache"))
        for name in ("runs", "work", "data", "home"):
            (directory / name).mkdir()
        _preload()
        write_data_files(self.data_dir)
        for name, run_dir in self.runs.items():
            arguments = [*FAST_OVERRIDES, *_model_arguments(name), f"hydra.run.dir={run_dir}"]
            outcome = self.run(Command("genexp", tuple(arguments)), max_seconds=300)
            assert outcome.exit_code == 0, outcome.stderr
        self.base_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def run(self, command: Command, max_seconds: float = MAX_WALL_SECONDS) -> Outcome:
        """Run a command in a fork of this interpreter, in an empty work directory with copies of runs and data."""
        shutil.rmtree(self.work_dir, ignore_errors=True)
        shutil.copytree(self.directory / "runs", self.work_dir / "runs", symlinks=True)
        shutil.copytree(self.data_dir, self.work_dir / "data", symlinks=True)
        if command.damage is not None:
            command.damage[1](self.work_dir)
        before = _list_files(self.directory)
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _execute(command, self.work_dir, out.fileno(), err.fileno())
            status, peak = _wait(pid, start + max_seconds)
            err.seek(0)
            text = err.read().decode(errors="replace")
        after = _list_files(self.directory)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        allowed = ("work/out", "work/runs", "home/cache")
        outside = tuple(name for name in changed if not name.startswith(allowed))
        return Outcome(os.waitstatus_to_exitcode(status), text, time.monotonic() - start, peak, outside)


def _preload() -> None:
    import importlib

    for name in PRELOADED_MODULES:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)


def _execute(command: Command, work_dir: Path, out: int, err: int) -> None:
    """Replace standard output and error, run the command, and exit. Runs in the forked process."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(work_dir)
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 5))
        sys.stdin.close()
        sys.argv = [command.program, *command.arguments]
        from genexp import train
        from genexp.cli import compare, diff, evaluate, sample

        mains: Mapping[str, Callable[[], Any]] = {
            "genexp": train.main,
            "genexp-evaluate": evaluate.main,
            "genexp-sample": sample.main,
            "genexp-compare": compare.main,
            "genexp-diff": diff.main,
        }
        mains[command.program]()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _wait(pid: int, deadline: float) -> tuple[int, int]:
    """Return the wait status and the peak memory in bytes of a child, which is killed at `deadline`."""
    pause = 0.002
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage.ru_maxrss * 1024
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            _, status, usage = os.wait4(pid, 0)
            return status, usage.ru_maxrss * 1024
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def _list_files(directory: Path) -> dict[str, tuple[int, int]]:
    """Return path relative to `directory` → (size, modification time) of every file below it."""
    found = {}
    for folder, _, names in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            try:
                state = path.lstat()
            except OSError:
                continue
            found[path.relative_to(directory).as_posix()] = (state.st_size, state.st_mtime_ns)
    return found


def write_data_files(directory: Path) -> None:
    """Write a small image folder, four IDX files in MNIST's format, and files of centers."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (directory / "pictures" / label).mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / "pictures" / label / f"{index}.png")
    (directory / "idx").mkdir()
    for split, count in (("train", 20), ("t10k", 10)):
        images = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        header = bytes((0, 0, 8, 3)) + np.array(images.shape, ">u4").tobytes()
        (directory / "idx" / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        header = bytes((0, 0, 8, 1)) + np.array(labels.shape, ">u4").tobytes()
        (directory / "idx" / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    np.save(directory / "centers.npy", np.zeros((2, 2), np.float32))


def _model_arguments(name: str) -> list[str]:
    extra = {
        "style_transfer": ["model.weights=random", "dataset.size=32", "trainer.batch_size=null"],
        "gan": ["model.hidden=[16]", "model.evaluation_samples=10"],
        "kmeans": ["trainer.batch_size=null"],
    }
    return [f"model={name}", *extra.get(name, [])]


def list_keys(name: str) -> list[str]:
    """Return the dotted keys of the configuration of a model."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from genexp.config import find_config_dir

    with initialize_config_dir(str(find_config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides=[f"model={name}"]))

    def flatten(node: Any, prefix: str) -> list[str]:
        if not isinstance(node, dict) or not node:
            return [prefix]
        return [
            key for name, value in node.items() for key in flatten(value, f"{prefix}.{name}" if prefix else name)
        ]

    return flatten(config, "")


@st.composite
def draw_settings(draw: st.DrawFn) -> Command:
    """Return a `genexp` command with random settings, at times with options and words that do not exist."""
    name = draw(st.sampled_from(MODELS))
    keys = list_keys(name)
    value = st.sampled_from(SCALARS) | st.sampled_from(SWEEP_VALUES) | st.text(max_size=8).map(repr)
    overrides = draw(st.lists(st.tuples(st.sampled_from(keys), value).map("=".join), min_size=1, max_size=3))
    extra = draw(st.lists(st.sampled_from(EXTRA_ARGUMENTS), max_size=1)) if draw(st.integers(0, 3)) == 0 else []
    return Command("genexp", (*FAST_OVERRIDES, *_model_arguments(name), "hydra.run.dir=out", *overrides, *extra))


@st.composite
def draw_damaged_run(draw: st.DrawFn) -> Command:
    """Return a command on a run of which one file is damaged."""
    name = draw(st.sampled_from(MODELS))
    target = draw(
        st.sampled_from(
            ("config.yaml", "status.json", "metrics.jsonl", "train.log", "report.html", "checkpoints", "figures")
        )
    )
    damage_name, change = draw(st.sampled_from(list(DAMAGES.items())))
    position = draw(st.floats(0, 1))
    program = draw(st.sampled_from(("genexp", *TOOLS)))
    run = f"runs/{name}"
    arguments: Sequence[str] = {
        "genexp": (f"resume={run}", "trainer.max_steps=3"),
        "genexp-diff": (run, f"runs/{MODELS[0]}"),
        "genexp-compare": ("runs",),
    }.get(program, (run, "--device", "cpu"))

    def apply(work_dir: Path) -> None:
        path = work_dir / run / target
        if path.is_dir():
            files = sorted(item for item in path.rglob("*") if item.is_file())
            path = files[int(position * (len(files) - 1))] if files else path
        change(path, position)

    return Command(program, tuple(arguments), (f"{damage_name} {run}/{target} at {position:.3f}", apply))


@st.composite
def draw_damaged_data(draw: st.DrawFn) -> Command:
    """Return a `genexp` command on data files of which one is damaged."""
    damage_name, change = draw(st.sampled_from(list(DAMAGES.items())))
    position = draw(st.floats(0, 1))
    file, arguments = draw(
        st.sampled_from(
            (
                (
                    "pictures/a/0.png",
                    ("model=conv_autoencoder", "dataset=image_folder", "dataset.root=data/pictures"),
                ),
                ("idx/train-images-idx3-ubyte", ("model=vae", "dataset=mnist", "dataset.root=data/idx")),
                ("idx/t10k-labels-idx1-ubyte", ("model=kmeans", "dataset=mnist", "dataset.root=data/idx")),
                ("centers.npy", ("model=kmeans", "model.init=data/centers.npy", "trainer.batch_size=null")),
                (
                    "pictures/a/0.png",
                    ("model=style_transfer", "model.weights=random", "dataset.content=data/pictures/a/0.png"),
                ),
            )
        )
    )
    return Command(
        "genexp",
        (
            *arguments,
            *(word for word in FAST_OVERRIDES if not word.startswith("trainer.batch")),
            "hydra.run.dir=out",
        ),
        (
            f"{damage_name} data/{file} at {position:.3f}",
            lambda work_dir: change(work_dir / "data" / file, position),
        ),
    )


def _truncate(path: Path, position: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * position)])


def _flip_byte(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    if content:
        content[int((len(content) - 1) * position)] ^= 0xFF
        path.write_bytes(content)


def _insert_zeros(path: Path, position: float) -> None:
    content = path.read_bytes()
    middle = int(len(content) * position)
    path.write_bytes(content[:middle] + bytes(64) + content[middle:])


def _randomize(path: Path, position: float) -> None:
    path.write_bytes(np.random.default_rng(int(position * 1e9)).bytes(300))


def _change_json(path: Path, position: float) -> None:
    """Replace one value of a JSON object by one of another type."""
    try:
        lines = path.read_text().splitlines()
        row = json.loads(lines[0] if path.suffix == ".jsonl" else "\n".join(lines))
    except (ValueError, IndexError, UnicodeDecodeError):
        return _randomize(path, position)
    keys = sorted(row)
    values: tuple[Any, ...] = ("text", None, -1, 1e300, [], {}, True, 10**40, "\u0000")
    row[keys[int(position * (len(keys) - 1))]] = values[int(position * 1e6) % len(values)]
    text = json.dumps(row)
    path.write_text("\n".join([text, *lines[1:]]) + "\n" if path.suffix == ".jsonl" else text)
    return None


def _replace_by_directory(path: Path, position: float) -> None:
    path.unlink()
    path.mkdir()


def _replace_by_link(path: Path, position: float) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _remove(path: Path, position: float) -> None:
    path.unlink()


def _make_fifo(path: Path, position: float) -> None:
    path.unlink()
    os.mkfifo(path)


def _protect(path: Path, position: float) -> None:
    path.chmod(0)


DAMAGES: Mapping[str, Callable[[Path, float], None]] = {
    "truncate": _truncate,
    "flip a byte of": _flip_byte,
    "insert zeros into": _insert_zeros,
    "randomize": _randomize,
    "change a value of": _change_json,
    "replace by a directory": _replace_by_directory,
    "replace by a link": _replace_by_link,
    "remove": _remove,
    "replace by a pipe": _make_fifo,
    "protect": _protect,
}
STRATEGIES = {"settings": draw_settings(), "runs": draw_damaged_run(), "data": draw_damaged_data()}


def fuzz(
    sandbox: Sandbox, strategy: st.SearchStrategy[Command], cases: int, seed_value: int, deadline: float
) -> dict[str, list[str]]:
    """Run `cases` commands, or fewer if `deadline` (of time.monotonic) passes. Return fault → commands."""
    faults: dict[str, list[str]] = {}
    counts = {"cases": 0}

    @seed(seed_value)
    @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(command: Command) -> None:
        if time.monotonic() > deadline:
            return
        counts["cases"] += 1
        fault = sandbox.run(command).find_fault(sandbox.base_bytes)
        if fault is not None:
            if fault not in faults:
                print(f"  {fault}\n    {command}", flush=True)
            faults.setdefault(fault, []).append(str(command))

    check()
    print(f"{counts['cases']} cases, {sum(map(len, faults.values()))} faults, {len(faults)} distinct", flush=True)
    return faults


def main() -> None:
    """Run the strategies given on the command line, and exit with 1 if a fault was found."""
    parser = argparse.ArgumentParser(description="Run commands with random settings and damaged files.")
    parser.add_argument("kind", nargs="*", choices=[*STRATEGIES, []], help="default: all")
    parser.add_argument("--cases", type=int, default=500, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="time after which no case starts")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as directory:
        sandbox = Sandbox(Path(directory))
        faults: dict[str, list[str]] = {}
        for kind in arguments.kind or STRATEGIES:
            print(kind, flush=True)
            faults |= fuzz(sandbox, STRATEGIES[kind], arguments.cases, arguments.seed, deadline)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
