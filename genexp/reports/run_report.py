"""HTML page `report.html` of one run: images, curves, scores, configuration and environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from genexp.errors import CheckpointError, DataError
from genexp.reports.config_diff import find_overridden_defaults, format_setting, get_settings
from genexp.reports.curves import build_run_charts
from genexp.reports.embedded_images import embed_run_images
from genexp.reports.html_page import TableCell, write_page
from genexp.reports.table import format_duration, format_score
from genexp.run_dir.config_file import read_yaml_file
from genexp.run_dir.metrics import read_metrics
from genexp.run_dir.paths import HYDRA_DIR, REPORT_FILE
from genexp.run_dir.record import RunRecord, read_run


def write_run_report(run_dir: Path, state: str | None = None) -> Path:
    """Write the page of the run in `run_dir` and return its path.

    `state` replaces that of the status file, in which "finished" is written after this page.
    Raises DataError if `run_dir` is not a run directory, and OSError if the page cannot be written.
    """
    run = read_run(run_dir)
    run = replace(run, state=state or run.state)
    warnings = list(run.status.warnings)
    try:
        metrics = read_metrics(run_dir)
    except DataError as error:
        metrics = {}
        warnings.append(str(error))
    images, omitted_files = embed_run_images(run_dir)
    path = run_dir / REPORT_FILE
    write_page(
        path,
        "run.html",
        build_run_charts(metrics),
        run=run,
        title=f"{run.model_name} on {run.dataset_name}",
        subtitle=str(run_dir.resolve()),
        state=run.state,
        facts=_build_facts(run),
        warnings=warnings,
        images=images,
        omitted_files=omitted_files,
        scores=_build_score_rows(run),
        configuration=group_config_entries(run),
        command=_read_command(run_dir),
        environment={
            **run.status.environment,
            **{f"{split} data": fingerprint for split, fingerprint in run.status.data.items()},
        },
    )
    return path


def group_config_entries(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """Return config group → its settings as dictionaries with "key", "value" and "default".

    "default" is None if the setting has its default. Keys outside groups belong to the group "run".
    """
    overridden_defaults = find_overridden_defaults(run)
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, value in [*get_settings(run).items(), *((key, run.config.get(key)) for key in ("tags", "notes"))]:
        group, _, name = key.partition(".")
        default = format_setting(overridden_defaults[key]) if key in overridden_defaults else None
        entry = {"key": name or key, "value": format_setting(value), "default": default}
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


def _build_score_rows(run: RunRecord) -> list[list[TableCell]]:
    """Return one table row for the last value of each metric of each split."""
    rows = []
    for split, scores in (("test", run.status.test), ("train", run.status.train)):
        for name, value in scores.items():
            mark = "objective" if split == "test" and name == run.objective else ""
            rows.append(
                [TableCell(name), TableCell(split), TableCell(format_score(value), value), TableCell(mark)]
            )
    return rows


def _read_command(run_dir: Path) -> str:
    """Return the command line that started the run, or "" if Hydra's overrides cannot be read."""
    try:
        overrides = read_yaml_file(run_dir / HYDRA_DIR / "overrides.yaml")
    except CheckpointError:
        return ""
    return " ".join(["genexp", *map(str, overrides)]) if isinstance(overrides, list) else ""
