"""The run on the terminal: what runs, how far it is, and where its files are."""

from __future__ import annotations

import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import final

import rich

from genexp.recorders.progress_bar import Display, MovingLine, PlainLines, Standing, plain
from genexp.recorders.recorder import Recorder
from genexp.recorders.step_rows import EpochMeans
from genexp.run_dir.paths import format_command, format_path
from genexp.snapshot import RunOutcome, RunInfo, Snapshot

log = logging.getLogger("genexp")
INERTIA = 0.7  # of the shown speed, from one block to the next


@final
class Console(Recorder):
    """Shows a moving line on a terminal, and elsewhere a line an epoch, at most one every `interval` seconds.

    The log file has a line for the beginning, each epoch, each warning and the end, in either case.
    To be closed last: it names the files that are there.
    """

    def __init__(self, interval: float = 2.0) -> None:
        self._interval = interval

    def open(self, run: RunInfo) -> None:
        """Say what is run and where its files go."""
        self._run = run
        self._console = rich.get_console()
        self._means = EpochMeans(run.steps_per_epoch)
        self._begun = self._block_ended = time.monotonic()
        self._step, self._speed = run.start_step, 0.0
        self._train: dict[str, float] = {}
        self._test: dict[str, float] = {}
        self._best: tuple[float, int] | None = None
        self._warned: set[str] = set()
        device, precision = run.environment.get("device"), run.environment.get("precision", "fp32")
        how = f"{device}, {precision}" if device and precision != "fp32" else device
        facts = [f"{run.model} on {run.dataset}", how, f"{run.num_parameters:,} parameters"]
        since = f", from step {run.start_step:,}" if run.start_step else ""
        for line in (" · ".join(fact for fact in facts if fact), f"→ {format_path(run.run_dir)}{since}"):
            plain(self._console, line)
            log.info(line)
        self._display: Display
        if self._console.is_terminal:
            self._display = MovingLine(self._console, self._standing())
        else:
            self._display = PlainLines(self._console, self._standing(), self._interval)

    def record(self, snapshot: Snapshot) -> None:
        """Show where the run stands."""
        ended = self._means.add(snapshot.train)
        self._train = ended[1] if ended else self._means.means() or self._train
        self._note_speed(snapshot.clock.step)
        self._note_scores(snapshot)
        standing = self._standing()
        if ended:
            log.info(standing.line)
        for warning in snapshot.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                log.warning(warning)
        self._display.show(standing, epoch_ended=ended is not None)

    def close(self, outcome: RunOutcome) -> None:
        """Say how the run ended and where its files are; its error is the command's last line, not said here."""
        self._display.stop()
        seconds = timedelta(seconds=round(time.monotonic() - self._begun))
        best = f"; {self._best_in_words()} at step {self._best[1]:,}" if self._best else ""
        ended = f"{outcome.state} at step {outcome.step:,} after {seconds}{best}"
        log.info(ended)
        lines = [ended]
        lines += [_entry(what, where) for what, where in _places(self._run.run_dir).items()]
        if outcome.resume_command is not None:
            lines.append(_entry("to go on", outcome.resume_command))
        for line in lines:
            plain(self._console, line)

    def _note_speed(self, step: int) -> None:
        now = time.monotonic()
        if step > self._step:
            speed = (step - self._step) / max(now - self._block_ended, 1e-9)
            self._speed = INERTIA * self._speed + (1 - INERTIA) * speed if self._speed else speed
        self._step, self._block_ended = step, now

    def _note_scores(self, snapshot: Snapshot) -> None:
        self._test = dict(snapshot.test) or self._test
        value = snapshot.test.get(self._run.objective, math.nan)
        sign = 1 if self._run.direction == "max" else -1
        if math.isfinite(value) and (self._best is None or sign * value > sign * self._best[0]):
            self._best = value, snapshot.clock.step

    def _best_in_words(self) -> str:
        return f"best {self._run.objective} {self._best[0]:.4g}" if self._best else ""

    def _standing(self) -> Standing:
        run = self._run
        return Standing(
            step=self._step,
            total_steps=run.total_steps,
            epoch=-(-self._step // run.steps_per_epoch),
            epochs=-(-run.total_steps // run.steps_per_epoch),
            steps_per_second=self._speed,
            images_per_second=self._speed * run.batch_size,
            train=self._train,
            test=self._test,
            best=self._best_in_words(),
        )


def _places(folder: Path) -> dict[str, str]:
    """Return what there is to look at → where it is."""
    pictures = ", ".join(format_path(path) for path in sorted(folder.glob("*.gif")))
    files = {"report": "report.html", "figures": "figures", "metrics": "metrics.jsonl", "log": "train.log"}
    places = {"pictures": pictures} if pictures else {}
    places |= {what: format_path(folder / name) for what, name in files.items() if (folder / name).exists()}
    if (folder / "tensorboard").exists():
        places["scalars"] = format_command("tensorboard", "--logdir", format_path(folder))
    return places


def _entry(what: str, where: str) -> str:
    return f"  {what:<9} {where}"
