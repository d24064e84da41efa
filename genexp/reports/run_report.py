"""HTML page `report.html` of one run: images, curves, scores, configuration and environment."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from genexp.errors import CheckpointError, DataError
from genexp.reports.config_diff import find_overridden_defaults, format_setting, get_settings
from genexp.reports.curves import LoggedMetrics, build_run_charts, estimate_steps_per_epoch
from genexp.reports.embedded_images import find_run_images
from genexp.reports.html_page import render_template, write_page
from genexp.reports.table import TableCell, TableData, format_duration, format_score
from genexp.run_dir.config_file import read_yaml_file
from genexp.run_dir.files import open_regular_file
from genexp.run_dir.metrics import read_metrics
from genexp.run_dir.paths import CURVES_FIGURE, FIGURES_DIR, HYDRA_DIR, LOG_FILE, REPORT_FILE, find_assets_dir
from genexp.run_dir.record import RunRecord, read_run

MAX_LOG_BYTES = 20_000  # of the end of the log on a page


def write_run_report(run_dir: Path, state: str | None = None, *, is_single_file: bool = False) -> Path:
    """Write the page of the run in `run_dir` and return its path.

    `state` replaces that of the status file, in which "finished" is written after this page. A page that is a
    single file embeds its images and scripts; others refer to files in the run directory.
    Raises DataError if `run_dir` is not a run directory, and OSError if the page cannot be written.
    """
    run = read_run(run_dir)
    run = replace(run, state=state or run.state)
    metrics, messages = read_valid_metrics(run_dir)
    images, omitted_files = find_run_images(run_dir, is_embedded=is_single_file)
    best = run.status.best
    groups = group_config_entries(run)
    has_curves_figure = not is_single_file and (run_dir / FIGURES_DIR / CURVES_FIGURE).is_file()
    path = run_dir / REPORT_FILE
    write_page(
        path,
        "run.html",
        build_run_charts(metrics, (str(run.objective), best.step, best.value) if best else None),
        None if is_single_file else find_assets_dir(run_dir),
        run=run,
        title=f"{run.model_name} on {run.dataset_name}",
        subtitle=str(run_dir.resolve()),
        state=run.state,
        facts=_build_facts(run),
        progress=_format_progress(run),
        warnings=[*run.status.warnings, *messages],
        images=images,
        omitted_files=omitted_files,
        curves_figure=f"{FIGURES_DIR}/{CURVES_FIGURE}" if has_curves_figure else "",
        x_axes=_list_x_axes(run, estimate_steps_per_epoch(metrics)),
        scores=_build_score_table(run),
        changes=[
            {**entry, "key": entry["path"]}
            for entries in groups.values()
            for entry in entries
            if entry["default"] is not None
        ],
        configuration=groups,
        command=_read_command(run_dir),
        log=_read_log(run_dir),
        environment={
            **run.status.environment,
            **{f"{split} data": fingerprint for split, fingerprint in run.status.data.items()},
        },
    )
    return path


def read_valid_metrics(run_dir: Path) -> tuple[LoggedMetrics, list[str]]:
    """Return the metrics of a run, and a message for the user if its log is damaged.

    The metrics of a damaged log are empty.
    """
    try:
        return read_metrics(run_dir), []
    except DataError as error:
        return {}, [str(error)]


def render_run_summary(run_dir: Path) -> str:
    """Return key numbers and pictures of a run as HTML for a notebook. Raises DataError for another directory."""
    run = read_run(run_dir)
    images, _ = find_run_images(run_dir, is_embedded=True)
    title = f"{run.model_name} on {run.dataset_name}"
    facts = _build_facts(run)
    return render_template("notebook.html", title=title, state=run.state, facts=facts, images=images)


def group_config_entries(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """Return config group → its settings as dictionaries with "key", "path", "value" and "default".

    "path" is the dotted key with the group. "default" is None if the setting has its default. Keys outside groups
    belong to the group "run".
    """
    overridden_defaults = find_overridden_defaults(run)
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, value in [*get_settings(run).items(), *((key, run.config.get(key)) for key in ("tags", "notes"))]:
        group, _, name = key.partition(".")
        default = format_setting(overridden_defaults[key]) if key in overridden_defaults else None
        entry = {"key": name or key, "path": key, "value": format_setting(value), "default": default}
        groups.setdefault(group if name else "run", []).append(entry)
    return groups


def _build_facts(run: RunRecord) -> dict[str, str]:
    """Return label → text of the facts in the page header."""
    total = f" of {run.total_steps:,}" if run.total_steps and run.state != "finished" else ""
    facts: dict[str, str] = {}
    if run.objective in run.latest_metrics:
        facts[str(run.objective)] = format_score(run.latest_metrics[str(run.objective)])
    best = run.status.best
    if best is not None:
        facts[f"best {run.objective}"] = f"{format_score(best.value)} at step {best.step:,}"
    facts |= {
        "steps": f"{run.step:,}{total}",
        "time": format_duration(run.seconds),
        "seed": format_setting(run.seed),
    }
    facts["device"] = run.status.environment.get("device", "")
    return {name: value for name, value in facts.items() if value}


def _format_progress(run: RunRecord) -> str:
    """Return how far a run is, and the time that it still takes at its mean speed; "" if it does not run."""
    if run.state != "running" or not run.total_steps:
        return ""
    progress = f"step {run.step:,} of {run.total_steps:,}, {run.step / run.total_steps:.0%}"
    if run.step and run.seconds:
        remaining = run.seconds * (run.total_steps - run.step) / run.step
        progress += f", about {format_duration(remaining)} left"
    return f"{progress}; page of {datetime.now():%H:%M:%S}"


def _list_x_axes(run: RunRecord, steps_per_epoch: int) -> dict[str, float]:
    """Return title → factor from steps, for the horizontal axes of curves. Time is that of the mean speed."""
    axes = {"step": 1.0, "epoch": 1 / steps_per_epoch}
    if run.step and run.seconds:
        axes["minutes"] = run.seconds / run.step / 60
    return axes


def _build_score_table(run: RunRecord) -> TableData:
    """Return the table of the last value of each metric of each split."""
    rows = []
    for split, scores in (("test", run.status.test), ("train", run.status.train)):
        for name, value in scores.items():
            role = "test, objective" if split == "test" and name == run.objective else split
            rows.append([TableCell(name), TableCell(role), TableCell(format_score(value), value)])
    return TableData(("metric", "split", "last value"), rows)


def _read_command(run_dir: Path) -> str:
    """Return the command line that started the run, or "" if Hydra's overrides cannot be read."""
    try:
        overrides = read_yaml_file(run_dir / HYDRA_DIR / "overrides.yaml")
    except CheckpointError:
        return ""
    return " ".join(["genexp", *map(str, overrides)]) if isinstance(overrides, list) else ""


def _read_log(run_dir: Path) -> str:
    """Return the end of the run's log, or "" if it cannot be read."""
    try:
        with open_regular_file(run_dir / LOG_FILE) as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_LOG_BYTES))
            return file.read().decode(errors="replace")
    except OSError:
        return ""
