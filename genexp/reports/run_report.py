"""`report.html` of one run: its curves, pictures and scores, and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from genexp.errors import DataError
from genexp.reports.config_diff import changed, settings, shown
from genexp.reports.curves import run_charts
from genexp.reports.embedded_images import run_pictures
from genexp.reports.html_page import Cell, write_page
from genexp.reports.table import duration, number
from genexp.run_dir.record import YAML_LOADER, RunRecord, read_run

FILE_NAME = "report.html"


def write_run_report(folder: Path) -> Path:
    """Write the page of the run in `folder`, and return where it is. Raises DataError where there is no run."""
    run = read_run(folder)
    warnings = list(run.warnings)
    try:
        metrics = run.load_metrics()
    except DataError as error:
        metrics = {}
        warnings.append(str(error))
    pictures, left_out = run_pictures(folder)
    path = folder / FILE_NAME
    write_page(
        path,
        "run.html",
        run_charts(metrics),
        run=run,
        title=f"{run.model} on {run.dataset}",
        subtitle=str(folder.resolve()),
        state=run.state,
        facts=_facts(run),
        warnings=warnings,
        pictures=pictures,
        left_out=left_out,
        scores=_scores(run),
        configuration=configuration(run),
        command=_command(folder),
        environment={**run.environment, **{f"{split} data": seen for split, seen in run.data_fingerprints.items()}},
    )
    return path


def configuration(run: RunRecord) -> dict[str, list[dict[str, Any]]]:
    """Return group → entries with key, value, and the default where it is another."""
    defaults = changed(run)
    groups: dict[str, list[dict[str, Any]]] = {}
    for key, value in [*settings(run).items(), *((key, run.config.get(key)) for key in ("tags", "notes"))]:
        group, _, name = key.partition(".")
        default = shown(defaults[key]) if key in defaults else None
        entry = {"key": name or key, "value": shown(value), "default": default}
        groups.setdefault(group if name else "run", []).append(entry)
    return groups


def _facts(run: RunRecord) -> dict[str, str]:
    """Return the numbers to see first."""
    total = f" of {run.total_steps:,}" if run.total_steps and run.state != "finished" else ""
    facts: dict[str, str] = {}
    if run.objective in run.scores:
        facts[str(run.objective)] = number(run.scores[str(run.objective)])
    if run.best_value is not None:
        facts[f"best {run.objective}"] = f"{number(run.best_value)} at step {run.status['best'].get('step', 0):,}"
    facts |= {"steps": f"{run.step:,}{total}", "time": duration(run.seconds), "seed": shown(run.seed)}
    facts["device"] = run.environment.get("device", "")
    return {name: value for name, value in facts.items() if value}


def _scores(run: RunRecord) -> list[list[Cell]]:
    """Return a row for the last value of each metric."""
    rows = []
    for split in ("test", "train"):
        for name, value in dict(run.status.get(split) or {}).items():
            mark = "objective" if split == "test" and name == run.objective else ""
            rows.append([Cell(name), Cell(split), Cell(number(value), value), Cell(mark)])
    return rows


def _command(folder: Path) -> str:
    """Return how the run was started, in words of the command line."""
    try:
        words = yaml.load((folder / ".hydra" / "overrides.yaml").read_text(encoding="utf-8"), YAML_LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    return " ".join(["genexp", *map(str, words)]) if isinstance(words, list) else ""
