"""Recorders and metrics that a configuration names: plugins, the CSV table, and default recorders switched off."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from genexp.registry import set_plugins
from tests.support.command import (
    TINY_RUN_OVERRIDES,
    CommandResult,
    format_run_dir_override,
    get_error_line,
    list_files,
    load_status,
    read_metrics_log,
    run_genexp,
)
from tests.support.plugins import write_plugin

SOURCE = """
@genexp.register_recorder("steps")
class Steps(genexp.Recorder):
    def __init__(self, file: str = "steps.txt", every: int = 1):
        self.file, self.every = file, every
    def open(self, run):
        self.path = run.run_dir / self.file
        self.path.touch()
    def record(self, snapshot):
        if snapshot.clock.step % self.every == 0:
            self.path.write_text(self.path.read_text() + f"{snapshot.clock.step}\\n")

@genexp.register_metric("mean_code")
def mean_code(technique, test_batches):
    return torch.cat([technique.encode(batch) for batch in test_batches]).abs().mean()

@genexp.register_metric("broken")
def broken(technique, test_batches):
    return torch.zeros(3)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """Return the path of a plugin with a recorder and metrics."""
    yield write_plugin(tmp_path, SOURCE)
    set_plugins([])


def run(plugin: Path, run_dir: Path, *overrides: str) -> CommandResult:
    """Run two epochs of an autoencoder."""
    command = ("--plugin", str(plugin), "model=stacked_autoencoder", *TINY_RUN_OVERRIDES, "trainer.batch_size=20")
    return run_genexp(*command, "trainer.epochs=2", *overrides, format_run_dir_override(run_dir))


def test_recorder_and_metric_of_a_plugin(plugin: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    overrides = ("recorders.steps.every=2", "trainer.metrics=[mean_code]", "trainer.objective=mean_code")
    result = run(plugin, run_dir, *overrides)
    assert result.exit_code == 0, result.stderr
    assert (run_dir / "steps.txt").read_text().splitlines()[-1] == "4"
    status = load_status(run_dir)
    assert status["test"]["mean_code"] > 0
    assert status["objective"] == "mean_code"
    assert [row["mean_code"] for row in read_metrics_log(run_dir) if row["split"] == "test"]


def test_metrics_do_not_change_training(plugin: Path, tmp_path: Path) -> None:
    logs = []
    for name, overrides in (("plain", ()), ("named", ("trainer.metrics=[mean_code]", "recorders.steps=true"))):
        assert run(plugin, tmp_path / name, *overrides).exit_code == 0
        logs.append([row for row in read_metrics_log(tmp_path / name) if row["split"] == "train"])
    assert logs[0] == logs[1]


def test_csv_table_equals_the_log_also_after_a_resume(plugin: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run(plugin, run_dir, "recorders.csv=true").exit_code == 0
    option = ("--plugin", str(plugin))
    assert run_genexp(*option, f"resume={run_dir}", "trainer.epochs=3").exit_code == 0
    with (run_dir / "metrics.csv").open() as file:
        rows = [
            (int(row["step"]), row["split"], row["metric"], float(row["value"])) for row in csv.DictReader(file)
        ]
    expected = [
        (row["step"], row["split"], name, value)
        for row in read_metrics_log(run_dir)
        for name, value in row.items()
        if name not in ("step", "epoch", "split")
    ]
    assert rows == expected


def test_default_recorders_can_be_switched_off(plugin: Path, tmp_path: Path) -> None:
    overrides = [f"recorders.{name}=false" for name in ("previews", "figures", "tensorboard", "report", "console")]
    result = run(plugin, tmp_path / "run", *overrides)
    assert result.exit_code == 0, result.stderr
    assert "epoch" not in result.stdout
    names = {name.partition("/")[0] for name in list_files(tmp_path / "run")}
    kept = {".hydra", ".lock", "checkpoints", "config.yaml", "metrics.jsonl", "plugins.json", "status.json"}
    assert names == {*kept, "train.log"}


def test_recorders_can_change_when_a_run_is_resumed(plugin: Path, tmp_path: Path) -> None:
    assert run(plugin, tmp_path / "run", "recorders.report=false").exit_code == 0
    command = ("--plugin", str(plugin), f"resume={tmp_path / 'run'}", "trainer.epochs=3")
    assert run_genexp(*command, "recorders.report=true", "recorders.steps=true").exit_code == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert (tmp_path / "run" / "steps.txt").is_file()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recorders.stpes=true", "recorders.stpes=True: unknown recorder. Did you mean steps?"),
        ("recorders.figure=false", "recorders.figure=False: unknown recorder. Did you mean figures?"),
        ("recorders.metrics=false", "recorders.metrics=False: is always written. Remove it."),
        ("recorders=3", "recorders=3: must be a mapping"),
        ("recorders=[figures]", "recorders=[figures]: wrong type. Use recorders.NAME=VALUE"),
        ("recorders.steps=3", "recorders.steps=3: must be true, false, or a mapping of its options"),
        ("recorders.report={a: 1}", "recorders.report={'a': 1}: must be true or false"),
        ("recorders.steps.evrey=3", "recorders.steps.evrey=3: unknown option. Did you mean every?"),
        ("recorders.steps.every=x", "recorders.steps.every=x: must be a value such as 1"),
        ("trainer.metrics=[absent]", "trainer.metrics=absent: unknown metric"),
        ("trainer.metrics=3", "trainer.metrics=3: must be a list of strings"),
        ("trainer.metrics=[broken]", "trainer.metrics=broken: not a number"),
    ],
)
def test_mistakes_are_one_line(override: str, message: str, plugin: Path, tmp_path: Path) -> None:
    assert message in get_error_line(run(plugin, tmp_path / "run", override), "genexp")
