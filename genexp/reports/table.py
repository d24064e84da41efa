"""A comparison as tables: on the terminal, as CSV, as JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any

from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import brief, settings, short_names, shown
from genexp.reports.seed_statistics import Group, Mean
from genexp.run_dir.record import RunRecord

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = 5  # metrics that a terminal has room for
STYLES = {"finished": "green", "failed": "red", "killed": "red", "running": "cyan", "stopped": "yellow"}


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Print the tables of groups and of runs, the verdict, and what went wrong."""
    import rich
    from rich.console import Console

    console = console or rich.get_console()
    if not console.is_terminal:
        console = Console(file=console.file, width=1000)  # a file has room for every column
    if comparison.has_seeds:
        console.print(_fitting(_groups_table, comparison, console))
    console.print(_fitting(_runs_table, comparison, console))
    lines = [comparison.verdict.text] if comparison.verdict else []
    lines += [f"{run.name} failed: {run.error}" for run in comparison.failed]
    for line in [*lines, *comparison.notes]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_csv(comparison: Comparison, file: IO[str]) -> None:
    """Write a line for each run, with all metrics."""
    parameters = short_names(comparison.parameters)
    heads = [
        "run",
        "folder",
        *parameters.values(),
        "seed",
        *comparison.metrics,
        "best",
        "seconds",
        "step",
        "state",
    ]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*heads, "error"])
    for run in comparison.runs:
        scores = [run.scores.get(name) for name in comparison.metrics]
        cells = [run.seed, *scores, run.best_value, run.seconds, run.step, run.state, run.error]
        mine = settings(run)
        exact = [shown(mine[key]) if key in mine else "" for key in comparison.parameters]
        writer.writerow([run.name, run.run_dir, *exact, *cells])


def as_json(comparison: Comparison) -> str:
    """Return all of the comparison as JSON."""
    objective, found = comparison.objective, comparison.verdict
    content = {
        "objective": None if objective is None else {"metric": objective.metric, "direction": objective.direction},
        "parameters": list(comparison.parameters),
        "runs": [_plain_run(run, comparison) for run in comparison.runs],
        "groups": [_plain_group(group, comparison) for group in comparison.groups],
        "verdict": None if found is None else vars(found),
        "notes": list(comparison.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False)


def standing(run: RunRecord) -> str:
    """Return a run's state, and how far it came where that is not the end."""
    if run.state == "finished" or not run.step:
        return run.state
    total = f"/{run.total_steps:,}" if run.total_steps else ""
    return f"{run.state} at {run.step:,}{total}"


def duration(seconds: float | None) -> str:
    """Return a time in words."""
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def number(value: float | None) -> str:
    """Return a score in four digits."""
    return "" if value is None else f"{value:.4g}"


def with_error(mean: Mean | None) -> str:
    """Return a mean ± its standard error; the mean alone of one seed."""
    if mean is None:
        return ""
    return number(mean.mean) if mean.error is None else f"{mean.mean:.4g} ± {mean.error:.2g}"


def count(group: Group) -> str:
    """Return how many seeds are counted, of how many."""
    counted, all_of_them = len(group.counted), len({run.seed for run in group.runs})
    return str(counted) if counted == all_of_them else f"{counted} of {all_of_them}"


def objective_in_words(comparison: Comparison) -> str:
    """Return what the comparison is sorted by."""
    objective = comparison.objective
    if objective is None:
        return ""
    return f"by {objective.metric}, the {'highest' if objective.direction == 'max' else 'lowest'} first"


def _fitting(
    build: Callable[[Comparison, Sequence[str]], Table], comparison: Comparison, console: Console
) -> Table:
    """Return a table with as many metrics as there is room for: a number that is cut short is none."""
    from rich.measure import Measurement

    unbounded = console.options.update(width=10_000)
    metrics = comparison.metrics[:COLUMNS]
    table = build(comparison, metrics)
    while len(metrics) > 1 and Measurement.get(console, unbounded, table).maximum > console.width:
        metrics = metrics[:-1]
        table = build(comparison, metrics)
    left_out = comparison.metrics[len(metrics) :]
    if left_out:
        table.caption = f"also measured: {', '.join(left_out)}"
        table.caption_justify = "left"
    return table


def _groups_table(comparison: Comparison, metrics: Sequence[str]) -> Table:
    from rich.markup import escape

    table = _table(f"{len(comparison.groups)} settings, mean ± standard error over seeds", comparison)
    parameters = short_names(comparison.parameters)
    for name in parameters.values():
        table.add_column(name)
    for name in (*metrics, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in comparison.groups:
        means = [with_error(group.mean(metric)) for metric in metrics]
        mine = map(escape, _settings_cells(group.runs[0], comparison.parameters))
        table.add_row(*mine, *means, count(group))
    return table


def _runs_table(comparison: Comparison, metrics: Sequence[str]) -> Table:
    from rich.markup import escape

    runs = comparison.runs
    table = _table(f"{len(runs)} run{'s' if len(runs) > 1 else ''}", comparison)
    table.add_column("run", overflow="fold")
    for name in short_names(comparison.parameters).values():
        table.add_column(name)
    for name in ("seed", *metrics, "best", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for run in runs:
        mine = [run.name, *_settings_cells(run, comparison.parameters), shown(run.seed)]
        scores = [number(value) for value in (*map(run.scores.get, metrics), run.best_value)]
        state = f"[{STYLES.get(run.state, 'dim')}]{standing(run)}[/]"
        table.add_row(*map(escape, mine), *scores, duration(run.seconds), state)
    return table


def _table(title: str, comparison: Comparison) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    words = objective_in_words(comparison)
    return Table(title=f"{title}, {words}" if words else title, title_justify="left", box=SIMPLE_HEAD)


def _settings_cells(run: RunRecord, parameters: tuple[str, ...]) -> Iterator[str]:
    mine = settings(run)
    return (brief(mine[key]) if key in mine else "" for key in parameters)


def _plain_run(run: RunRecord, comparison: Comparison) -> dict[str, Any]:
    mine = settings(run)
    return {
        "run": run.name,
        "folder": str(run.run_dir),
        "parameters": {key: mine[key] for key in comparison.parameters if key in mine},
        "seed": run.seed,
        "metrics": run.scores,
        "best": run.best_value,
        "seconds": run.seconds,
        "step": run.step,
        "state": run.state,
        "error": run.error,
    }


def _plain_group(group: Group, comparison: Comparison) -> dict[str, Any]:
    means = {metric: group.mean(metric) for metric in comparison.metrics}
    mine = settings(group.runs[0])
    return {
        "parameters": {key: mine[key] for key in comparison.parameters if key in mine},
        "runs": [run.name for run in group.runs],
        "n": len(group.counted),
        "metrics": {metric: vars(mean) for metric, mean in means.items() if mean is not None},
    }
