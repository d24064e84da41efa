"""Recorder of all training and test metrics, in JSON Lines."""

from __future__ import annotations

import json
import math
from typing import final

import numpy as np

from genexp.recorders.recorder import Recorder
from genexp.run_dir.files import append_file, write_file
from genexp.run_dir.paths import METRICS_FILE
from genexp.snapshot import RunInfo, Snapshot, iter_step_rows


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
