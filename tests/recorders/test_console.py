"""Console output: header, epoch lines, progress bar, warnings and closing lines."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import rich
from rich.console import Console as RichConsole

from genexp.recorders.console import ConsoleRecorder
from genexp.snapshot import RunInfo, RunOutcome, RunProgress
from tests.support.snapshots import SnapshotMaker, make_run_info, make_snapshot, open_recorder


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the output of a console that is not a terminal."""
    return _replace_console(monkeypatch, is_terminal=False)


@pytest.fixture
def terminal_output(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Return the output of a console that is a terminal."""
    return _replace_console(monkeypatch, is_terminal=True)


@pytest.fixture(autouse=True)
def _log_info(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.INFO, logger="genexp"):
        yield


def _replace_console(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool) -> io.StringIO:
    file = io.StringIO()
    console = RichConsole(file=file, force_terminal=is_terminal, width=140, height=20)
    monkeypatch.setattr(rich, "get_console", lambda: console)
    return file


def record_run(run: RunInfo, console: ConsoleRecorder, outcome: RunOutcome | None = None) -> None:
    maker = SnapshotMaker(run)
    with open_recorder(console, run, outcome or RunOutcome("finished", 40)):
        for step in (10, 20, 30, 40):
            console.record(maker.make(step, test_metrics={"psnr": 14.0 - step / 10}))


def get_epoch_lines(output: io.StringIO) -> list[str]:
    return [line for line in output.getvalue().splitlines() if line.startswith("epoch")]


def test_first_two_lines_show_the_run_and_its_directory(tmp_path: Path, output: io.StringIO) -> None:
    record_run(make_run_info(tmp_path), ConsoleRecorder())
    first, second, *_ = output.getvalue().splitlines()
    assert first == "vae on digits · cpu (2 threads) · 12,345 parameters"
    assert second == f"→ {tmp_path}"


def test_each_epoch_is_a_plain_line_without_a_terminal(tmp_path: Path, output: io.StringIO) -> None:
    record_run(make_run_info(tmp_path), ConsoleRecorder(interval_seconds=0))
    lines = get_epoch_lines(output)
    assert [line.split("  ")[0] for line in lines] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert "step 20/40" in lines[1]
    assert "test psnr 12" in lines[1]
    assert "\x1b" not in output.getvalue()


def test_fast_epochs_are_throttled_but_the_last_is_printed(tmp_path: Path, output: io.StringIO) -> None:
    record_run(make_run_info(tmp_path), ConsoleRecorder(interval_seconds=60))
    assert [line.split("  ")[0] for line in get_epoch_lines(output)] == ["epoch 1/4", "epoch 4/4"]


def test_run_stopped_in_its_first_epoch_prints_one_line(tmp_path: Path, output: io.StringIO) -> None:
    run = make_run_info(tmp_path)
    with open_recorder(ConsoleRecorder(), run, RunOutcome("stopped", 5)) as console:
        console.record(make_snapshot(5, run, block_steps=5))
    assert len(get_epoch_lines(output)) == 1


def test_log_contains_start_every_epoch_and_end(
    tmp_path: Path, output: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    record_run(make_run_info(tmp_path), ConsoleRecorder(interval_seconds=60))
    what, where, *epochs, end = [r.getMessage() for r in caplog.records if r.levelno == logging.INFO]
    assert what.startswith("vae on digits")
    assert str(tmp_path) in where
    assert [line.split("  ")[0] for line in epochs] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert end.startswith("finished at step 40")


def test_repeated_warning_is_logged_once(
    tmp_path: Path, output: io.StringIO, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run_info(tmp_path)
    maker = SnapshotMaker(run)
    with open_recorder(ConsoleRecorder(), run) as console:
        for step in (10, 20):
            console.record(maker.make(step, warnings=("the codes collapse",)))
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == [
        "the codes collapse"
    ]


def test_terminal_shows_a_progress_bar(
    tmp_path: Path, terminal_output: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("genexp.recorders.progress_bar.REFRESH_SECONDS", 0)
    record_run(make_run_info(tmp_path), ConsoleRecorder())
    text = terminal_output.getvalue()
    assert "epoch 2/4" in text
    assert "100%" in text
    assert "best psnr 13" in text
    assert "samples/s" in text
    assert text.index("100%") < text.index("finished at step 40")


def test_end_message_names_the_next_steps(tmp_path: Path, output: io.StringIO) -> None:
    run = make_run_info(tmp_path / "a run")
    (run.run_dir / "report.html").touch()
    record_run(run, ConsoleRecorder())
    *_, summary, look, resume, compare = output.getvalue().splitlines()
    assert summary.startswith("finished at step 40")
    assert summary.endswith("best psnr 13 at step 10")
    assert look.split(maxsplit=1) == ["look", str(run.run_dir / "report.html")]
    assert resume.startswith("  resume ")
    assert resume.endswith(f"genexp 'resume={run.run_dir}' trainer.epochs=8")
    assert compare.startswith("  compare ")
    assert compare.endswith(f"genexp-compare {tmp_path}")


def test_end_message_names_no_missing_file(tmp_path: Path, output: io.StringIO) -> None:
    record_run(make_run_info(tmp_path), ConsoleRecorder())
    assert "  look " not in output.getvalue()


def test_stopped_run_prints_the_resume_command(tmp_path: Path, output: io.StringIO) -> None:
    record_run(
        make_run_info(tmp_path),
        ConsoleRecorder(),
        RunOutcome("stopped", 40, resume_command="genexp resume=[there]"),
    )
    assert "genexp resume=[there]" in output.getvalue()


def test_resumed_run_has_the_best_value_of_its_checkpoint(tmp_path: Path, output: io.StringIO) -> None:
    progress = RunProgress(best_value=20.0, best_step=5)
    record_run(make_run_info(tmp_path, completed_steps=10, progress=progress), ConsoleRecorder())
    assert "best psnr 20 at step 5" in output.getvalue()


def test_failed_run_does_not_print_its_error(tmp_path: Path, output: io.StringIO) -> None:
    with open_recorder(
        ConsoleRecorder(), make_run_info(tmp_path), RunOutcome("failed", 0, error="the loss became nan at step 3")
    ):
        pass
    assert "failed at step 0" in output.getvalue()
    assert "nan" not in output.getvalue()
