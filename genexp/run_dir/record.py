"""Reader of complete and incomplete run directories. A killed run leaves only some of the files."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from genexp.errors import DataError
from genexp.run_dir.files import is_locked
from genexp.run_dir.metrics import LoggedCurve, read_metrics
from genexp.run_dir.paths import (
    CHECKPOINTS_DIR,
    CONFIG_FILE,
    FIGURES_DIR,
    HYDRA_DIR,
    LOG_FILE,
    METRICS_FILE,
    STATUS_FILE,
    TENSORBOARD_DIR,
    format_path,
)

STALE_SECONDS = 10  # age of a "running" status after which the lock file decides whether the run is alive
NON_RUN_DIRS = {CHECKPOINTS_DIR, TENSORBOARD_DIR, FIGURES_DIR}
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the libyaml loader, if present, is ten times as fast
LOGGED_FAILURE_PATTERN = re.compile(r"INFO failed: (.*)")


@dataclass(frozen=True, eq=False)
class RunRecord:
    """A run as read from its directory."""

    run_dir: Path
    name: str  # unique among the compared runs
    state: str  # finished, stopped, failed, running, killed, or unstarted
    config: Mapping[str, Any]  # nested, resolved; empty if no configuration file can be read
    status: Mapping[str, Any] = field(default_factory=dict)  # content of status.json
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
        """Test metric that selects the best checkpoint, without the prefix "test/"."""
        objective = self.config.get("trainer", {}).get("objective")
        return None if objective is None else str(objective).removeprefix("test/")

    @property
    def direction(self) -> str:
        """Direction in which the objective improves: "min" or "max"."""
        return str(self.config.get("trainer", {}).get("direction", "min"))

    @property
    def step(self) -> int:
        """Last step in `status.json`, 0 if there is none."""
        return int(self.status.get("step") or 0)

    @property
    def total_steps(self) -> int | None:
        """Number of steps of the complete run, None if unknown."""
        return self.status.get("total_steps")

    @cached_property
    def latest_metrics(self) -> dict[str, float]:
        """Latest value of each test metric, or of each training metric (`train/NAME`) if there are none.

        A metric whose latest value is not finite is left out.
        """
        test = _filter_finite(self.status.get("test", {}))
        return test or {
            f"train/{name}": value for name, value in _filter_finite(self.status.get("train", {})).items()
        }

    @property
    def best_value(self) -> float | None:
        """Best value of the objective, None if it was never evaluated."""
        best = self.status.get("best")
        return best["value"] if isinstance(best, dict) else None

    @property
    def seconds(self) -> float | None:
        """Duration of the run in seconds, summed over its resumptions; None if unknown."""
        if "seconds" in self.status:
            return float(self.status["seconds"])
        try:
            started, updated = (datetime.fromisoformat(self.status[key]) for key in ("started", "updated"))
        except (KeyError, TypeError, ValueError):
            return None
        return (updated - started).total_seconds()

    @property
    def warnings(self) -> list[str]:
        """Warnings of the run."""
        return [str(warning) for warning in self.status.get("warnings", [])]

    @property
    def environment(self) -> dict[str, str]:
        """Device, versions and commit of the run."""
        return {str(key): str(value) for key, value in self.status.get("environment", {}).items()}

    @property
    def data_fingerprints(self) -> dict[str, str]:
        """Mapping from split to its size and checksum."""
        return {str(key): str(value) for key, value in self.status.get("data", {}).items()}

    def load_curves(self) -> dict[str, dict[str, LoggedCurve]]:
        """Return split → metric → curve, empty if there is no log. Raises DataError if the log is damaged."""
        path = self.run_dir / METRICS_FILE
        return read_metrics(path) if path.is_file() else {}


def find_runs(directories: Sequence[Path]) -> list[RunRecord]:
    """Return the runs in `directories`: run directories, sweep directories or folders that contain them.

    Each run is returned once. Raises DataError for a folder that does not exist or contains no run.
    """
    run_dirs: dict[Path, Path] = {}  # resolved path → path as found
    for directory in directories:
        if not directory.is_dir():
            raise DataError(
                f"{format_path(directory)} is no folder; give a run's, a sweep's, or one that holds some"
            )
        found_dirs = list(_find_run_dirs(directory))
        if not found_dirs:
            raise DataError(
                f"{format_path(directory)} holds no run (no config.yaml below it); give a run's folder, "
                f"a sweep's, or one that holds some"
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
        raise DataError(f"{format_path(run_dir)} is no run's folder (it has no config.yaml); give one that is")
    status = _read_json(run_dir / STATUS_FILE)
    config = _read_config(run_dir)
    state, error = status.get("state"), status.get("error")
    if state is None:
        error = _read_logged_error(run_dir)
        state_without_status = "killed" if (run_dir / CONFIG_FILE).is_file() else "unstarted"
        state = "failed" if error else "running" if is_locked(run_dir) else state_without_status
    elif state == "running" and _is_stale(status) and not is_locked(run_dir):
        state = "killed"
    return RunRecord(run_dir, name or run_dir.name, str(state), config, status, error)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not written yet, or damaged: `read_run` then derives the state from other files
    return content if isinstance(content, dict) else {}


def _read_config(run_dir: Path) -> dict[str, Any]:
    """Return the resolved configuration, or the one that Hydra wrote if the run failed before."""
    try:
        content = yaml.load((run_dir / CONFIG_FILE).read_text(encoding="utf-8"), YAML_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        content = _read_hydra_config(run_dir)
    if not isinstance(content, dict):
        return {}
    # In a damaged file, a config group may not be a mapping. Such a group is left out.
    groups = ("model", "dataset", "trainer", "optimizer", "device")
    return {key: value for key, value in content.items() if key not in groups or isinstance(value, dict)}


def _read_hydra_config(run_dir: Path) -> Any:
    from omegaconf import OmegaConf  # slow to import, and few runs need it
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(OmegaConf.load(run_dir / HYDRA_DIR / "config.yaml"), resolve=True)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return {}


def _read_logged_error(run_dir: Path) -> str | None:
    """Return the last logged error of a run that failed before it wrote a status."""
    try:
        lines = LOGGED_FAILURE_PATTERN.findall((run_dir / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return lines[-1] if lines else None


def _is_stale(status: Mapping[str, Any]) -> bool:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(status["updated"])).total_seconds() > STALE_SECONDS
    except (KeyError, TypeError, ValueError):
        return True


def _filter_finite(values: Any) -> dict[str, float]:
    """Return the finite numbers among `values`. A NaN is stored as null in the file."""
    if not isinstance(values, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
