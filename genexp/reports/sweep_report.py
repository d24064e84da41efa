"""`report.html` of many runs: table, curves over each other, what each setting does, pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genexp.errors import DataError
from genexp.recorders.curves import PALETTE
from genexp.reports import run_report
from genexp.reports.comparison import Comparison
from genexp.reports.config_diff import brief, settings, short_names
from genexp.reports.curves import COLOURED, GREY, Metrics, sweep_charts
from genexp.reports.embedded_images import thumbnails
from genexp.reports.html_page import Cell, link, write_page
from genexp.reports.parameter_effects import effect_charts, parallel_chart
from genexp.reports.table import count, duration, number, objective_in_words, standing, with_error
from genexp.run_dir.record import RunRecord


def write_report(comparison: Comparison, path: Path) -> None:
    """Write the page of a comparison. Raises OSError."""
    metrics, notes = _metrics(comparison)
    curves = sweep_charts(comparison, metrics)
    effects = effect_charts(comparison)
    parallel = parallel_chart(comparison)
    charts = [*curves, *effects, *([parallel] if parallel else [])]
    write_page(
        path,
        "sweep.html",
        charts,
        title=_title(comparison),
        subtitle=os.path.commonpath([run.run_dir.resolve() for run in comparison.runs]),
        state="",
        comparison=comparison,
        facts=_facts(comparison),
        notes=[*comparison.notes, *notes],
        warnings=_warnings(comparison),
        heads=_heads(comparison),
        rows=[_run_row(run, comparison, path) for run in comparison.runs],
        group_heads=_group_heads(comparison),
        group_rows=[_group_row(place, comparison) for place in range(len(comparison.groups))],
        curves=len(curves),
        key=[(group.label, PALETTE[rank]) for rank, group in enumerate(comparison.groups[:COLOURED])],
        grey=GREY,
        effects=len(effects),
        parallel=parallel is not None,
        thumbnails=_thumbnails(comparison, path),
        common=_common(comparison),
        environments=_environments(comparison),
    )


def _metrics(comparison: Comparison) -> tuple[dict[RunRecord, Metrics], list[str]]:
    """Return run → its metrics, and which logs could not be read."""
    found: dict[RunRecord, Metrics] = {}
    notes = []
    for run in comparison.runs:
        try:
            found[run] = run.load_metrics()
        except DataError as error:
            found[run] = {}
            notes.append(str(error))
    return found, notes


def _title(comparison: Comparison) -> str:
    tasks = dict.fromkeys(f"{run.model} on {run.dataset}" for run in comparison.runs if run.config)
    count = len(comparison.runs)
    what = next(iter(tasks)) if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{count} run{'s' if count > 1 else ''}: {what}" if tasks else f"{count} runs"


def _facts(comparison: Comparison) -> dict[str, str]:
    states = Counter(run.state for run in comparison.runs)
    facts = {"states": ", ".join(f"{count} {state}" for state, count in states.items())}
    if len(comparison.groups) < len(comparison.runs):
        facts["settings"] = str(len(comparison.groups))
    if comparison.objective and comparison.objective.metric in comparison.runs[0].scores:
        facts[f"best {comparison.objective.metric}"] = number(
            comparison.runs[0].scores[comparison.objective.metric]
        )
    seconds = [run.seconds for run in comparison.runs if run.seconds is not None]
    facts["time of all runs"] = duration(sum(seconds)) if seconds else ""
    facts["sorted"] = objective_in_words(comparison)
    return {name: value for name, value in facts.items() if value}


def _warnings(comparison: Comparison) -> list[tuple[str, str]]:
    """Return (warning, the runs that have it)."""
    owners: dict[str, list[str]] = {}
    for run in comparison.runs:
        for warning in run.warnings:
            owners.setdefault(warning, []).append(run.name)
    return [
        (warning, ", ".join(names[:10]) + (" …" if len(names) > 10 else "")) for warning, names in owners.items()
    ]


def _heads(comparison: Comparison) -> list[str]:
    names = short_names(comparison.parameters).values()
    return ["run", *names, "seed", *comparison.metrics, "best", "time", "state"]


def _run_row(run: RunRecord, comparison: Comparison, page: Path) -> list[Cell]:
    report = run.run_dir / run_report.FILE_NAME
    name = Cell(run.name, link=link(report, page) if report.is_file() else None)
    scores = [_score(run.scores.get(metric)) for metric in comparison.metrics]
    ends = [_score(run.best_value), Cell(duration(run.seconds), run.seconds)]
    state = Cell(standing(run), state=run.state, title=run.error)
    return [name, *_setting_cells(run, comparison), _setting(run.seed), *scores, *ends, state]


def _group_heads(comparison: Comparison) -> list[str]:
    return [*short_names(comparison.parameters).values(), *comparison.metrics, "n"]


def _group_row(place: int, comparison: Comparison) -> list[Cell]:
    group = comparison.groups[place]
    means = [(group.mean(metric)) for metric in comparison.metrics]
    cells = [Cell(with_error(mean), mean.mean if mean else None) for mean in means]
    seeds = Cell(count(group), len(group.counted))
    return [*_setting_cells(group.runs[0], comparison), *cells, seeds]


def _setting_cells(run: RunRecord, comparison: Comparison) -> list[Cell]:
    mine = settings(run)
    return [_setting(mine[key]) if key in mine else Cell("") for key in comparison.parameters]


def _setting(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(brief(value), value if is_number else None)


def _score(value: float | None) -> Cell:
    return Cell(number(value), value)


def _thumbnails(comparison: Comparison, page: Path) -> dict[str, list[dict[str, Any]]]:
    """Return name of a picture → those of all runs, the best first."""
    found = thumbnails(comparison.runs)
    heads = _heads(comparison)[1 : len(comparison.parameters) + 2]
    shown_pictures: dict[str, list[dict[str, Any]]] = {}
    for name, pictures in found.items():
        for run in comparison.runs:
            if run in pictures:
                cells = [*_setting_cells(run, comparison), _setting(run.seed)]
                caption = " · ".join(
                    f"{head.rpartition('.')[2]} {cell.text}" for head, cell in zip(heads, cells, strict=True)
                )
                entry = {"source": pictures[run].source, "name": run.name, "caption": caption}
                shown_pictures.setdefault(name, []).append(entry)
    return shown_pictures


def _common(comparison: Comparison) -> Mapping[str, list[dict[str, Any]]]:
    """Return the configuration that all runs share, with what differs from the defaults."""
    apart = {*comparison.parameters, "seed"}
    whole = run_report.configuration(next((run for run in comparison.runs if run.config), comparison.runs[0]))
    same = {
        group: [entry for entry in entries if _full(group, entry["key"]) not in apart]
        for group, entries in whole.items()
    }
    return same if len({run.model for run in comparison.runs}) == 1 else {}


def _full(group: str, key: str) -> str:
    return key if group == "run" else f"{group}.{key}"


def _environments(comparison: Comparison) -> dict[str, str]:
    """Return what the runs were made with; where they differ, all of it."""
    found: dict[str, dict[str, None]] = {}
    for run in comparison.runs:
        for key, value in run.environment.items():
            found.setdefault(key, {})[value] = None
    return {key: " | ".join(values) for key, values in found.items()}
