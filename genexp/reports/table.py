"""Comparison of runs as terminal tables, CSV and JSON, and text formats shared with the HTML pages."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
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
        console.print(_fit_to_console(_build_group_table, comparison, console))
    console.print(_fit_to_console(_build_run_table, comparison, console))
    lines = [comparison.t_test.text] if comparison.t_test else []
    lines += [f"{run.name} {run.state}: {run.error}" for run in comparison.failed_runs]
    for line in [*lines, *comparison.notes]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def write_csv(comparison: Comparison, file: IO[str]) -> None:
    """Write a header and one CSV line per run, with all metrics."""
    column_labels = build_column_labels(comparison.differing_keys)
    header = [
        "run",
        "folder",
        *column_labels.values(),
        "seed",
        *comparison.metrics,
        "best",
        "seconds",
        "step",
        "state",
    ]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*header, "error"])
    for run in comparison.runs:
        scores = [run.latest_metrics.get(name) for name in comparison.metrics]
        cells = [run.seed, *scores, run.best_value, run.seconds, run.step, run.state, run.error]
        settings = get_settings(run)
        setting_cells = [
            format_setting(settings[key]) if key in settings else "" for key in comparison.differing_keys
        ]
        writer.writerow([run.name, run.run_dir, *setting_cells, *cells])


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


def _fit_to_console(
    build_table: Callable[[Comparison, Sequence[str], Sequence[str]], Table],
    comparison: Comparison,
    console: Console,
) -> Table:
    """Return a table with as many metrics as fit the console, at most `MAX_TERMINAL_METRICS`, at least one.

    Settings are omitted too if their longest words do not fit. Columns are omitted rather than truncated: a
    truncated number would be wrong. The caption lists their names.
    """
    from rich.measure import Measurement

    unbounded = console.options.update(width=10_000)
    metrics, keys = comparison.metrics[:MAX_TERMINAL_METRICS], comparison.differing_keys
    table = build_table(comparison, metrics, keys)
    while len(metrics) > 1 and Measurement.get(console, unbounded, table).maximum > console.width:
        metrics = metrics[:-1]
        table = build_table(comparison, metrics, keys)
    while keys and Measurement.get(console, unbounded, table).minimum > console.width:
        keys = keys[:-1]
        table = build_table(comparison, metrics, keys)
    omitted = {"metrics": comparison.metrics[len(metrics) :], "settings": comparison.differing_keys[len(keys) :]}
    table.caption = (
        "\n".join(f"other {kind}: {', '.join(names)}" for kind, names in omitted.items() if names) or None
    )
    table.caption_justify = "left"
    return table


def _build_group_table(comparison: Comparison, metrics: Sequence[str], keys: Sequence[str]) -> Table:
    from rich.markup import escape

    count = len(comparison.groups)
    count_text = "1 setting" if count == 1 else f"{count} settings"
    table = _create_table(f"{count_text}, mean ± standard error over seeds", comparison)
    for name in build_column_labels(keys).values():
        table.add_column(name)
    for name in (*metrics, "n"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in comparison.groups:
        means = [format_mean(group.mean_score(metric)) for metric in metrics]
        setting_cells = map(escape, _format_settings(group.runs[0], keys))
        table.add_row(*setting_cells, *means, format_seed_count(group))
    return table


def _build_run_table(comparison: Comparison, metrics: Sequence[str], keys: Sequence[str]) -> Table:
    from rich.markup import escape

    runs = comparison.runs
    table = _create_table(f"{len(runs)} run{'s' if len(runs) > 1 else ''}", comparison)
    table.add_column("run", overflow="fold")
    for name in build_column_labels(keys).values():
        table.add_column(name)
    for name in ("seed", *metrics, "best", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    for run in runs:
        text_cells = [run.name, *_format_settings(run, keys), format_setting(run.seed)]
        scores = [format_score(value) for value in (*map(run.latest_metrics.get, metrics), run.best_value)]
        state = f"[{STATE_STYLES.get(run.state, 'none')}]{format_state(run)}[/]"
        table.add_row(*map(escape, text_cells), *scores, format_duration(run.seconds), state)
    return table


def _create_table(title: str, comparison: Comparison) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    sort_order = format_sort_order(comparison)
    return Table(title=f"{title}, {sort_order}" if sort_order else title, title_justify="left", box=SIMPLE_HEAD)


def _format_settings(run: RunRecord, keys: Sequence[str]) -> Iterator[str]:
    settings = get_settings(run)
    return (format_setting_short(settings[key]) if key in settings else "" for key in keys)


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
