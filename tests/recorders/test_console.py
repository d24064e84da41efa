"""The console says what runs, how far it is, and where to look afterwards."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich
from rich.console import Console as RichConsole

from genexp.recorders.console import ConsoleRecorder
from genexp.snapshot import RunInfo, RunOutcome
from tests.support.snapshots import recording, run_info, snapshot


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what is written where no terminal is."""
    return _replace_console(monkeypatch, terminal=False)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return what is written to a terminal."""
    return _replace_console(monkeypatch, terminal=True)


@pytest.fixture(autouse=True)
def _info_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="genexp"):
        yield


def _replace_console(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> io.StringIO:
    file = io.StringIO()
    console = RichConsole(file=file, force_terminal=terminal, width=140, height=20)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    return file


def run_all(run: RunInfo, console: ConsoleRecorder, outcome: RunOutcome | None = None) -> None:
    with recording(console, run, outcome or RunOutcome("finished", 40)):
        for step in (10, 20, 30, 40):
            console.record(snapshot(step, run, test_metrics={"psnr": 14.0 - step / 10}))


def epoch_lines(screen: io.StringIO) -> list[str]:
    return [line for line in screen.getvalue().splitlines() if line.startswith("epoch")]


def test_the_first_two_lines_say_what_runs_and_where_it_goes(tmp_path: Path, screen: io.StringIO) -> None:
    run_all(run_info(tmp_path), ConsoleRecorder())
    first, second, *_ = screen.getvalue().splitlines()
    assert first == "vae on digits · cpu (2 threads) · 12,345 parameters"
    assert second == f"→ {tmp_path}"


def test_without_a_terminal_each_epoch_is_a_plain_line(tmp_path: Path, screen: io.StringIO) -> None:
    run_all(run_info(tmp_path), ConsoleRecorder(interval_seconds=0))
    lines = epoch_lines(screen)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert "step 20/40" in lines[1]
    assert "test psnr 12" in lines[1]
    assert "\x1b" not in screen.getvalue()


def test_fast_epochs_share_lines_and_the_last_is_always_there(tmp_path: Path, screen: io.StringIO) -> None:
    run_all(run_info(tmp_path), ConsoleRecorder(interval_seconds=60))
    assert [line.split("  ")[0] for line in epoch_lines(screen)] == ["epoch 1/4", "epoch 4/4"]


def test_a_run_that_stops_within_its_first_epoch_has_a_line(tmp_path: Path, screen: io.StringIO) -> None:
    run = run_info(tmp_path)
    with recording(ConsoleRecorder(), run, RunOutcome("stopped", 5)) as console:
        console.record(snapshot(5, run, block=5))
    assert len(epoch_lines(screen)) == 1


def test_the_log_has_the_beginning_every_epoch_and_the_end(
    tmp_path: Path, screen: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    run_all(run_info(tmp_path), ConsoleRecorder(interval_seconds=60))
    what, where, *epochs, end = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert what.startswith("vae on digits")
    assert str(tmp_path) in where
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert end.startswith("finished at step 40")


def test_a_warning_is_told_once(tmp_path: Path, screen: io.StringIO, caplog: pytest.LogCaptureFixture) -> None:
    run = run_info(tmp_path)
    with recording(ConsoleRecorder(), run) as console:
        for step in (10, 20):
            console.record(snapshot(step, run, warnings=("the codes collapse",)))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the codes collapse"
    ]


def test_a_terminal_shows_one_line_that_moves(
    tmp_path: Path, terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genexp.recorders.progress_bar.REFRESH_SECONDS", 0)
    run_all(run_info(tmp_path), ConsoleRecorder())
    shown = terminal.getvalue()
    assert "epoch 2/4" in shown
    assert "100%" in shown
    assert "best psnr 13" in shown
    assert "images/s" in shown
    assert shown.index("100%") < shown.index("finished at step 40")


def test_the_end_names_the_files_that_are_there(tmp_path: Path, screen: io.StringIO) -> None:
    run = run_info(tmp_path / "a run")
    for name in ("samples.gif", "metrics.jsonl", "train.log"):
        (run.run_dir / name).touch()
    (run.run_dir / "tensorboard").mkdir()
    run_all(run, ConsoleRecorder())
    text = screen.getvalue()
    assert "finished at step 40" in text
    assert "best psnr 13 at step 10" in text
    assert str(run.run_dir / "samples.gif") in text
    assert f"tensorboard --logdir '{run.run_dir}'" in text
    assert "figures" not in text


def test_a_stopped_run_says_how_to_go_on(tmp_path: Path, screen: io.StringIO) -> None:
    run_all(
        run_info(tmp_path), ConsoleRecorder(), RunOutcome("stopped", 40, resume_command="genexp resume=[there]")
    )
    assert "genexp resume=[there]" in screen.getvalue()


def test_a_failed_run_leaves_the_why_to_the_last_line_of_the_command(tmp_path: Path, screen: io.StringIO) -> None:
    with recording(
        ConsoleRecorder(), run_info(tmp_path), RunOutcome("failed", 0, error="the loss became nan at step 3")
    ):
        pass
    assert "failed at step 0" in screen.getvalue()
    assert "nan" not in screen.getvalue()
