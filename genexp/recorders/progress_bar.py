"""Progress displays of a run: a progress bar for terminals, and plain lines for other outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.theme import Theme

MIN_WIDE_COLUMNS = 130  # characters; a narrower terminal gets a shorter bar without the speed: scores need room
SPARKLINE_WIDTH, SPARKLINE_BLOCKS = 8, "▁▂▃▄▅▆▇█"
# The default cyan, yellow and green have too little contrast on a white terminal.
TEXT_STYLES = (
    "progress.percentage",
    "progress.remaining",
    "repr.number",
    "repr.str",
    "repr.path",
    "repr.filename",
)
READABLE_THEME = Theme(dict.fromkeys(TEXT_STYLES, "default") | {"logging.level.warning": "bold"})
REFRESH_SECONDS = 0.5  # minimum between redraws, each of which takes some milliseconds


@dataclass(frozen=True)
class ProgressState:
    """Progress, speed and latest metrics of a run."""

    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    steps_per_second: float
    samples_per_second: float
    train_metrics: Mapping[str, float]  # epoch means of the training metrics
    test_metrics: Mapping[str, float]  # metrics of the latest evaluation
    best_text: str  # formatted best value of the objective; empty before the first evaluation
    objective_values: Sequence[float] = ()  # of all evaluations since the start of this process

    @property
    def speed_text(self) -> str:
        """Formatted speed; empty before it was measured."""
        if not self.steps_per_second:
            return ""
        return f"{_format_rate(self.steps_per_second)} steps/s  {_format_rate(self.samples_per_second)} samples/s"

    @property
    def summary_line(self) -> str:
        """Position, metrics and speed in one line."""
        position = f"epoch {self.epoch:,}/{self.total_epochs:,}  step {self.step:,}/{self.total_steps:,}"
        test = f"test {format_metrics(self.test_metrics)}" if self.test_metrics else ""
        return "  ".join(
            part for part in (position, format_metrics(self.train_metrics), test, self.speed_text) if part
        )


class ProgressDisplay(Protocol):
    """Display of the progress of a run. It may skip states, but not the last one."""

    def show(self, state: ProgressState, *, is_epoch_end: bool) -> None:
        """Show a state, unless another one was shown very recently."""
        ...

    def stop(self) -> None:
        """End the display."""
        ...


class LiveProgressBar:
    """Progress bar with metrics. `show` redraws it, so that it needs no thread. `stop` removes it."""

    def __init__(self, console: Console, initial_state: ProgressState) -> None:
        is_wide = console.width >= MIN_WIDE_COLUMNS
        can_draw = console.encoding.lower().startswith("utf")
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=24 if is_wide else 8),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            *([TextColumn("{task.fields[speed]}")] if is_wide else []),
            *([TextColumn("{task.fields[sparkline]}")] if can_draw else []),
            TextColumn(
                "{task.fields[numbers]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            auto_refresh=False,
            expand=True,
            transient=True,
        )
        self._state = initial_state
        self._last_draw_time = time.monotonic()
        self._task_id = self._progress.add_task(
            "", total=initial_state.total_steps, completed=initial_state.step, **_format_fields(initial_state)
        )
        console.push_theme(READABLE_THEME)
        self._progress.start()

    def show(self, state: ProgressState, *, is_epoch_end: bool) -> None:
        """Redraw the progress bar, at most twice a second."""
        self._state = state
        if time.monotonic() - self._last_draw_time >= REFRESH_SECONDS:
            self._draw()

    def stop(self) -> None:
        """Remove the progress bar from the terminal."""
        self._progress.stop()
        self._progress.console.pop_theme()

    def _draw(self) -> None:
        state = self._state
        self._progress.update(self._task_id, completed=state.step, refresh=True, **_format_fields(state))
        self._last_draw_time = time.monotonic()


class ProgressLines:
    """Printed lines, at most one per epoch and one every `interval_seconds` seconds."""

    def __init__(self, console: Console, initial_state: ProgressState, interval_seconds: float) -> None:
        self._console, self._interval_seconds = console, interval_seconds
        self._state = self._printed_state = initial_state
        self._last_print_time = -math.inf

    def show(self, state: ProgressState, *, is_epoch_end: bool) -> None:
        """Print a line if an epoch has ended and the previous line is at least `interval_seconds` seconds old."""
        self._state = state
        if is_epoch_end and time.monotonic() - self._last_print_time >= self._interval_seconds:
            self._print()

    def stop(self) -> None:
        """Print the last state, unless it was printed already."""
        if self._state.step > self._printed_state.step:
            self._print()

    def _print(self) -> None:
        print_plain(self._console, self._state.summary_line)
        self._printed_state, self._last_print_time = self._state, time.monotonic()


def print_plain(console: Console, text: str) -> None:
    """Print text without rich markup (paths may contain brackets) and without wrapping (for copying)."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def format_metrics(metrics: Mapping[str, float]) -> str:
    """Return metrics as one line of text."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def format_sparkline(values: Sequence[float]) -> str:
    """Return finite values as at most SPARKLINE_WIDTH bars, each the mean of consecutive values.

    Fewer than two values give "".
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return ""
    means = [part.mean() for part in np.array_split(np.array(finite), min(len(finite), SPARKLINE_WIDTH))]
    low, span = min(means), max(means) - min(means)
    levels = [round((mean - low) / span * (len(SPARKLINE_BLOCKS) - 1)) if span else 0 for mean in means]
    return "".join(SPARKLINE_BLOCKS[level] for level in levels)


def _format_fields(state: ProgressState) -> dict[str, Any]:
    # The best score comes first: a narrow terminal cuts the end of the line.
    metrics_text = "  ".join(part for part in (state.best_text, format_metrics(state.train_metrics)) if part)
    return {
        "epoch": f"epoch {state.epoch:,}/{state.total_epochs:,}",
        "speed": state.speed_text,
        "sparkline": format_sparkline(state.objective_values),
        "numbers": metrics_text,
    }


def _format_rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
