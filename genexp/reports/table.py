"""Comparison of runs as tables for the terminal and HTML pages, CSV and JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any

from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import build_column_labels, format_setting, format_setting_short, get_settings
from genexp.reports.seed_statistics import MeanScore, SeedGroup
from genexp.run_dir.record import RunRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MAX_TERMINAL_METRICS = 5  # metric columns of a terminal table
# Readable on white and on black terminals; green, cyan and yellow are not.
STATE_STYLES = {**dict.fromkeys(("failed", "killed", "damaged"), "red"), "running": "bold", "stopped": "magenta"}


@dataclass(frozen=True)
class TableCell:
    """A table cell of an HTML page or of the terminal."""

    text: str
    sort_value: float | None = None  # number to sort by; None sorts by `text`
    link: str | None = None  # relative URL
    state: str | None = None  # state of a run, used as CSS class
    tooltip: str | None = None


@dataclass(frozen=True)
class TableData:
    """A header and the rows below it."""

    header: Sequence[str]
    rows: Sequence[Sequence[TableCell]]


def build_run_table(comparison: Comparison, metrics: Sequence[str], keys: Sequence[str]) -> TableData:
    """Return the table of all runs, with columns for the settings `keys` and for `metrics`."""
    rows = [
        [
            TableCell(run.name),
            *build_setting_cells(run, keys),
            _build_setting_cell(run.seed),
            *(_build_score_cell(value) for value in (*map(run.latest_metrics.get, metrics), run.best_value)),
            TableCell(format_duration(run.seconds), run.seconds),
            TableCell(format_state(run), state=run.state, tooltip=run.error),
        ]
        for run in comparison.runs
    ]
    return TableData(("run", *build_column_labels(keys).values(), "seed", *metrics, "best", "time", "state"), rows)


def build_group_table(comparison: Comparison, metrics: Sequence[str], keys: Sequence[str]) -> TableData:
    """Return the table of the mean scores of all seed groups, with columns like those of `build_run_table`."""
    rows = []
    for group in comparison.groups:
        means = [group.mean_score(metric) for metric in metrics]
        scores = [TableCell(format_mean(mean), mean.mean if mean else None) for mean in means]
        seeds = TableCell(format_seed_count(group), len(group.runs_by_seed))
        rows.append([*build_setting_cells(group.runs[0], keys), *scores, seeds])
    return TableData((*build_column_labels(keys).values(), *metrics, "n"), rows)


def build_setting_cells(run: RunRecord, keys: Iterable[str]) -> list[TableCell]:
    """Return a cell for each of the settings `keys`. It is empty if the run does not have the setting."""
    settings = get_settings(run)
    return [_build_setting_cell(settings[key]) if key in settings else TableCell("") for key in keys]


def _build_setting_cell(value: Any) -> TableCell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return TableCell(format_setting_short(value), value if is_number else None)


def _build_score_cell(value: float | None) -> TableCell:
    return TableCell(format_score(value), value)


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the tables of seed groups and of runs, the t-test, errors of failed runs, and notes.

    `console` is rich's global console by default.
    """
    import rich
    from rich.console import Console

    console = console or rich.get_console()
    if not console.is_terminal:
        console = Console(file=console.file, width=1000)  # columns; a file or pipe has no limit on its width
    if comparison.has_multiple_seeds:
        title = f"{_format_count(comparison.groups, 'setting')}, mean ± standard error over seeds"
        console.print(_fit_to_console(build_group_table, title, comparison, console))
    title = _format_count(comparison.runs, "run")
    console.print(_fit_to_console(build_run_table, title, comparison, console))
    lines = [comparison.t_test.text] if comparison.t_test else []
    lines += [f"{run.name} {run.state}: {run.error}" for run in comparison.failed_runs]
    for line in [*lines, *comparison.notes]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_csv(comparison: Comparison, file: IO[str]) -> None:
    """Write a header and one CSV line per run, with all metrics."""
    keys, metrics = comparison.differing_keys, comparison.metrics
    names = [*build_column_labels(keys).values(), "seed", *metrics, "best", "seconds", "step", "state", "error"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "folder", *names])
    for run in comparison.runs:
        settings = get_settings(run)
        values = [format_setting(settings[key]) if key in settings else "" for key in keys]
        scores = [*map(run.latest_metrics.get, metrics), run.best_value]
        cells = [*values, run.seed, *scores, run.seconds, run.step, run.state, run.error]
        writer.writerow([run.name, run.run_dir, *cells])


def format_json(comparison: Comparison) -> str:
    """Return the complete comparison as JSON text."""
    objective, t_test = comparison.objective, comparison.t_test
    content = {
        "objective": None if objective is None else {"metric": objective.metric, "direction": objective.direction},
        "parameters": list(comparison.differing_keys),
        "runs": [_run_to_dict(run, comparison) for run in comparison.runs],
        "groups": [_group_to_dict(group, comparison) for group in comparison.groups],
        "verdict": None if t_test is None else vars(t_test),
        "notes": list(comparison.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def format_state(run: RunRecord) -> str:
    """Return the state of a run. Unless it finished, append its last step: "killed at 1,200/6,000"."""
    if run.state == "finished" or not run.step:
        return run.state
    total = f"/{run.total_steps:,}" if run.total_steps else ""
    return f"{run.state} at {run.step:,}{total}"


def format_duration(seconds: float | None) -> str:
    """Return a duration as "12.3 s", from one minute as "0:01:00". Return "" for None."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def format_score(value: float | None) -> str:
    """Return a score with four significant digits, "" for None."""
    return "" if value is None else f"{value:.4g}"


def format_mean(mean: MeanScore | None) -> str:
    """Return "mean ± standard error", the mean alone for one seed, "" for None."""
    if mean is None:
        return ""
    return format_score(mean.mean) if mean.error is None else f"{mean.mean:.4g} ± {mean.error:.2g}"


def format_seed_count(group: SeedGroup) -> str:
    """Return the number of seeds in the mean, as "2 of 3" if some seeds have no completed run."""
    completed_count, seed_count = len(group.runs_by_seed), len({run.seed for run in group.runs})
    return str(completed_count) if completed_count == seed_count else f"{completed_count} of {seed_count}"


def format_sort_order(comparison: Comparison) -> str:
    """Return the sort order: "by loss, lowest first". Return "" without an objective."""
    objective = comparison.objective
    if objective is None:
        return ""
    return f"by {objective.metric}, {'highest' if objective.direction == 'max' else 'lowest'} first"


def _format_count(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _fit_to_console(
    build_data: Callable[[Comparison, Sequence[str], Sequence[str]], TableData],
    title: str,
    comparison: Comparison,
    console: Console,
) -> Table:
    """Return a table with as many metrics as fit the console, at most `MAX_TERMINAL_METRICS`, at least one.

    Settings are omitted too if their longest words do not fit. Columns are omitted rather than truncated: a
    truncated number would be wrong. The caption lists their names.
    """
    from rich.measure import Measurement

    title = ", ".join(filter(None, (title, format_sort_order(comparison))))
    unbounded = console.options.update(width=10_000)
    metrics, keys = comparison.metrics[:MAX_TERMINAL_METRICS], comparison.differing_keys
    table = _build_terminal_table(title, build_data(comparison, metrics, keys), metrics)
    while len(metrics) > 1 and Measurement.get(console, unbounded, table).maximum > console.width:
        metrics = metrics[:-1]
        table = _build_terminal_table(title, build_data(comparison, metrics, keys), metrics)
    while keys and Measurement.get(console, unbounded, table).minimum > console.width:
        keys = keys[:-1]
        table = _build_terminal_table(title, build_data(comparison, metrics, keys), metrics)
    omitted = {"metrics": comparison.metrics[len(metrics) :], "settings": comparison.differing_keys[len(keys) :]}
    captions = [f"other {kind}: {', '.join(names)}" for kind, names in omitted.items() if names]
    table.caption, table.caption_justify = "\n".join(captions) or None, "left"
    return table


def _build_terminal_table(title: str, data: TableData, metrics: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in data.header:
        is_number = name in (*metrics, "seed", "best", "time", "n")
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for row in data.rows:
        table.add_row(*(Text(cell.text, STATE_STYLES.get(str(cell.state), "")) for cell in row))
    return table


def _run_to_dict(run: RunRecord, comparison: Comparison) -> dict[str, Any]:
    settings = get_settings(run)
    return {
        "run": run.name,
        "folder": str(run.run_dir),
        "parameters": {key: settings[key] for key in comparison.differing_keys if key in settings},
        "seed": run.seed,
        "metrics": run.latest_metrics,
        "best": run.best_value,
        "seconds": run.seconds,
        "step": run.step,
        "state": run.state,
        "error": run.error,
    }


def _group_to_dict(group: SeedGroup, comparison: Comparison) -> dict[str, Any]:
    means = {metric: group.mean_score(metric) for metric in comparison.metrics}
    settings = get_settings(group.runs[0])
    return {
        "parameters": {key: settings[key] for key in comparison.differing_keys if key in settings},
        "runs": [run.name for run in group.runs],
        "n": len(group.runs_by_seed),
        "metrics": {metric: vars(mean) for metric, mean in means.items() if mean is not None},
    }
