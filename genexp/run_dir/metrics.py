"""Reader of `metrics.jsonl`, used by figures, reports and comparisons of runs."""

from __future__ import annotations

import itertools
import json
import textwrap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genexp.errors import DataError

BLOCK_LINES = 1000  # lines parsed in one call: a third of the time of parsing line by line
_POSITION_KEYS = ("step", "epoch", "split")


@dataclass(frozen=True)
class LoggedCurve:
    """Logged values of one metric of one split."""

    steps: np.ndarray  # int64 (points,)
    epochs: np.ndarray  # int64 (points,)
    values: np.ndarray  # float64 (points,); NaN where the log has null


def read_metrics(path: Path) -> dict[str, dict[str, LoggedCurve]]:
    """Return split → metric → curve. An incomplete last line is ignored.

    Raises DataError for a line that is not valid JSON or not a metrics record.
    """
    splits: dict[str, dict[str, tuple[array[int], array[int], array[float]]]] = {}
    for row in _read_rows(path):
        try:
            step, epoch, columns = row["step"], row["epoch"], splits.setdefault(row["split"], {})
            for name, value in row.items():
                if name in _POSITION_KEYS:
                    continue
                steps, epochs, values = columns.setdefault(name, (array("q"), array("q"), array("d")))
                steps.append(step)
                epochs.append(epoch)
                values.append(float("nan") if value is None else value)
        except (KeyError, TypeError):
            excerpt = textwrap.shorten(json.dumps(row), 60, placeholder=" ...")
            raise DataError(f"{path} has a line that holds no metrics ({excerpt}); remove the line") from None
    return {
        split: {name: LoggedCurve(*(np.array(part) for part in column)) for name, column in columns.items()}
        for split, columns in splits.items()
    }


def _read_rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for block_index in itertools.count():
            lines = list(itertools.islice(file, BLOCK_LINES))
            if not lines:
                return
            if not lines[-1].endswith("\n"):
                lines.pop()
            try:
                yield from json.loads(f"[{','.join(lines)}]")
            except json.JSONDecodeError:
                yield from _parse_lines(path, lines, first_number=block_index * BLOCK_LINES + 1)


def _parse_lines(path: Path, lines: Sequence[str], first_number: int) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=first_number):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is no JSON ({error.msg}); remove the line") from None
