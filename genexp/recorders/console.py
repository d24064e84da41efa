"""Recorder that prints the settings, the progress and the output files of a run."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import final

import rich
from rich.console import Console

from genexp.recorders.progress_bar import (
    LiveProgressBar,
    ProgressDisplay,
    ProgressLines,
    ProgressState,
    print_plain,
)
from genexp.recorders.recorder import Recorder
from genexp.run_dir.environment import list_plugin_options
from genexp.run_dir.paths import (
    REPORT_FILE,
    format_command,
    format_path,
)
from genexp.snapshot import RunInfo, RunOutcome, Snapshot

log = logging.getLogger("genexp")
SPEED_SMOOTHING = 0.7  # weight of the previous value in the moving average of the speed


@final
class ConsoleRecorder(Recorder):
    """Recorder that shows a progress bar on a terminal, or prints lines elsewhere.

    Elsewhere it prints at most one line per epoch, and at most one in `interval_seconds` seconds. On a terminal
    and elsewhere, the log file gets lines for the start, each epoch, each warning and the end. The recorder must
    be closed after the recorders whose files it lists.
    """

    def __init__(self, interval_seconds: float = 2.0) -> None:
        self._interval_seconds = interval_seconds

    def open(self, run: RunInfo) -> None:
        """Print the model, data set, device and run directory, and show the progress display."""
        self._run = run
        self._console = rich.get_console()
        self._start_time = self._last_record_time = time.monotonic()
        self._step, self._steps_per_second = run.completed_steps, 0.0
        self._progress = run.progress
        self._objective_values: list[float] = []
        self._train_metrics = run.progress.train_means
        device, precision = run.environment.get("device"), run.environment.get("precision", "fp32")
        device_text = f"{device}, {precision}" if device and precision != "fp32" else device
        parts = [f"{run.model_name} on {run.dataset_name}", device_text, f"{run.num_parameters:,} parameters"]
        resume_text = f", from step {run.completed_steps:,}" if run.completed_steps else ""
        for line in (" · ".join(part for part in parts if part), f"→ {format_path(run.run_dir)}{resume_text}"):
            with _mute_when_pipe_closes(self._console):
                print_plain(self._console, line)
            log.info(line)
        self._display: ProgressDisplay
        with _mute_when_pipe_closes(self._console):
            if self._console.is_terminal:
                self._display = LiveProgressBar(self._console, self._build_state())
            else:
                self._display = ProgressLines(self._console, self._build_state(), self._interval_seconds)

    def record(self, snapshot: Snapshot) -> None:
        """Update the progress display. Log ended epochs and new warnings."""
        previous_warnings, self._progress = self._progress.warnings, snapshot.progress
        self._train_metrics = dict(snapshot.epoch_means or snapshot.progress.train_means)
        self._update_speed(snapshot.clock.step)
        if self._run.objective in snapshot.test_metrics:
            self._objective_values.append(snapshot.test_metrics[self._run.objective])
        state = self._build_state()
        if snapshot.epoch_means:
            log.info(state.summary_line)
        for warning in snapshot.progress.warnings:
            if warning not in previous_warnings:
                log.warning(warning)
        with _mute_when_pipe_closes(self._console):
            self._display.show(state, is_epoch_end=bool(snapshot.epoch_means))

    def close(self, outcome: RunOutcome) -> None:
        """Print how the run ended and what to do next. Log an error, which the command prints."""
        seconds = timedelta(seconds=round(time.monotonic() - self._start_time))
        best = f"; {self._format_best()} at step {self._progress.best_step:,}" if self._progress.best_step else ""
        summary = f"{outcome.state} at step {outcome.step:,} after {seconds}{best}"
        log.info(f"{summary}: {outcome.error}" if outcome.error else summary)
        lines = [summary, *(_format_entry(*entry) for entry in self._list_next_steps(outcome).items())]
        with _mute_when_pipe_closes(self._console):
            self._display.stop()
            for line in lines:
                print_plain(self._console, line)

    def _list_next_steps(self, outcome: RunOutcome) -> dict[str, str]:
        """Return label → file or command: for looking at the run, continuing it and comparing it with others."""
        path, steps = format_path(self._run.run_dir), {}
        if (self._run.run_dir / REPORT_FILE).exists():
            steps["look"] = format_path(self._run.run_dir / REPORT_FILE)
        if outcome.resume_command is not None:
            steps["resume"] = outcome.resume_command
        if outcome.state == "finished":
            more_epochs = 2 * max(1, self._run.total_steps // self._run.steps_per_epoch)
            arguments = (*list_plugin_options(), f"resume={path}", f"trainer.epochs={more_epochs}")
            if self._run.config.get("trainer", {}).get("final_checkpoint") != "weights":
                steps["resume"] = format_command("genexp", *arguments)
            steps["compare"] = format_command("genexp-compare", format_path(self._run.run_dir.parent))
        return steps

    def _update_speed(self, step: int) -> None:
        now = time.monotonic()
        if step > self._step:
            speed = (step - self._step) / max(now - self._last_record_time, 1e-9)
            self._steps_per_second = (
                SPEED_SMOOTHING * self._steps_per_second + (1 - SPEED_SMOOTHING) * speed
                if self._steps_per_second
                else speed
            )
        self._step, self._last_record_time = step, now

    def _format_best(self) -> str:
        value = self._progress.best_value
        return "" if value is None else f"best {self._run.objective} {value:.4g}"

    def _build_state(self) -> ProgressState:
        run = self._run
        return ProgressState(
            step=self._step,
            total_steps=run.total_steps,
            epoch=-(-self._step // run.steps_per_epoch),
            total_epochs=-(-run.total_steps // run.steps_per_epoch),
            steps_per_second=self._steps_per_second,
            samples_per_second=self._steps_per_second * run.batch_size,
            train_metrics=self._train_metrics,
            test_metrics=self._progress.test_metrics,
            best_text=self._format_best(),
            objective_values=self._objective_values,
        )


@contextmanager
def _mute_when_pipe_closes(console: Console) -> Iterator[None]:
    """Print nothing more once the program that reads the output has ended. SIGPIPE stops the run."""
    try:
        yield
    except (BrokenPipeError, SystemExit):  # rich replaces the first by the second
        console.quiet = True
        with suppress(OSError, ValueError):  # not a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _format_entry(label: str, value: str) -> str:
    return f"  {label:<8} {value}"
