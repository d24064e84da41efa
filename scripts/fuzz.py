"""Property-based test of the commands: random settings, damaged run directories, damaged data and environments.

    python scripts/fuzz.py --cases 500 --seed 1 --minutes 60
    python scripts/fuzz.py --cases 125 --seed 2 --real-processes

Every case runs a command in a forked interpreter, or with `--real-processes` in a new one. A command must succeed,
or end with exit code 1 and one line on standard error. It must not print a traceback or the line of an unexpected
error, run longer than the time limit, take more than the memory limit, or change files outside its output
directory. Distinct faults are printed with the command that causes them. Root can read every file, unless it gives
up this right:

    setpriv --bounding-set=-dac_override,-dac_read_search python scripts/fuzz.py
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import gzip
import io
import json
import logging
import os
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
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
SLOW_KEYS = ("trainer.compile",)  # compiling takes longer than a case may
TOOLS = ("genexp-evaluate", "genexp-sample", "genexp-export", "genexp-compare", "genexp-diff", "genexp-report")
PRELOADED_MODULES = (
    *("genexp.train", "genexp.runs.run", "genexp.cli.evaluate", "genexp.cli.sample", "genexp.cli.compare"),
    *("genexp.cli.diff", "genexp.cli.scores", "genexp.cli.generate", "sklearn.metrics", "scipy.optimize"),
    *("sklearn.datasets", "matplotlib.figure", "matplotlib.backends.backend_agg", "plotly.graph_objects"),
    *("tensorboardX", "tensorboardX.record_writer", "filelock", "imageio.v3", "jinja2", "rich.logging"),
)
REPO_ROOT = str(Path(__file__).resolve().parents[1])
RUN_MAIN = "import sys, importlib; del sys.argv[0]; importlib.import_module(sys.argv.pop(0)).main()"
ENTRY_MODULES = {  # program → module with its `main`
    "genexp": "genexp.train",
    "genexp-evaluate": "genexp.cli.evaluate",
    "genexp-sample": "genexp.cli.sample",
    "genexp-export": "genexp.cli.export",
    "genexp-compare": "genexp.cli.compare",
    "genexp-diff": "genexp.cli.diff",
    "genexp-report": "genexp.cli.report",
}

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
POSITIONS = st.integers(0, 10**6).map(lambda number: number / 10**6)  # not floats: a run flushes denormals
# Files of a run that are damaged, as patterns.
RUN_TARGETS = (
    *(
        "config.yaml",
        "status.json",
        "metrics.jsonl",
        "train.log",
        "report.html",
        ".lock",
        ".hydra",
        ".hydra/*.yaml",
    ),
    *("checkpoints", "checkpoints/*.pt", "figures", "figures/*", "previews", "previews/*/*", "*.gif"),
    *("events.*", "projector*", "projector/*"),
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
class Environment:
    """Environment variables, limits of the operating system and closed streams of a command."""

    variables: Mapping[str, str | None] = field(default_factory=dict)  # None removes a variable
    limits: Mapping[str, int] = field(default_factory=dict)  # name in the module resource → limit
    closed_streams: tuple[int, ...] = ()  # file descriptors

    def __str__(self) -> str:
        words = [f"{name}={value!r}" for name, value in (*self.variables.items(), *self.limits.items())]
        return " ".join([*words, *(f"{descriptor}>&-" for descriptor in self.closed_streams)])

    def set_limits(self) -> None:
        """Set the limits of this process, among them that of processor time, and close its streams."""
        resource.setrlimit(resource.RLIMIT_CPU, (MAX_SECONDS, MAX_SECONDS + 5))
        for name, limit in self.limits.items():
            resource.setrlimit(getattr(resource, name), (limit, limit))
        for descriptor in self.closed_streams:
            os.close(descriptor)

    def build_variables(self) -> dict[str, str]:
        """Return the variables of this process with the changes."""
        merged = {**os.environ, **self.variables}
        return {name: value for name, value in merged.items() if value is not None}


@dataclass(frozen=True)
class Command:
    """A command line, a change of files before it runs, and its environment."""

    program: str
    arguments: tuple[str, ...]
    damage: tuple[str, Callable[[Path], None]] | None = None  # description and function of the work directory
    environment: Environment = Environment()
    output_dirs: tuple[str, ...] = ("out",)  # directories below the work directory that it may change
    runs: tuple[str, ...] = ()  # names in MODELS of the finished runs that it needs

    def __str__(self) -> str:
        text = " ".join(filter(None, [str(self.environment), shlex.join([self.program, *self.arguments])]))
        return f"{self.damage[0]}; {text}" if self.damage else text


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    exit_code: int
    stderr: str
    seconds: float
    peak_bytes: int
    changed_files: tuple[str, ...]  # outside the output directory
    has_stderr: bool = True

    def find_fault(self, base_bytes: int) -> str | None:
        """Return a description of the fault, or None if the command behaved."""
        # OpenMP prints its own line about OMP_NUM_THREADS.
        lines = [line for line in self.stderr.splitlines() if line.strip() and not line.startswith("libgomp: ")]
        if self.exit_code < 0:
            name = "hang" if self.exit_code == -signal.SIGKILL else signal.Signals(-self.exit_code).name
            return f"{name} after {self.seconds:.0f} s"
        if any("Traceback (most recent call last)" in line for line in lines):
            return f"traceback: {lines[-1]}"
        if self.exit_code == 1 and any(line.partition(": ")[2].startswith("unexpected ") for line in lines):
            return f"no message of its own: {lines[-1]}"
        if self.exit_code not in (0, 1):
            return f"exit code {self.exit_code}: {lines[-1] if lines else ''}"
        if self.exit_code == 1 and len(lines) != 1 and self.has_stderr:
            return f"{len(lines)} lines on standard error: {' | '.join(lines[:3])}"
        if self.changed_files:
            return f"changed {', '.join(self.changed_files[:3])}"
        if self.peak_bytes > base_bytes + MAX_EXTRA_BYTES:
            return f"took {self.peak_bytes / 1e9:.1f} GB"
        return None


class Sandbox:
    """Work directory with small finished runs, where commands run in forked interpreters."""

    def __init__(
        self, directory: Path, models: Sequence[str] = MODELS, *, has_real_processes: bool = False
    ) -> None:
        self.directory = directory
        self.has_real_processes = has_real_processes
        self.runs = {name: directory / "runs" / name for name in models}
        self.work_dir = directory / "work"  # working directory of the commands; `out` below it is their output
        self.data_dir = directory / "data"
        os.environ.update(HOME=str(directory / "home"), XDG_CACHE_HOME=str(directory / "home" / "cache"))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [REPO_ROOT, os.environ.get("PYTHONPATH", "")]))
        for name in ("runs", "work", "data", "home"):
            (directory / name).mkdir()
        _preload()
        write_data_files(self.data_dir)
        for name, run_dir in self.runs.items():
            # In this process: forked ones find all modules imported, and the caches of libraries filled.
            sys.argv = ["genexp", *FAST_OVERRIDES, *_model_arguments(name), f"hydra.run.dir={run_dir}"]
            with contextlib.redirect_stdout(io.StringIO()):
                import_module(ENTRY_MODULES["genexp"]).main()
            logging.getLogger().handlers.clear()  # with the log of this run
            os.environ.pop("HYDRA_FULL_ERROR", None)  # set by the command
        gc.collect()
        gc.freeze()  # collections in forked processes would copy its pages
        self.base_bytes = 0 if has_real_processes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def run(self, command: Command, max_seconds: float = MAX_WALL_SECONDS) -> Outcome:
        """Run a command in an empty work directory with copies of the data and of its runs."""
        _remove_tree(self.work_dir)
        for name in command.runs:
            shutil.copytree(self.runs[name], self.work_dir / "runs" / name, symlinks=True)
        shutil.copytree(self.data_dir, self.work_dir / "data", symlinks=True)
        if command.damage is not None:
            command.damage[1](self.work_dir)
        before = _list_files(self.directory)
        start = time.monotonic()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            execute = self._start_process if self.has_real_processes else self._fork
            status, peak = _wait(execute(command, out.fileno(), err.fileno()), start + max_seconds)
            err.seek(0)
            text = err.read().decode(errors="replace")
        after = _list_files(self.directory)
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        allowed = ("home/cache", *(f"work/{name}" for name in command.output_dirs))
        if "hydra.run.dir=" in command.arguments:  # the work directory: new files, but no changed ones
            changed = [name for name in changed if name in before]
        outside = tuple(name for name in changed if not name.startswith(allowed))
        seconds = time.monotonic() - start
        has_stderr = 2 not in command.environment.closed_streams
        return Outcome(os.waitstatus_to_exitcode(status), text, seconds, peak, outside, has_stderr)

    def _fork(self, command: Command, out: int, err: int) -> int:
        """Run a command in a fork of this interpreter, and return its process id."""
        pid = os.fork()
        if pid == 0:
            _execute(command, self.work_dir, out, err)
        return pid

    def _start_process(self, command: Command, out: int, err: int) -> int:
        """Run a command in a new interpreter, and return its process id."""
        process = subprocess.Popen(
            [sys.executable, "-c", RUN_MAIN, ENTRY_MODULES[command.program], command.program, *command.arguments],
            cwd=self.work_dir,
            env=command.environment.build_variables(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            preexec_fn=command.environment.set_limits,
        )
        process.returncode = 0  # `_wait` waits for it
        return process.pid


def _preload() -> None:
    for name in PRELOADED_MODULES:
        import_module(name)
    import torch
    from PIL import Image

    from genexp.technique import list_techniques

    Image.init()
    list_techniques()
    torch.set_num_threads(1)


def _execute(command: Command, work_dir: Path, out: int, err: int) -> None:
    """Replace standard output and error, run the command, and exit. Runs in the forked process."""
    code = 1
    try:
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.chdir(work_dir)
        sys.stdin.close()
        sys.argv = [command.program, *command.arguments]
        main = import_module(ENTRY_MODULES[command.program]).main
        variables = command.environment.build_variables()
        os.environ.clear()
        os.environ.update(variables)
        command.environment.set_limits()
        main()
        code = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            with contextlib.suppress(OSError):
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


def _remove_tree(directory: Path) -> None:
    """Remove a directory, also one with write-protected folders."""
    if directory.exists():
        directory.chmod(0o700)
    for folder, folders, _ in os.walk(directory):
        for path in (Path(folder, name) for name in folders):
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


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


def _list_files(directory: Path) -> dict[str, tuple[int, ...]]:
    """Return path relative to `directory` → (size, modification time, inode) of every file; (0,) of folders."""
    found: dict[str, tuple[int, ...]] = {}
    for folder, folders, names in os.walk(directory):
        prefix = Path(folder).relative_to(directory)
        found.update(((prefix / name).as_posix(), (0,)) for name in folders)
        for name in names:
            try:
                state = Path(folder, name).lstat()
            except OSError:
                continue
            found[(prefix / name).as_posix()] = (state.st_size, state.st_mtime_ns, state.st_ino)
    return found


def write_data_files(directory: Path) -> None:
    """Write a small image folder, four IDX files in MNIST's format, and files of centers."""
    import pickle

    from PIL import Image
    from scipy.io import savemat

    generator = np.random.default_rng(0)
    for label in ("a", "b"):
        (directory / "pictures" / label).mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(directory / "pictures" / label / f"{index}.png")
    (directory / "svhn").mkdir()
    (directory / "cifar").mkdir()
    for split in ("train", "test"):
        pixels = generator.integers(0, 256, (16, 16, 3, 10), dtype=np.uint8)
        savemat(directory / "svhn" / f"{split}_32x32.mat", {"X": pixels, "y": np.arange(10)[:, None]})
    for batch in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        pixels = generator.integers(0, 256, (10, 3072), dtype=np.uint8)
        content = pickle.dumps({"data": pixels, "labels": list(range(10))}, protocol=2)
        (directory / "cifar" / batch).write_bytes(content)
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
        "stacked_autoencoder": ["model.widths=[16,4]"],
        "vae": ["model.hidden=[16]", "model.latent=3"],
    }
    return [f"model={name}", *extra.get(name, [])]


@cache
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
def draw_settings(draw: st.DrawFn, models: Sequence[str]) -> Command:
    """Return a `genexp` command with random settings, at times with options and words that do not exist."""
    name = draw(st.sampled_from(models))
    keys = [key for key in list_keys(name) if key not in SLOW_KEYS]
    value = st.sampled_from(SCALARS) | st.sampled_from(SWEEP_VALUES) | st.text(max_size=8).map(repr)
    overrides = draw(st.lists(st.tuples(st.sampled_from(keys), value).map("=".join), min_size=1, max_size=3))
    extra = draw(st.lists(st.sampled_from(EXTRA_ARGUMENTS), max_size=1)) if draw(st.integers(0, 3)) == 0 else []
    return Command("genexp", (*FAST_OVERRIDES, *_model_arguments(name), "hydra.run.dir=out", *overrides, *extra))


@st.composite
def draw_damaged_run(draw: st.DrawFn, models: Sequence[str]) -> Command:
    """Return a command on a run of which one file is damaged."""
    name = draw(st.sampled_from(models))
    target = draw(st.sampled_from(RUN_TARGETS))
    damage_name, change = draw(st.sampled_from(list(DAMAGES.items())))
    position = draw(POSITIONS)
    program = draw(st.sampled_from(("genexp", *TOOLS)))
    run = f"runs/{name}"
    arguments: Sequence[str] = {
        "genexp": (f"resume={run}", "trainer.max_steps=3"),
        "genexp-diff": (run, f"runs/{_list_runs(name, models)[-1]}"),
        "genexp-compare": ("runs", "--html", "out"),
        "genexp-export": (run, "--format", "safetensors"),
        "genexp-report": (run,),
    }.get(program, (run, "--device", "cpu"))

    def apply(work_dir: Path) -> None:
        paths = sorted((work_dir / run).glob(target))
        path = paths[int(position * (len(paths) - 1))] if paths else work_dir / run / target.replace("*", "x")
        _apply(change, path, position)

    output_dirs = {"genexp-diff": (), "genexp-compare": ("out",)}.get(program, (run,))
    damage = (f"{damage_name} {run}/{target} at {position:.3f}", apply)
    return Command(program, tuple(arguments), damage, output_dirs=output_dirs, runs=_list_runs(name, models))


# Data file that is damaged → the command that reads it.
DATA_COMMANDS = (
    ("pictures/a/0.png", ("model=conv_autoencoder", "dataset=image_folder", "dataset.root=data/pictures")),
    ("pictures/a", ("model=conv_autoencoder", "dataset=image_folder", "dataset.root=data/pictures")),
    ("idx/train-images-idx3-ubyte", ("model=vae", "dataset=mnist", "dataset.root=data/idx")),
    ("idx/t10k-images-idx3-ubyte", ("model=vae", "dataset=mnist", "dataset.root=data/idx")),
    ("idx/train-labels-idx1-ubyte", ("model=kmeans", "dataset=mnist", "dataset.root=data/idx")),
    ("idx/t10k-labels-idx1-ubyte", ("model=kmeans", "dataset=mnist", "dataset.root=data/idx")),
    ("svhn/train_32x32.mat", ("model=stacked_autoencoder", "dataset=svhn", "dataset.root=data/svhn")),
    ("cifar/data_batch_2", ("model=stacked_autoencoder", "dataset=cifar10", "dataset.root=data/cifar")),
    ("centers.npy", ("model=kmeans", "model.init=data/centers.npy", "trainer.batch_size=null")),
    (
        "pictures/a/0.png",
        ("model=style_transfer", "model.weights=random", "dataset.content=data/pictures/a/0.png"),
    ),
)


@st.composite
def draw_damaged_data(draw: st.DrawFn) -> Command:
    """Return a `genexp` command on data files of which one is damaged."""
    damage_name, change = draw(st.sampled_from([*DAMAGES.items(), *DATA_DAMAGES.items()]))
    position = draw(POSITIONS)
    file, arguments = draw(st.sampled_from(DATA_COMMANDS))
    fast = (word for word in FAST_OVERRIDES if not word.startswith("trainer.batch"))
    damage = (
        f"{damage_name} data/{file} at {position:.3f}",
        lambda work_dir: _apply(change, work_dir / "data" / file, position),
    )
    return Command("genexp", (*arguments, *fast, "hydra.run.dir=out"), damage)


VARIABLES = {
    "GENEXP_DATA": ("none", "", "data/centers.npy", "/dev/null", "data/idx", "\u00e4"),
    "GENEXP_PLUGINS": ("none.py", "data/centers.npy", "data", ":"),
    "HOME": (None, "", "/none", "data"),
    "TMPDIR": ("/none", "", "data/centers.npy"),
    "COLUMNS": ("0", "1", "-5", "abc", "100000"),
    "TERM": ("dumb", "", "none"),
    "LC_ALL": ("C", "POSIX", "none"),
    "PYTHONIOENCODING": ("ascii", "latin-1"),
    "OMP_NUM_THREADS": ("0", "-1", "abc", "100"),
    "MPLCONFIGDIR": ("/none", "data/centers.npy"),
    "WORLD_SIZE": ("0", "abc", "-1"),
    "RANK": ("0", "abc", "7"),
    "LOCAL_RANK": ("abc", "3"),
    "CUDA_VISIBLE_DEVICES": ("", "abc", "-1"),
    "XDG_CACHE_HOME": ("/none", "data/centers.npy"),
    "USER": (None, ""),
    "PATH": (None, ""),
}
LIMITS = {
    "RLIMIT_FSIZE": (2000, 5000, 50_000, 500_000),  # a full disk, for files above this size
    "RLIMIT_NOFILE": (8, 16, 24, 32, 64),
    "RLIMIT_STACK": (2**18,),
}


@st.composite
def draw_environment(draw: st.DrawFn, models: Sequence[str]) -> Command:
    """Return a command in an unusual environment: variables, limits, closed streams, protected folders."""
    name = draw(st.sampled_from(models))
    variables = {
        key: draw(st.sampled_from(VARIABLES[key]))
        for key in draw(st.lists(st.sampled_from(sorted(VARIABLES)), max_size=2, unique=True))
    }
    limits = {
        key: draw(st.sampled_from(LIMITS[key]))
        for key in draw(st.lists(st.sampled_from(sorted(LIMITS)), max_size=1))
    }
    closed = draw(st.sampled_from(((), (), (), (1,), (2,), (1, 2))))
    program = draw(st.sampled_from(("genexp", "genexp", *TOOLS)))
    run, output_dirs = f"runs/{name}", ("out", f"runs/{name}")
    arguments: Sequence[str] = {
        "genexp": draw(
            st.sampled_from(
                (
                    (f"resume={run}", "trainer.max_steps=3"),
                    (*FAST_OVERRIDES, *_model_arguments(name), "hydra.run.dir=out"),
                )
            )
        ),
        "genexp-diff": (run, f"runs/{_list_runs(name, models)[-1]}"),
        "genexp-compare": ("runs", "--html", "out"),
        "genexp-report": (run,),
    }.get(program, (run, "--device", "cpu"))
    protected = draw(st.sampled_from((None, None, ".", run, f"{run}/checkpoints", f"{run}/previews", "runs")))
    damage = None
    if protected is not None:
        mode = draw(st.sampled_from((0o000, 0o500))) if protected != "." else 0o500
        damage = (f"chmod {mode:o} {protected}", lambda work_dir: (work_dir / protected).chmod(mode))
    environment = Environment(variables, limits, closed)
    return Command(program, tuple(arguments), damage, environment, output_dirs, _list_runs(name, models))


def _list_runs(name: str, models: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a run, and of another one with which it can be compared if there is one."""
    others = {"deep_kmeans": "kmeans", "kmeans": "deep_kmeans", "conv_autoencoder": "stacked_autoencoder"}
    return tuple(dict.fromkeys(model for model in (name, others.get(name, "conv_autoencoder")) if model in models))


def _apply(change: Callable[[Path, float], None], path: Path, position: float) -> None:
    """Damage a file or folder. A folder gets a damage that folders can have. A missing file is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and change not in FOLDER_DAMAGES:
        change = FOLDER_DAMAGES[int(position * 1e6) % len(FOLDER_DAMAGES)]
    elif not path.exists():
        path.write_bytes(b"x" * 100)
    change(path, position)


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
    """Replace a file or folder by a link to another one, which must not change."""
    work_dir = next(parent for parent in path.parents if parent.name == "work")
    target = work_dir / "data" / ("pictures" if path.is_dir() else "centers.npy")
    _remove(path, position)
    path.symlink_to(target)


def _remove(path: Path, position: float) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def _make_fifo(path: Path, position: float) -> None:
    _remove(path, position)
    os.mkfifo(path)


def _add_hostile_names(path: Path, position: float) -> None:
    """Create files and folders with unusual names beside a file, or in a folder."""
    folder = path if path.is_dir() else path.parent
    files = [item for item in folder.iterdir() if item.is_file()] or [folder / "none.png"]
    for name in HOSTILE_NAMES:
        target = folder / os.fsdecode(name)
        with contextlib.suppress(OSError):
            if position < 0.5:
                target.mkdir()
                target /= target.name
            target.write_bytes(files[0].read_bytes() if files[0].is_file() else b"")


def _write_bomb(path: Path, position: float) -> None:
    """Write a small file whose header declares far more than there is memory for."""
    if path.is_dir():
        path = path / "bomb.png"
    size = (2**31 - 1, 10**6, 65535)[int(position * 1e6) % 3]
    if path.suffix == ".npy":
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**12}, {size}), }}".encode()
        path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n")
    elif path.suffix in (".png", ".gif"):
        path.write_bytes(PICTURE_BOMBS[int(position * 1e7) % len(PICTURE_BOMBS)](size))
    else:
        content = path.read_bytes()[:4]
        path.write_bytes(content + struct.pack(">I", size) * content[3])
        if position < 0.5 and content:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(content + bytes(4 * content[3] + 10**8)))
            path.unlink()


def _build_png_bomb(size: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10**6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _build_gif_bomb(size: int) -> bytes:
    side = struct.pack("<H", min(size, 65535))
    frame = b"\x2c" + bytes(4) + side + side + b"\x00\x02\x02\x44\x01\x00"
    return b"GIF89a" + side + side + b"\x80\x00\x00" + bytes(6) + frame + b";"


def _resize(path: Path, position: float) -> None:
    """Write a valid file of another size: empty, tiny, or unequal to the other files."""
    size = (0, 1, 2, 9)[int(position * 1e6) % 4]
    if path.is_dir():
        path = path / "0.png"
    if path.suffix == ".npy":
        np.save(path, np.zeros((2, size), np.float64 if position < 0.5 else np.int8))
    elif path.suffix == ".png":
        from PIL import Image

        Image.new("RGBA" if position < 0.5 else "1", (max(1, size), 1)).save(path)
    elif "idx" not in path.parts:
        path.write_bytes(path.read_bytes()[:size])
    else:
        content = path.read_bytes()
        count = struct.unpack(">I", content[4:8])[0]
        sides = [size] * (content[3] - 1)
        path.write_bytes(
            content[:4] + struct.pack(f">{len(sides) + 1}I", count, *sides) + bytes(count * size ** len(sides))
        )


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
    "add hostile names beside": _add_hostile_names,
}
DATA_DAMAGES: Mapping[str, Callable[[Path, float], None]] = {"write a bomb to": _write_bomb, "resize": _resize}
FOLDER_DAMAGES = (_replace_by_link, _remove, _make_fifo, _protect, _add_hostile_names, _write_bomb)
HOSTILE_NAMES = (b"\xff\xfe.png", b"[red]x[/red].png", b"a\nb.png", b"<b>x.png", b"'\".png", b"[/].gif", b"-x.png")
PICTURE_BOMBS = (_build_png_bomb, _build_gif_bomb)
KINDS = ("settings", "runs", "data", "environments")


def build_strategy(kind: str, models: Sequence[str]) -> st.SearchStrategy[Command]:
    """Return the strategy of one of `KINDS`, with runs of `models`."""
    if kind == "settings":
        return draw_settings(models)
    if kind == "runs":
        return draw_damaged_run(models)
    return draw_damaged_data() if kind == "data" else draw_environment(models)


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
    parser.add_argument("kind", nargs="*", choices=[*KINDS, []], help="default: all")
    parser.add_argument("--cases", type=int, default=500, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="time after which no case starts")
    parser.add_argument("--models", nargs="+", default=MODELS, choices=MODELS, help="default: all")
    parser.add_argument("--real-processes", action="store_true", help="start an interpreter for each case")
    arguments = parser.parse_args()
    deadline = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as directory:
        sandbox = Sandbox(Path(directory), arguments.models, has_real_processes=arguments.real_processes)
        faults: dict[str, list[str]] = {}
        for kind in arguments.kind or KINDS:
            print(kind, flush=True)
            faults |= fuzz(
                sandbox, build_strategy(kind, arguments.models), arguments.cases, arguments.seed, deadline
            )
        _remove_tree(sandbox.work_dir)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
