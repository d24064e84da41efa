"""Reproduction of the results: runs of the rows, `outputs/results.json`, and the table in `outputs/README.md`.

The rows are entries of `scripts/results_table.yaml`. A run is an ordinary run of `genexp` in
`outputs/reproduce/ROW/seed-N`, so that `genexp resume=` and all commands on runs take it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from results_plot import plot_curves

from genexp.cli.common import CommandParser, build_int_type, run_command
from genexp.config import suggest_choice
from genexp.errors import ConfigError, DataError, GenexpError
from genexp.run_dir.metrics import read_metrics
from genexp.run_dir.paths import BEST_FILE, CHECKPOINTS_DIR, CONFIG_FILE, EVALUATION_FILE, STATUS_FILE
from genexp.run_dir.record import RunRecord, read_run
from genexp.run_dir.status import is_resumable

PROGRAM = "reproduce.py"
ROOT = Path(__file__).resolve().parent.parent
ROWS_FILE = Path(__file__).with_name("results_table.yaml")
OUTPUTS_DIR = ROOT / "outputs"
TABLE_PATTERN = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", flags=re.DOTALL)
# A row of the techniques in README.md, without its last cell.
TECHNIQUE_PATTERN = re.compile(
    r"^(\| \[`(\w+)`\]\(genexp/techniques/README\.md#\w+\) \| [^|]* \| )[^|]* \|$", re.MULTILINE
)
TABLE_HEADER = (
    "| row | data | metric | published | obtained | worst seed | target | minutes of one core | to the target "
    "| command | picture |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)
CURVES_FIGURE = (
    "![Fréchet distance against the minutes of one core, for techniques that compute it during training]"
    "(gallery/frechet_curves.png)"
)
UNMEASURED_HEADER = (
    "| row | data | metric | published | target | name for `reproduce.py` |\n|---|---|---|---|---|---|\n"
)


@dataclass(frozen=True)
class MetricSpec:
    """One metric of a row, which becomes one line of the table."""

    metric: str  # name of a test metric, "train/NAME" for a training metric, or a score of genexp-evaluate
    direction: str  # "min" or "max"
    published: float | None = None  # the best comparable published figure
    source: str = "–"  # of the published figure, with further published figures
    target: float | None = None
    tolerance: float = 0.0  # --check accepts this distance from the recorded values


@dataclass(frozen=True)
class TableRow:
    """One entry of results_table.yaml: a command, and the metrics of its runs that the table shows."""

    name: str
    title: str
    dataset: str
    command: str  # arguments of `genexp`, without the seed
    metrics: tuple[MetricSpec, ...]
    seeds: int | None = None  # number of seeds; None: as many as --seeds
    evaluate: str | None = None  # options of genexp-evaluate, whose scores replace the run's test metrics
    picture: str | None = None  # file in the run directory of the first seed
    comparison: str | None = None  # title of the table with one line for this row; None: the main table
    reference: str | None = None  # row of the reference preset on the same data, with the same targets
    gallery: str | None = None  # NAME of `gallery:NAME`, the trained technique of the first seed; None: not stored

    @property
    def run_root(self) -> Path:
        """Directory of the runs, one for each seed."""
        return OUTPUTS_DIR / "reproduce" / self.name

    @property
    def arguments(self) -> list[str]:
        """Arguments of `genexp`."""
        return self.command.split()


@dataclass
class Deadline:
    """Time at which the command stops its runs."""

    minutes: float | None
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the time is over, at least 0; None without a limit."""
        if self.minutes is None:
            return None
        return max(0.0, self.start + 60 * self.minutes - time.monotonic())


class StoppedError(Exception):
    """A run was stopped before its end. It can be resumed."""


def load_rows(path: Path = ROWS_FILE) -> dict[str, TableRow]:
    """Return the rows of the table by name."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = [
        TableRow(**{**entry, "metrics": tuple(MetricSpec(**spec) for spec in entry["metrics"])})
        for entry in entries
    ]
    assert len({row.name for row in rows}) == len(rows), "two rows have the same name"
    return {row.name: row for row in rows}


def run_row(row: TableRow, seeds: Sequence[int], run_root: Path, deadline: Deadline) -> None:
    """Run or resume the run of each seed in `run_root`, and evaluate it. Finished runs are kept.

    Raises DataError if a run fails, StoppedError if one is stopped.
    """
    for seed in seeds:
        run_dir = run_root / f"seed-{seed}"
        if _read_state(run_dir) != "finished":
            if is_resumable(run_dir):
                arguments = [f"resume={run_dir}"]
            else:
                shutil.rmtree(run_dir, ignore_errors=True)  # was stopped before its first checkpoint
                arguments = [*row.arguments, f"seed={seed}", f"hydra.run.dir={run_dir}"]
            print(f"{PROGRAM}: genexp {' '.join(arguments)}", flush=True)
            _run_program(["-m", "genexp.train", *arguments], deadline)
            if _read_state(run_dir) != "finished":
                raise StoppedError
        if row.evaluate is not None and not (run_dir / EVALUATION_FILE).is_file():
            _run_program(["-m", "genexp.cli.evaluate", str(run_dir), *row.evaluate.split()], deadline)


def _run_program(arguments: Sequence[str], deadline: Deadline) -> None:
    """Run Python with `arguments`. Raises StoppedError if it was stopped, DataError if it failed."""
    if deadline.seconds_left == 0:
        raise StoppedError
    is_stopped = False
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=deadline.seconds_left)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            is_stopped = True
            if isinstance(error, subprocess.TimeoutExpired):
                process.send_signal(signal.SIGINT)  # Ctrl-C reaches the run without this
            _, errors = process.communicate()
    if is_stopped or process.returncode in (130, -signal.SIGINT):
        raise StoppedError
    if process.returncode:
        raise DataError(next(reversed(errors.strip().splitlines()), f"exit code {process.returncode}"))


def _read_state(run_dir: Path) -> str:
    try:
        return read_run(run_dir).state
    except DataError:
        return "absent"


def check_data(row: TableRow) -> None:
    """Load the data set of a row. Raises DataError where its files are absent and cannot be downloaded."""
    from benchmark.compose import compose_config, load_composed_dataset  # imports torch

    load_composed_dataset(compose_config(*row.arguments))


def gather_results(row: TableRow, run_root: Path) -> list[dict[str, Any]]:
    """Return the entries of `row` in results.json, one for each metric, from the finished runs in `run_root`."""
    runs = [(int(path.name.removeprefix("seed-")), read_run(path)) for path in run_root.glob("seed-*")]
    runs = sorted((seed, run) for seed, run in runs if run.state == "finished")
    entries = []
    for spec in row.metrics:
        found = {seed: _read_score(row, run, spec.metric) for seed, run in runs}
        finished = [(seed, run) for seed, run in runs if found[seed] is not None]
        entries.append(
            {
                **build_empty_entry(row, spec),
                "values": [found[seed] for seed, _ in finished],
                "seeds": [seed for seed, _ in finished],
                "cpu_minutes": _compute_mean([(run.status.cpu_seconds or 0.0) / 60 for _, run in finished]),
                "curve": _read_curve(runs[0][1], spec) if row.comparison and runs else [],
                "minutes_to_target": [_compute_minutes_to_target(run, spec) for _, run in finished],
                "commit": _join_unique(run.status.environment.get("git_commit", "unknown") for _, run in finished),
                "machine": _join_unique(run.status.environment.get("device", "unknown") for _, run in finished),
            }
        )
    return entries


def build_empty_entry(row: TableRow, spec: MetricSpec) -> dict[str, Any]:
    """Return the entry of results.json of one metric of a row that has no run."""
    return {
        "name": row.name,
        "model": row.title,
        "dataset": row.dataset,
        "comparison": row.comparison,
        "reference": row.reference,
        "metric": spec.metric,
        "direction": spec.direction,
        "values": [],
        "seeds": [],
        "published": spec.published,
        "source": spec.source,
        "target": spec.target,
        "tolerance": spec.tolerance,
        "command": f"genexp {row.command}",
        "picture": None,
        "cpu_minutes": None,
        "curve": [],
        "minutes_to_target": [],
        "commit": None,
        "machine": None,
    }


def _read_score(row: TableRow, run: RunRecord, metric: str) -> float | None:
    """Return the metric at the end of the run, or from genexp-evaluate if the row has options for it.

    Raises ConfigError if a run does not have this metric.
    """
    if row.evaluate is None:
        split, _, name = metric.rpartition("/")
        scores = run.status.train if split == "train" else run.status.test
        if name not in scores:
            raise ConfigError(
                f"{row.name}: {run.run_dir} has no metric {metric!r}. {suggest_choice(name, list(scores))}"
            )
        return scores[name]
    path = run.run_dir / EVALUATION_FILE
    return json.loads(path.read_text(encoding="utf-8"))["metrics"].get(metric) if path.is_file() else None


def _read_curve(run: RunRecord, spec: MetricSpec) -> list[list[float]]:
    """Return [processor minutes, value] of each evaluation of a Fréchet distance; [] for other metrics.

    The time is divided among the steps in equal parts. It includes the evaluations.
    """
    curve = read_metrics(run.run_dir).get("test", {}).get(spec.metric)
    if curve is None or not spec.metric.startswith("frechet") or not run.total_steps:
        return []
    minutes_per_step = (run.status.cpu_seconds or 0.0) / 60 / run.total_steps
    points = zip(curve.steps.tolist(), curve.values.tolist(), strict=True)
    return [[round(step * minutes_per_step, 3), float(f"{value:.4g}")] for step, value in points]


def _compute_minutes_to_target(run: RunRecord, spec: MetricSpec) -> float | None:
    """Return the processor minutes until the test metric first met the target, None if it never did.

    The time is divided among the steps in equal parts.
    """
    curve = read_metrics(run.run_dir).get("test", {}).get(spec.metric)
    if curve is None or spec.target is None or not run.total_steps:
        return None
    sign = 1 if spec.direction == "max" else -1
    steps = [
        step for step, value in zip(curve.steps, curve.values, strict=True) if sign * value >= sign * spec.target
    ]
    return (run.status.cpu_seconds or 0.0) / 60 * steps[0] / run.total_steps if steps else None


def _compute_mean(values: Sequence[float]) -> float | None:
    return round(statistics.mean(values), 2) if values else None


def _join_unique(words: Iterator[str]) -> str | None:
    return ", ".join(dict.fromkeys(words)) or None


def copy_picture(row: TableRow, run_root: Path) -> str | None:
    """Copy the picture of the row's first finished run to the gallery.

    Return its path below outputs/, or None without a picture.
    """
    finished = (run_dir for run_dir in sorted(run_root.glob("seed-*")) if _read_state(run_dir) == "finished")
    source = next(finished, run_root) / (row.picture or "-")
    if not source.is_file():
        return None
    target = OUTPUTS_DIR / "gallery" / f"{row.name}{source.suffix}"
    shutil.copyfile(source, target)
    return target.relative_to(OUTPUTS_DIR).as_posix()


def write_gallery_entry(row: TableRow, run_root: Path) -> None:
    """Write configuration, status and best weights of the first seed to the gallery, if the row has a name there.

    The weights are in float16, which halves the file. `genexp-sample gallery:NAME` reads the entry.
    Raises CheckpointError.
    """
    run_dir = run_root / "seed-0"
    if row.gallery is None or _read_state(run_dir) != "finished":
        return
    from genexp.run_dir.checkpoint import load_checkpoint, save_checkpoint  # imports torch
    from genexp.runs.load import find_checkpoint

    content = load_checkpoint(find_checkpoint(run_dir, "best"))
    weights = content.get("average") or content["technique"]
    entry_dir = OUTPUTS_DIR / "gallery" / row.gallery
    half = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    save_checkpoint(entry_dir / CHECKPOINTS_DIR / BEST_FILE, {"step": content["step"], "technique": half})
    for name in (CONFIG_FILE, STATUS_FILE):
        shutil.copyfile(run_dir / name, entry_dir / name)


def load_results(rows: Mapping[str, TableRow], path: Path) -> list[dict[str, Any]]:
    """Return one entry for each metric of each row, in the order of `rows`, with the results that `path` holds.

    What results_table.yaml states, for example the published figure, is taken from `rows`. Results of another
    command are omitted.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    by_key = {(entry["name"], entry["metric"], entry["command"]): entry for entry in stored}
    results = []
    for row in rows.values():
        for spec in row.metrics:
            empty = build_empty_entry(row, spec)
            old = by_key.get((row.name, spec.metric, empty["command"]), {})
            measured = (
                *("values", "seeds", "picture", "cpu_minutes"),
                *("curve", "minutes_to_target", "commit", "machine"),
            )
            result = {**empty, **{key: old[key] for key in measured if key in old}}
            if old.get("target") != spec.target:
                result["minutes_to_target"] = []  # those to another target
            results.append(result)
    return results


def write_results(results: Sequence[Mapping[str, Any]]) -> None:
    """Write outputs/results.json, and from it the table of outputs/README.md and the figures of README.md."""
    text = json.dumps({"rows": results}, indent=1, ensure_ascii=False) + "\n"
    _replace_file(OUTPUTS_DIR / "results.json", text)
    if any(entry["curve"] for entry in results):
        plot_curves(results, OUTPUTS_DIR / "gallery" / "frechet_curves.png")
    readme = OUTPUTS_DIR / "README.md"
    table = build_table(results)
    _replace_file(readme, TABLE_PATTERN.sub(lambda match: table, readme.read_text(encoding="utf-8")))
    readme = OUTPUTS_DIR.parent / "README.md"
    if readme.is_file():
        _replace_file(readme, fill_default_scores(readme.read_text(encoding="utf-8"), results))


def fill_default_scores(text: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return README.md with the score of each technique's default run: that of the row NAME_5k or NAME_default."""

    def fill(match: re.Match[str]) -> str:
        names = (f"{match[2]}_5k", f"{match[2]}_default")
        entry = next((entry for entry in results if entry["name"] in names and entry["values"]), None)
        if entry is None:
            return f"{match[1]}not run |"
        metric = entry["metric"].rpartition("/")[2].partition("_mnist-v")[0].removesuffix("_random")
        score = _format_number(statistics.mean(entry["values"]))
        return f"{match[1]}{metric} {score}, {entry['cpu_minutes']:.2g} min |"

    return TECHNIQUE_PATTERN.sub(fill, text)


def _replace_file(path: Path, text: str) -> None:
    temporary_path = path.with_name(f"{path.name}.tmp")
    temporary_path.write_text(text, encoding="utf-8")
    temporary_path.replace(path)


def build_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown tables of the entries of results.json.

    The main table comes first, then one table for each comparison. The last one has the entries without results,
    and is collapsed.
    """
    measured = [
        _format_row(_build_cells(entry)) for entry in results if entry["values"] and not entry["comparison"]
    ]
    unmeasured = [_format_row(_build_unmeasured_cells(entry)) for entry in results if not entry["values"]]
    text = TABLE_HEADER + "".join(measured) + build_target_table(results)
    curves_comparison = next((entry["comparison"] for entry in results if entry["curve"]), None)
    for comparison in dict.fromkeys(entry["comparison"] for entry in results if entry["comparison"]):
        text += build_comparison([entry for entry in results if entry["comparison"] == comparison])
        if comparison == curves_comparison:
            text += f"\n{CURVES_FIGURE}\n"
    if unmeasured:
        text += (
            f"\n<details><summary>Not measured yet: {len(unmeasured)}</summary>\n\n"
            f"{UNMEASURED_HEADER}{''.join(unmeasured)}\n</details>\n"
        )
    return text


def build_comparison(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a title and a Markdown table with a line for each row, and a column for each metric.

    `results` are the entries of one comparison, whose rows have equal metrics. Rows without results are omitted.
    Return "" if no row has results.
    """
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for entry in results:
        rows.setdefault(entry["name"], []).append(entry)
    lines = [entries for entries in rows.values() if any(entry["values"] for entry in entries)]
    if not lines:
        return ""
    metrics = [_describe_entry(entry)[2] for entry in lines[0]]
    header = ["technique", "data", "minutes of one core", *metrics, "seeds", "command"]
    text = f"\n**{results[0]['comparison']}**\n\n{_format_row(header)}{_format_row(['---'] * len(header))}"
    for entries in lines:
        first = next(entry for entry in entries if entry["values"])
        cells = [first["model"], first["dataset"], _format_number(first["cpu_minutes"])]
        cells += [format_mean(entry["values"]) if entry["values"] else "–" for entry in entries]
        text += _format_row([*cells, str(len(first["values"])), f"`{first['command']}`"])
    return text


def build_target_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return a title and a Markdown table of the times until default settings and reference preset reach a score.

    It has a line for each entry whose row names a reference row, if both were run. Return "" if there is none.
    """
    by_key = {(entry["name"], entry["metric"]): entry for entry in results}
    text = ""
    for entry in results:
        reference = by_key.get((entry["reference"], entry["metric"]))
        if reference is None or entry["target"] is None or not (entry["values"] and reference["values"]):
            continue
        if not (entry["minutes_to_target"] and reference["minutes_to_target"]):
            continue  # run before the target was stated
        title, data, metric, _ = _describe_entry(entry)
        cells = [title, data, f"{metric} {_format_number(entry['target'])}", _format_minutes_to_target(entry)]
        text += _format_row([*cells, _format_minutes_to_target(reference), f"`{reference['command']}`"])
    if not text:
        return ""
    header = [
        "technique",
        "data",
        "score",
        "minutes, default settings",
        "minutes, reference preset",
        "reference preset",
    ]
    return f"\n**Time to a score**\n\n{_format_row(header)}{_format_row(['---'] * len(header))}{text}"


def _format_minutes_to_target(entry: Mapping[str, Any]) -> str:
    """Return the mean minutes to the target, or the minutes and final score of runs that did not reach it."""
    reached = [minutes for minutes in entry["minutes_to_target"] if minutes is not None]
    if not reached:
        return f"not reached in {entry['cpu_minutes']:.2f} (final score {format_mean(entry['values'])})"
    count = len(entry["values"])
    return f"{statistics.mean(reached):.2f}" + (f" ({len(reached)} of {count})" if len(reached) < count else "")


def _format_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _build_cells(entry: Mapping[str, Any]) -> list[str]:
    values = entry["values"]
    worst = min if entry["direction"] == "max" else max
    reached = [minutes for minutes in entry["minutes_to_target"] if minutes is not None]
    return [
        *_describe_entry(entry),
        f"{format_mean(values)} ({len(values)} {'seed' if len(values) == 1 else 'seeds'})",
        _format_number(worst(values)) if len(values) > 1 else "–",
        _format_number(entry["target"]),
        _format_number(entry["cpu_minutes"]),
        f"{statistics.mean(reached):.1f} ({len(reached)} of {len(values)})" if reached else "–",
        f"`{entry['command']}`",
        f"[picture]({entry['picture']})" if entry["picture"] else "–",
    ]


def _build_unmeasured_cells(entry: Mapping[str, Any]) -> list[str]:
    return [*_describe_entry(entry), _format_number(entry["target"]), f"`{entry['name']}`"]


def _describe_entry(entry: Mapping[str, Any]) -> list[str]:
    """Return the cells of what was to be measured: row, data, metric and published value."""
    return [
        entry["model"],
        entry["dataset"],
        f"{entry['metric']} {'↑' if entry['direction'] == 'max' else '↓'}",
        f"{_format_number(entry['published'])} ({entry['source']})" if entry["source"] != "–" else "–",
    ]


def format_mean(values: Sequence[float]) -> str:
    """Return the mean ± standard error, or the value if there is only one."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return _format_number(mean)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return f"{_format_number(mean)} ± {error:.2g}"


def _format_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def check_row(row: TableRow, results: Sequence[Mapping[str, Any]], deadline: Deadline) -> bool:
    """Run the first recorded seed of a row again. Print and return whether the scores are in the stated ranges.

    A range extends from the smallest to the largest recorded value, widened by the tolerance of the metric.
    Raises ConfigError if no run is recorded.
    """
    recorded = {entry["metric"]: entry for entry in results if entry["name"] == row.name and entry["values"]}
    if not recorded:
        raise ConfigError(f"--check={row.name}: not recorded. Run `{PROGRAM} {row.name}` first.")
    run_root = OUTPUTS_DIR / "reproduce" / f"{row.name}-check-{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    run_row(row, [next(iter(recorded.values()))["seeds"][0]], run_root, deadline)
    is_within = True
    for entry in gather_results(row, run_root):
        if entry["metric"] not in recorded:
            continue
        values = recorded[entry["metric"]]["values"]
        low, high = min(values) - entry["tolerance"], max(values) + entry["tolerance"]
        is_inside = bool(entry["values"]) and low <= entry["values"][0] <= high
        is_within &= is_inside
        obtained = _format_number(entry["values"][0]) if entry["values"] else "no value"
        verdict = "within" if is_inside else "outside"
        print(f"{row.name} {entry['metric']}: {obtained}, {verdict} {low:.4g} to {high:.4g}")
    return is_within


def reproduce(rows: Sequence[TableRow], args: argparse.Namespace, all_rows: Mapping[str, TableRow]) -> int:
    """Run `rows` and write their results after each row. Return the exit code.

    Raises ConfigError if a directory of a row exists and runs are not resumed.
    """
    deadline, exit_code = Deadline(args.minutes), 0
    for row in rows:
        if row.run_root.exists() and not args.resume:
            raise ConfigError(f"{row.run_root}: already exists. Add --resume to continue its runs, or delete it.")
    for row in rows:
        is_stopped = False
        try:
            check_data(row)
        except DataError as error:
            print(f"{PROGRAM}: {row.name} skipped: {error}", file=sys.stderr)
            continue
        try:
            run_row(row, range(row.seeds or args.seeds), row.run_root, deadline)
        except StoppedError:
            is_stopped = True
        except GenexpError as error:
            print(f"{PROGRAM}: {row.name} failed: {error}", file=sys.stderr)
            exit_code = 1
        entries = gather_results(row, row.run_root)
        if any(entry["values"] for entry in entries):
            new = {entry["metric"]: {**entry, "picture": copy_picture(row, row.run_root)} for entry in entries}
            results = load_results(all_rows, OUTPUTS_DIR / "results.json")
            write_results([new[old["metric"]] if old["name"] == row.name else old for old in results])
            write_gallery_entry(row, row.run_root)
        if is_stopped:
            names = " ".join(other.name for other in rows)
            print(
                f"{PROGRAM}: stopped in {row.name}. Resume it with: python scripts/reproduce.py {names} --resume"
            )
            return 130
    return exit_code


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = CommandParser(PROGRAM, description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name", nargs="*", metavar="NAME", help="row of results_table.yaml (default: all rows)")
    parser.add_argument(
        "--seeds", type=build_int_type(1), default=3, help="runs of a row that states no number (default: 3)"
    )
    parser.add_argument("--minutes", type=float, help="stop and save after this time")
    parser.add_argument("--resume", action="store_true", help="keep finished runs, and resume the others")
    parser.add_argument(
        "--check", metavar="NAME", help="run one seed of a row again, and compare with the recorded range"
    )
    parser.add_argument("--table", action="store_true", help="only rewrite the table, after the rows were edited")
    parser.add_argument("--list", action="store_true", help="only list the rows")
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run the command with `arguments`. Return its exit code. Raises GenexpError."""
    args = build_parser().parse_args(arguments)
    rows = load_rows()
    for name in [*args.name, *([args.check] if args.check else [])]:
        if name not in rows:
            raise ConfigError(f"{name}: unknown row. {suggest_choice(name, rows)}")
    if args.list:
        for row in rows.values():
            print(f"{row.name:32} genexp {row.command}")
        return 0
    if args.check:
        results = load_results(rows, OUTPUTS_DIR / "results.json")
        try:
            return 0 if check_row(rows[args.check], results, Deadline(args.minutes)) else 1
        except StoppedError:
            return 130
    if args.table:
        write_results(load_results(rows, OUTPUTS_DIR / "results.json"))
        return 0
    return reproduce([rows[name] for name in args.name or rows], args, rows)


def main() -> NoReturn:
    """Reproduce rows of the results table named on the command line."""
    run_command(PROGRAM, lambda: run(sys.argv[1:]))


if __name__ == "__main__":
    main()
