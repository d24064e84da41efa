"""Reader of `metrics.jsonl`, used by figures, reports and comparisons of runs."""

from __future__ import annotations

import itertools
import json
import math
import re
import textwrap
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from genexp.errors import DataError
from genexp.run_dir.files import open_regular_file
from genexp.run_dir.paths import METRICS_FILE, format_path

BLOCK_LINES = 1000  # lines parsed in one call: a third of the time of parsing line by line
_POSITION_KEYS = ("step", "epoch", "split")


@dataclass(frozen=True)
class LoggedCurve:
    """Logged values of one metric of one split."""

    steps: np.ndarray  # int64 (points,)
    epochs: np.ndarray  # int64 (points,)
    values: np.ndarray  # float64 (points,); NaN where the log has null


def find_metric(name: str, metrics: Iterable[str]) -> str | None:
    """Return the metric in `metrics` that `name` selects, or None.

    This is `name` itself, or the only metric that consists of `name` and a version. For example, "frechet" selects
    "frechet_mnist-v1", or "frechet_digits-5b492abb", where the version is the hash of a data set.
    """
    metrics = list(metrics)
    if name in metrics:
        return name
    versions = [metric for metric in metrics if re.fullmatch(rf"{re.escape(name)}_\w+-\w+", metric)]
    return versions[0] if len(versions) == 1 else None


def read_metrics(run_dir: Path) -> dict[str, dict[str, LoggedCurve]]:
    """Return split → metric → curve, empty without a log. An incomplete last line is ignored.

    Raises DataError for a line that is not valid JSON or not a metrics record.
    """
    splits: dict[str, dict[str, tuple[array[int], array[int], array[float]]]] = {}
    path = run_dir / METRICS_FILE
    try:
        with open_regular_file(path) as file:
            for row in _read_rows(path, file):
                _add_row(splits, row, path)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{format_path(path)}: not readable ({error.strerror}). Check its permissions.") from None
    return {
        split: {name: LoggedCurve(*(np.array(part) for part in column)) for name, column in columns.items()}
        for split, columns in splits.items()
    }


def _add_row(
    splits: dict[str, dict[str, tuple[array[int], array[int], array[float]]]], row: dict[str, Any], path: Path
) -> None:
    try:
        step, epoch, split = row["step"], row["epoch"], row["split"]
        if not isinstance(split, str):
            raise TypeError
        columns = splits.setdefault(split, {})
        for name, value in row.items():
            if name in _POSITION_KEYS:
                continue
            steps, epochs, values = columns.setdefault(name, (array("q"), array("q"), array("d")))
            values.append(math.nan if value is None else value)
            epochs.append(epoch)
            steps.append(step)
    except (KeyError, TypeError, OverflowError):
        excerpt = textwrap.shorten(repr(row)[:200], 60, placeholder=" ...")
        raise DataError(f"{format_path(path)}: not a metrics record ({excerpt}). Remove the line.") from None


def _read_rows(path: Path, file: IO[bytes]) -> Iterator[Any]:
    for block_index in itertools.count():
        lines = list(itertools.islice(file, BLOCK_LINES))
        if not lines:
            return
        if not lines[-1].endswith(b"\n"):
            lines.pop()
        try:
            yield from json.loads(b"[" + b",".join(lines) + b"]")
        except (ValueError, RecursionError):
            yield from _parse_lines(path, lines, first_number=block_index * BLOCK_LINES + 1)


def _parse_lines(path: Path, lines: Sequence[bytes], first_number: int) -> Iterator[Any]:
    for number, line in enumerate(lines, start=first_number):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):  # also bytes that are not UTF-8
            raise DataError(f"{format_path(path)}, line {number}: not JSON. Remove the line.") from None
