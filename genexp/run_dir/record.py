"""Reader of complete and incomplete run directories. A killed run leaves only some of the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from genexp.errors import CheckpointError, DataError
from genexp.run_dir.config_file import read_hydra_config, read_run_config
from genexp.run_dir.files import is_locked
from genexp.run_dir.paths import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    FIGURES_DIR,
    HYDRA_DIR,
    OLD_EVENTS_DIR,
    PREVIEWS_DIR,
    PROJECTOR_DIR,
    format_path,
)
from genexp.run_dir.status import RunStatus, read_status

STALE_SECONDS = 10  # age of a "running" status after which the lock file decides whether the run is alive
NON_RUN_DIRS = {CHECKPOINTS_DIR, OLD_EVENTS_DIR, PROJECTOR_DIR, FIGURES_DIR, PREVIEWS_DIR}


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as read from its directory."""

    run_dir: Path
    name: str  # unique among the compared runs
    state: str  # finished, stopped, failed, running, killed, unstarted, or damaged (an unreadable file)
    config: Mapping[str, Any]  # nested, resolved; empty if no configuration file can be read
    status: RunStatus = field(default_factory=lambda: RunStatus("waiting"))  # content of status.json
    error: str | None = None  # message of the error that ended the run

    @property
    def model_name(self) -> str:
        """Name of the technique, "?" if unknown."""
        return str(self.config.get("model", {}).get("name", "?"))

    @property
    def dataset_name(self) -> str:
        """Name of the data set, "?" if unknown."""
        return str(self.config.get("dataset", {}).get("name", "?"))

    @property
    def seed(self) -> int | None:
        """Seed of the run, None if unknown."""
        return self.config.get("seed")

    @property
    def objective(self) -> str | None:
        """Test metric that selects the best checkpoint, without the prefix "test/".

        The status has its complete name, such as "frechet_mnist-v1" for the setting "frechet".
        """
        objective = self.status.objective or self.config.get("trainer", {}).get("objective")
        return None if objective is None else str(objective).removeprefix("test/")

    @property
    def direction(self) -> str:
        """Direction in which the objective improves: "min" or "max"."""
        return str(self.config.get("trainer", {}).get("direction", "min"))

    @property
    def step(self) -> int:
        """Last step in `status.json`, 0 if there is none."""
        return self.status.step

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the complete run, None if unknown."""
        return self.status.total_steps

    @cached_property
    def latest_metrics(self) -> dict[str, float]:
        """Latest value of each test metric, or of each training metric (`train/NAME`) if there are none.

        A metric whose latest value is not finite is omitted.
        """
        test = {name: value for name, value in self.status.test.items() if value is not None}
        return test or {f"train/{name}": value for name, value in self.status.train.items() if value is not None}

    @property
    def best_value(self) -> float | None:
        """Best value of the objective, None if it was never evaluated."""
        return self.status.best.value if self.status.best else None

    @property
    def seconds(self) -> float | None:
        """Duration of the run in seconds, summed over its resumptions; None if unknown."""
        if self.status.seconds is not None:
            return self.status.seconds
        try:
            started, updated = map(datetime.fromisoformat, (self.status.started, self.status.updated))
            return (updated - started).total_seconds()
        except (TypeError, ValueError):  # not a time, or only one of them with a time zone
            return None


def find_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """Return the runs in `directories`: run directories, sweep directories or folders that contain them.

    Each run is returned once. Raises DataError for a folder that does not exist or contains no run.
    """
    run_dirs: dict[Path, Path] = {}  # resolved path → path as found
    for directory in directories:
        if not directory.is_dir():
            raise DataError(
                f"{format_path(directory)}: not a directory. Use the one of a run or sweep, or one above them."
            )
        found_dirs = list(_find_run_dirs(directory))
        if not found_dirs:
            raise DataError(
                f"{format_path(directory)}: contains no run (no config.yaml). "
                f"Use the one of a run or sweep, or one above them."
            )
        for run_dir in found_dirs:
            run_dirs.setdefault(run_dir.resolve(), run_dir)
    return [
        read_run(path, name)
        for path, name in zip(run_dirs.values(), _build_unique_names(list(run_dirs.values())), strict=True)
    ]


def read_run(run_dir: Path, name: str | None = None) -> RunRecord:
    """Return the run in `run_dir`. Raises DataError if `run_dir` is not a run directory."""
    if not _is_run_dir(run_dir):
        raise DataError(
            f"{format_path(run_dir)}: not a run directory (no config.yaml). Use the directory of a run."
        )
    name, config = name or run_dir.name, {}
    try:
        config = _read_config(run_dir)
        status = read_status(run_dir)
    except (CheckpointError, DataError) as error:
        return RunRecord(run_dir, name, "damaged", config, error=str(error))
    if status is None:
        state_if_unlocked = "killed" if (run_dir / CONFIG_FILE).is_file() else "unstarted"
        return RunRecord(run_dir, name, "running" if is_locked(run_dir) else state_if_unlocked, config)
    is_killed = status.state == "running" and _is_stale(status) and not is_locked(run_dir)
    return RunRecord(run_dir, name, "killed" if is_killed else status.state, config, status, status.error)


def flatten_config(config: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) for each leaf of nested mappings."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from flatten_config(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_run_dir(directory: Path) -> bool:
    return (directory / CONFIG_FILE).is_file() or (directory / HYDRA_DIR).is_dir()


def _find_run_dirs(directory: Path) -> Iterator[Path]:
    if _is_run_dir(directory):
        yield directory
        return
    subdirectories = [path for path in directory.iterdir() if path.is_dir() and path.name not in NON_RUN_DIRS]
    for path in sorted(subdirectories, key=_build_job_sort_key):
        if not path.name.startswith("."):
            yield from _find_run_dirs(path)


def _build_job_sort_key(path: Path) -> tuple[bool, int, str]:
    """Return a sort key that orders the jobs of a sweep by number (2 before 10), before other folders."""
    is_number = path.name.isdecimal()
    return not is_number, int(path.name) if is_number else 0, path.name


def _build_unique_names(run_dirs: Sequence[Path]) -> list[str]:
    """Return the shortest path suffixes, of equal length, that are unique."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(path_parts[-count:]) for path_parts in parts]
        if len(set(names)) == len(names):
            break
    return names


def _read_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved configuration, or the one that Hydra wrote if the run failed before."""
    if (run_dir / CONFIG_FILE).is_file():
        return read_run_config(run_dir)
    return read_hydra_config(run_dir) if (run_dir / HYDRA_DIR / CONFIG_FILE).is_file() else {}


def _is_stale(status: RunStatus) -> bool:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(status.updated)).total_seconds() > STALE_SECONDS
    except (TypeError, ValueError):
        return True
