"""Two ways to show how far a run is: a line that moves on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

WIDE = 110  # columns; on less the bar makes room for the losses
REFRESH_SECONDS = 0.5  # each drawing takes some milliseconds


@dataclass(frozen=True)
class Standing:
    """How far a run is."""

    step: int
    total_steps: int
    epoch: int
    epochs: int
    steps_per_second: float
    images_per_second: float
    train: Mapping[str, float]
    test: Mapping[str, float]
    best: str

    @property
    def speed(self) -> str:
        """Return the speed in words; nothing before there is one."""
        if not self.steps_per_second:
            return ""
        return f"{_rate(self.steps_per_second)} steps/s  {_rate(self.images_per_second)} images/s"

    @property
    def line(self) -> str:
        """Return all of it."""
        place = f"epoch {self.epoch:,}/{self.epochs:,}  step {self.step:,}/{self.total_steps:,}"
        test = f"test {numbers(self.test)}" if self.test else ""
        return "  ".join(part for part in (place, numbers(self.train), test, self.speed) if part)


class Display(Protocol):
    """Shows standings, not all of them, but always the last."""

    def show(self, standing: Standing, *, epoch_ended: bool) -> None:
        """Show a standing, unless one was shown just before."""
        ...

    def stop(self) -> None:
        """Show the last standing."""
        ...


class MovingLine:
    """A progress bar with numbers. It is redrawn when there is news, so it needs no thread."""

    def __init__(self, console: Console, start: Standing) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=24 if console.width >= WIDE else 8),
            TaskProgressColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[speed]}"),
            TextColumn(
                "{task.fields[numbers]}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
            ),
            console=console,
            auto_refresh=False,
            expand=True,
        )
        self._standing = start
        self._shown_at = time.monotonic()
        self._task = self._progress.add_task("", total=start.total_steps, completed=start.step, **_fields(start))
        self._progress.start()

    def show(self, standing: Standing, *, epoch_ended: bool) -> None:
        """Redraw the line, at most twice a second."""
        self._standing = standing
        if time.monotonic() - self._shown_at >= REFRESH_SECONDS:
            self._draw()

    def stop(self) -> None:
        """Draw the line a last time and leave it there."""
        self._draw()
        self._progress.stop()

    def _draw(self) -> None:
        standing = self._standing
        self._progress.update(self._task, completed=standing.step, refresh=True, **_fields(standing))
        self._shown_at = time.monotonic()


class PlainLines:
    """A line an epoch, at most one every `interval` seconds."""

    def __init__(self, console: Console, start: Standing, interval: float) -> None:
        self._console, self._interval = console, interval
        self._standing = self._shown = start
        self._shown_at = -math.inf

    def show(self, standing: Standing, *, epoch_ended: bool) -> None:
        """Print a line when an epoch has ended and the line before is old enough."""
        self._standing = standing
        if epoch_ended and time.monotonic() - self._shown_at >= self._interval:
            self._print()

    def stop(self) -> None:
        """Print the last line, unless it was."""
        if self._standing.step > self._shown.step:
            self._print()

    def _print(self) -> None:
        plain(self._console, self._standing.line)
        self._shown, self._shown_at = self._standing, time.monotonic()


def plain(console: Console, text: str) -> None:
    """Print text as it is: paths in brackets are no markup, and long lines stay whole for copying."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def numbers(metrics: Mapping[str, float]) -> str:
    """Return metrics in a line."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _fields(standing: Standing) -> dict[str, Any]:
    shown = "  ".join(part for part in (numbers(standing.train), standing.best) if part)
    return {"epoch": f"epoch {standing.epoch:,}/{standing.epochs:,}", "speed": standing.speed, "numbers": shown}


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
