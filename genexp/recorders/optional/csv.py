"""Recorder of a CSV table of all metrics, for `recorders.csv=true`."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from genexp.recorders import register_recorder
from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import append_file, write_file
from genexp.run_dir.paths import METRICS_TABLE_FILE
from genexp.snapshot import RunInfo, Snapshot, iter_step_rows

CSV_COLUMNS = ("step", "split", "metric", "value")


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
