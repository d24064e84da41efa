"""HTML page of a comparison of runs: tables, overlaid curves, effects of settings, thumbnails."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from genexp.recorders.curves import PALETTE
from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import build_column_labels
from genexp.reports.curves import GRAY, MAX_COLORED_GROUPS, build_sweep_charts
from genexp.reports.embedded_images import build_relative_url, find_figures
from genexp.reports.html_page import write_page
from genexp.reports.parameter_effects import build_effect_charts
from genexp.reports.run_report import group_config_entries, read_valid_metrics
from genexp.reports.table import (
    TableData,
    build_group_table,
    build_run_table,
    build_setting_cells,
    format_duration,
    format_score,
    format_sort_order,
)
from genexp.run_dir.paths import ASSETS_DIR, REPORT_FILE


def write_sweep_report(comparison: Comparison, path: Path, *, is_single_file: bool = False) -> None:
    """Write the page of `comparison` to `path`: a single file, or one that refers to files of the runs.

    Raises OSError.
    """
    results = {run: read_valid_metrics(run.run_dir) for run in comparison.runs}
    metrics = {run: found for run, (found, _) in results.items()}
    curves = build_sweep_charts(comparison, metrics)
    effects = build_effect_charts(comparison)
    columns = comparison.metrics, comparison.differing_keys
    write_page(
        path,
        "sweep.html",
        [*curves, *effects],
        None if is_single_file else path.resolve().parent / ASSETS_DIR,
        title=_build_title(comparison),
        subtitle=os.path.commonpath([run.run_dir.resolve() for run in comparison.runs]),
        state="",
        comparison=comparison,
        facts=_build_facts(comparison),
        notes=[*comparison.notes, *(message for _, messages in results.values() for message in messages)],
        warnings=_group_warnings(comparison),
        runs=_add_links(build_run_table(comparison, *columns), comparison, path),
        groups=build_group_table(comparison, *columns),
        curve_count=len(curves),
        legend=[(group.label, PALETTE[rank]) for rank, group in enumerate(comparison.groups[:MAX_COLORED_GROUPS])],
        gray=GRAY,
        effect_count=len(effects),
        x_axes={"step": 1},
        progress="",
        pictures=_build_picture_entries(comparison, None if is_single_file else path),
        common_config=_find_common_config(comparison),
        environment=_merge_environments(comparison),
    )


def _build_title(comparison: Comparison) -> str:
    tasks = dict.fromkeys(f"{run.model_name} on {run.dataset_name}" for run in comparison.runs if run.config)
    run_count = len(comparison.runs)
    task = next(iter(tasks)) if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{run_count} run{'s' if run_count > 1 else ''}: {task}" if tasks else f"{run_count} runs"


def _build_facts(comparison: Comparison) -> dict[str, str]:
    states = Counter(run.state for run in comparison.runs)
    facts = {"states": ", ".join(f"{count} {state}" for state, count in states.items())}
    if len(comparison.groups) < len(comparison.runs):
        facts["settings"] = str(len(comparison.groups))
    if comparison.objective and comparison.objective.metric in comparison.runs[0].latest_metrics:
        facts[f"best {comparison.objective.metric}"] = format_score(
            comparison.runs[0].latest_metrics[comparison.objective.metric]
        )
    seconds = [run.seconds for run in comparison.runs if run.seconds is not None]
    facts["time of all runs"] = format_duration(sum(seconds)) if seconds else ""
    facts["sorted"] = format_sort_order(comparison)
    return {name: value for name, value in facts.items() if value}


def _group_warnings(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (warning, names of at most ten runs that emitted it). Numbers in warnings are ignored."""
    groups: dict[str, tuple[str, dict[str, None]]] = {}
    for run in comparison.runs:
        for warning in run.status.warnings:
            _, names = groups.setdefault(re.sub(r"\d[\d.]*", "", warning), (warning, {}))
            names[run.name] = None
    return [
        (warning, ", ".join([*names][:10]) + (" …" if len(names) > 10 else ""))
        for warning, names in groups.values()
    ]


def _add_links(table: TableData, comparison: Comparison, page: Path) -> TableData:
    """Return the table of runs with a link from each name to the report of the run, if there is one."""
    rows = []
    for run, (name, *cells) in zip(comparison.runs, table.rows, strict=True):
        report = run.run_dir / REPORT_FILE
        link = build_relative_url(report, page.parent) if report.is_file() else None
        rows.append([replace(name, link=link), *cells])
    return replace(table, rows=rows)


def _build_picture_entries(comparison: Comparison, page: Path | None) -> dict[str, list[dict[str, Any]]]:
    """Return figure name → images of all runs with captions, the best run first."""
    keys = (*comparison.differing_keys, "seed")
    names = [label.rpartition(".")[2] for label in build_column_labels(keys).values()]
    captions = {}
    for run in comparison.runs:
        cells = build_setting_cells(run, keys)
        captions[run] = " · ".join(f"{name} {cell.text}" for name, cell in zip(names, cells, strict=True))
    return {
        figure: [
            {"url": images[run].url, "name": run.name, "caption": captions[run]}
            for run in comparison.runs
            if run in images
        ]
        for figure, images in find_figures(comparison.runs, page).items()
    }


def _find_common_config(comparison: Comparison) -> Mapping[str, list[dict[str, Any]]]:
    """Return config group → settings shared by all runs, with their defaults. Empty for several models."""
    if len({run.model_name for run in comparison.runs}) > 1:
        return {}
    groups = group_config_entries(next((run for run in comparison.runs if run.config), comparison.runs[0]))
    differing_keys = {*comparison.differing_keys, "seed"}
    return {
        group: [entry for entry in entries if entry["path"] not in differing_keys]
        for group, entries in groups.items()
    }


def _merge_environments(comparison: Comparison) -> dict[str, str]:
    """Return environment key → value. Different values are joined with " | "."""
    environments = [run.status.environment for run in comparison.runs]
    keys = dict.fromkeys(key for environment in environments for key in environment)
    return {key: " | ".join(dict.fromkeys(each[key] for each in environments if key in each)) for key in keys}
