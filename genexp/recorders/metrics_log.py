"""Recorders of all training and test metrics: JSON Lines, and a CSV table for `recorders.csv=true`."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np

from genexp.recorders import register_recorder
from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import append_file, write_file
from genexp.run_dir.paths import METRICS_FILE, METRICS_TABLE_FILE
from genexp.snapshot import RunInfo, Snapshot, iter_step_rows

CSV_COLUMNS = ("step", "split", "metric", "value")


@final
class MetricsRecorder(Recorder):
    """Recorder of `metrics.jsonl`: the training metrics of each step, and the metrics of each evaluation.

    A NaN or infinity is written as null, because JSON cannot represent it.
    """

    def open(self, run: RunInfo) -> None:
        """Create the file, or keep it if the run is resumed."""
        self._path = run.run_dir / METRICS_FILE
        self._run = run
        self._templates: dict[tuple[str, ...], str] = {}
        if not run.completed_steps:
            write_file(self._path, "")

    def record(self, snapshot: Snapshot) -> None:
        """Append the lines of a snapshot."""
        lines = self._format_train_lines(snapshot)
        if snapshot.test_metrics and not self._run.is_recorded(snapshot.clock.step):
            metrics = {
                name: value if math.isfinite(value) else None for name, value in snapshot.test_metrics.items()
            }
            clock = snapshot.clock
            lines.append(json.dumps({"step": clock.step, "epoch": clock.epoch, "split": "test", **metrics}) + "\n")
        append_file(self._path, "".join(lines))

    def _format_train_lines(self, snapshot: Snapshot) -> list[str]:
        # Shortest text that identifies the float32 value: 0.23, not 0.23000000417232513.
        texts = {
            name: np.where(np.isfinite(curve.values), curve.values.astype(str), "null").tolist()
            for name, curve in snapshot.train_curves.items()
        }
        return [
            self._get_template(names) % (step, -(-step // self._run.steps_per_epoch), *cells)
            for step, names, cells in iter_step_rows(snapshot.train_curves, texts)
        ]

    def _get_template(self, names: tuple[str, ...]) -> str:
        if names not in self._templates:
            metrics = "".join(f", {json.dumps(name)}: %s" for name in names)
            self._templates[names] = '{"step": %d, "epoch": %d, "split": "train"' + metrics + "}\n"
        return self._templates[names]


@register_recorder("csv")
class CsvRecorder(Recorder):
    """Recorder of a table with one line for each value of each metric."""

    def open(self, run: RunInfo) -> None:
        """Write the header, and the rows of the completed steps if the run is resumed."""
        self._path, self._run = run.run_dir / METRICS_TABLE_FILE, run
        rows: list[Sequence[Any]] = [CSV_COLUMNS]
        if run.completed_steps and self._path.is_file():
            _, *lines = csv.reader(self._path.read_text(encoding="utf-8").splitlines())
            rows += [row for row in lines if len(row) == len(CSV_COLUMNS) and int(row[0]) <= run.completed_steps]
        write_file(self._path, _format_rows(rows))

    def record(self, snapshot: Snapshot) -> None:
        """Append the rows of a snapshot."""
        step = snapshot.clock.step
        values = {name: curve.values.astype(str).tolist() for name, curve in snapshot.train_curves.items()}
        rows: list[Sequence[Any]] = [
            (row_step, "train", name, value)
            for row_step, names, row_values in iter_step_rows(snapshot.train_curves, values)
            for name, value in zip(names, row_values, strict=True)
        ]
        if not self._run.is_recorded(step):
            rows += [(step, "test", name, value) for name, value in snapshot.test_metrics.items()]
        append_file(self._path, _format_rows(rows))


def _format_rows(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
