"""Functions `genexp.run`, `run_sweep`, `load_run` and `compare`, and the runs that they return."""

from __future__ import annotations

import html
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from genexp.errors import ConfigError, DataError, GenexpError
from genexp.registry import list_plugin_sources, set_plugins
from genexp.run_dir.config_file import read_run_config
from genexp.run_dir.metrics import read_metrics
from genexp.run_dir.paths import format_path, locate_run
from genexp.run_dir.record import find_runs, flatten_config, read_run
from genexp.train import format_any_error, run_arguments, run_task

if TYPE_CHECKING:
    from genexp.data.dataset import Dataset
    from genexp.technique import Technique

Source = str | os.PathLike[str]


class SavedRun:
    """A run in its directory. Its files are read when they are needed."""

    def __init__(self, path: Source, *, checkpoint: str = "best", device: str = "auto") -> None:
        """Refer to the run in `path`. `checkpoint` and `device` are those of genexp-evaluate.

        Raises CheckpointError if `path` is not a run directory.
        """
        self.path = _to_path(path)
        self._checkpoint, self._device = checkpoint, device
        self.config: dict[str, Any] = read_run_config(self.path)  # nested and resolved

    def __repr__(self) -> str:
        return f"<run {format_path(self.path)}: {self.state}, {self._format_scores()}>"

    @property
    def state(self) -> str:
        """State of the run: finished, stopped, failed, running or killed."""
        return read_run(self.path).state

    @property
    def scores(self) -> dict[str, float]:
        """Latest test metrics by name."""
        return {
            name: np.nan if value is None else value for name, value in read_run(self.path).status.test.items()
        }

    @property
    def metrics(self) -> np.ndarray:
        """All logged metrics as a structured array (rows,): one row for each step and split.

        The fields are step, epoch, split and the metrics, NaN where a row has none. A data frame is
        `pandas.DataFrame(run.metrics)`.
        """
        rows: dict[tuple[int, int, str], dict[str, float]] = {}
        for split, curves in read_metrics(self.path).items():
            for name, curve in curves.items():
                points = zip(curve.steps.tolist(), curve.epochs.tolist(), curve.values.tolist(), strict=True)
                for step, epoch, value in points:
                    rows.setdefault((step, epoch, split), {})[name] = value
        names = sorted({name for row in rows.values() for name in row})
        fields = [("step", "i8"), ("epoch", "i8"), ("split", "U16"), *((name, "f8") for name in names)]
        ordered = sorted(rows.items(), key=lambda item: (item[0][0], item[0][2] != "train"))
        values = [(*key, *(row.get(name, np.nan) for name in names)) for key, row in ordered]
        return np.array(values, dtype=fields)

    @cached_property
    def _loaded(self) -> Any:
        from genexp.runs.load import load_run, read_config  # imports torch

        config = read_config(self.path)
        loaded = load_run(self.path, config, checkpoint_name=self._checkpoint, device_name=self._device)
        loaded.technique.eval()
        return loaded

    @property
    def technique(self) -> Technique:
        """The technique with the weights of the checkpoint, in evaluation mode. Loaded once."""
        technique: Technique = self._loaded.technique
        return technique

    @property
    def dataset(self) -> Dataset:
        """The data set of the run. Loaded once, with the technique."""
        dataset: Dataset = self._loaded.dataset
        return dataset

    def _format_scores(self) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in self.scores.items()) or "no scores"

    def _repr_html_(self) -> str:
        """Return the key numbers and some pictures of the run, for a notebook."""
        from genexp.reports.run_report import render_run_summary  # a notebook imports jinja2 only for this

        return render_run_summary(self.path)


class RunTable(list[dict[str, Any]]):
    """Compared runs, best first: name, path, state, seed, differing settings and metrics of each.

    `pandas.DataFrame(table)` makes a data frame.
    """

    def _repr_html_(self) -> str:
        """Return an HTML table, for a notebook."""
        columns = list(dict.fromkeys(name for row in self for name in row))
        header = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_format_cell(row.get(name)))}</td>" for name in columns) + "</tr>"
            for row in self
        )
        return f"<table><tr>{header}</tr>{rows}</table>"


def run(*overrides: str, plugins: Sequence[Source] | None = None, **settings: Any) -> SavedRun:
    """Train a run as `genexp OVERRIDES` does, and return it.

    `settings` are further overrides: dataset="mnist_5k", trainer={"epochs": 3}. `plugins` are files or modules;
    None keeps those in use. An interrupted run is returned in the state "stopped". Raises GenexpError.
    """
    if {"-m", "--multirun"} & set(map(str, overrides)):
        raise ConfigError(f"{' '.join(overrides)}: not a single run. Remove -m, or use genexp.run_sweep.")
    run_dirs: list[Path] = []
    errors: list[Exception] = []

    def task(config: DictConfig) -> float | None:
        try:
            run_dir, result = run_task(config)
        except Exception as error:  # Hydra would print it
            errors.append(error)
            return None
        run_dirs.append(run_dir)
        return result.objective_value

    _run_command([*overrides, *_format_overrides(settings)], plugins, task)
    if errors:
        raise errors[0] if isinstance(errors[0], GenexpError) else GenexpError(format_any_error(errors[0]))
    if not run_dirs:  # an option such as --help
        raise GenexpError(f"{' '.join(overrides)}: does not train a run. Remove the option.")
    return SavedRun(run_dirs[0])


def run_sweep(
    *overrides: str, launcher: str = "basic", plugins: Sequence[Source] | None = None, **settings: Any
) -> list[SavedRun]:
    """Train the runs of a sweep as `genexp -m OVERRIDES` does, and return them, best first.

    A list in `settings` has the values to try: seed=[0, 1, 2]. A value that is a list is written as a tuple.
    Raises GenexpError, also if a job failed.
    """
    sweep_dir = Path("outputs", "sweeps", datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")).absolute()
    own_dir = next((text.partition("=")[2] for text in overrides if text.startswith("hydra.sweep.dir=")), None)
    lists = {key: value for key, value in settings.items() if isinstance(value, list)}
    swept = {key: ",".join(map(_format_value, values)) for key, values in lists.items()}
    arguments = [*overrides, *_format_overrides({**settings, **swept}), f"hydra/launcher={launcher}"]
    if own_dir is None:
        arguments.append(f"hydra.sweep.dir='{sweep_dir}'")
    _run_command(["-m", *arguments], plugins, None)
    return [SavedRun(row["path"]) for row in compare(own_dir.strip("'\"") if own_dir else sweep_dir)]


def load_run(
    path: Source, *, checkpoint: str = "best", device: str = "auto", plugins: Sequence[Source] | None = None
) -> SavedRun:
    """Return the run in a directory. `run.technique` has the weights of a checkpoint, in evaluation mode.

    `checkpoint` is best, newest or a file. `plugins` are those of the run; None keeps those in use.
    Raises GenexpError.
    """
    if plugins is not None:
        set_plugins(_list_sources(plugins))
    return SavedRun(path, checkpoint=checkpoint, device=device)


def compare(*paths: Source) -> RunTable:
    """Return the runs in directories of runs and sweeps, best objective first. Raises DataError."""
    from genexp.reports.comparison import compare_runs

    if not paths:
        raise DataError("genexp.compare: no directory. Use directories of runs or sweeps.")
    comparison = compare_runs(find_runs([_to_path(path) for path in paths]))
    return RunTable(
        {
            "run": record.name,
            "path": str(record.run_dir),
            "state": record.state,
            "seed": record.seed,
            **{key: dict(flatten_config(record.config)).get(key) for key in comparison.differing_keys},
            **{name: record.latest_metrics.get(name) for name in comparison.metrics},
        }
        for record in comparison.runs
    )


def _to_path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ConfigError(f"{path!r}: not a path. Use the directory of a run.")
    return locate_run(os.fspath(path))


def _list_sources(plugins: Any) -> list[str]:
    """Return plugins as strings. Raises ConfigError if `plugins` is not a sequence of paths."""
    is_list = isinstance(plugins, Sequence) and not isinstance(plugins, str)
    if not is_list or not all(isinstance(plugin, str | os.PathLike) for plugin in plugins):
        raise ConfigError(f"plugins={plugins!r}: must be a list of files or modules. Use plugins=['my_ideas.py'].")
    return [os.fspath(plugin) for plugin in plugins]


def _run_command(arguments: list[str], plugins: Sequence[Source] | None, task: Any) -> None:
    """Run the command `genexp` in this process. Restores logging and the environment. Raises GenexpError."""
    sources = list_plugin_sources() if plugins is None else _list_sources(plugins)
    for argument in arguments:
        if not isinstance(argument, str):
            raise ConfigError(f"{argument!r}: not a string. Use 'KEY=VALUE', or KEY=VALUE as a keyword.")
    options = [word for source in sources for word in ("--plugin", source)]
    with _preserve_logging(), _preserve_hydra(), _set_environment("HYDRA_FULL_ERROR", "1"):
        try:
            run_arguments([*options, *arguments], task)
        except GenexpError:
            raise
        except SystemExit as error:
            if error.code:
                raise GenexpError(str(error.code).removeprefix("genexp: ")) from None
        except Exception as error:
            raise GenexpError(format_any_error(error)) from error


def _format_overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the overrides KEY=VALUE of nested settings."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _format_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={_format_value(value)}"


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_format_value, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _format_cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@contextmanager
def _preserve_hydra() -> Iterator[None]:
    """Run the block in a Hydra of its own, also inside of another application of Hydra."""
    global_hydra, config = GlobalHydra.instance(), HydraConfig.instance()
    previous, previous_config = global_hydra.hydra, config.cfg
    global_hydra.clear()
    try:
        yield
    finally:
        global_hydra.hydra, config.cfg = previous, previous_config


@contextmanager
def _preserve_logging() -> Iterator[None]:
    """Remove the handlers that the block adds to the root logger, and restore its level."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in root.handlers:
            if handler not in handlers:
                handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _set_environment(name: str, value: str) -> Iterator[None]:
    previous = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if previous is None:
            del os.environ[name]
        else:
            os.environ[name] = previous
