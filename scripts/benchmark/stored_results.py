"""Stored results of the suites, their tables in scripts/README.md, and the comparison with new results."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmark.paired_rounds import PairedComparison
from genexp.run_dir.environment import describe_environment

RESULTS_DIR = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
MAIN_README = README.parents[1] / "README.md"
TABLE_PATTERN = re.compile(r"(?<=<!-- results: )(\S+)( -->\n)(.*?)(?=<!-- /results -->)", flags=re.DOTALL)
MAX_LOSS = 0.1  # a gain that is lower than the stored one by more than this fraction is reported
QUOTES_PATTERN = re.compile(r"(?<=<!-- quoted results -->\n).*?(?=<!-- /quoted results -->)", flags=re.DOTALL)
# Results that README.md quotes: name of the stored results → work and other program of the row.
QUOTED_ROWS = {
    "command-stacked_autoencoder": ("stacked autoencoder, 5 epochs", "tutorials' loop"),
    "command-dcgan": ("DCGAN, 1 epoch", "tutorials' loop"),
    "command-kmeans": ("k-means, 60,000×784, k=10, 25 iterations", "scikit-learn, Lloyd"),
}
RIVAL_PACKAGES = ("scikit-learn",)


@dataclass(frozen=True)
class StoredResults:
    """Rows of a suite, or of a part of one, and how they were measured."""

    name: str  # suite, or suite-part
    date: str  # ISO 8601
    rounds: int
    clock: str
    machine: Mapping[str, Any]  # processor, cores, memory
    versions: Mapping[str, str]
    rows: Sequence[PairedComparison]

    @classmethod
    def describe(cls, name: str, rows: Sequence[PairedComparison], rounds: int, clock: str) -> StoredResults:
        """Return `rows`, which were measured now on this machine."""
        environment = describe_environment(torch.device("cpu"))
        versions = {key: value for key, value in environment.items() if key not in ("device", "platform")}
        return cls(
            name,
            datetime.now(UTC).date().isoformat(),
            rounds,
            clock,
            describe_machine(),
            {**versions, **{package: version(package) for package in RIVAL_PACKAGES}},
            rows,
        )

    @classmethod
    def read(cls, path: Path) -> StoredResults:
        """Return what `write` wrote."""
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = [PairedComparison(**row) for row in content.pop("rows")]
        return cls(path.stem, **content, rows=rows)

    def write(self, directory: Path) -> None:
        """Write `NAME.json`."""
        content = {
            "date": self.date,
            "rounds": self.rounds,
            "clock": self.clock,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "rows": [row.as_dict() for row in self.rows],
        }
        directory.mkdir(exist_ok=True)
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def find_losses(self, new_rows: Sequence[PairedComparison]) -> list[str]:
        """Return a line for each of `new_rows` whose gain is more than a tenth below the stored one."""
        stored = {(row.task, row.rival, row.measure): row.gains[0] for row in self.rows}
        lines = []
        for row in new_rows:
            before, now = stored.get((row.task, row.rival, row.measure)), row.gains[0]
            if before is not None and now < (1 - MAX_LOSS) * before:
                label = f"{row.task}, {row.measure}" if row.measure else row.task
                lines.append(f"{label}, against {row.rival}: {now:.2f}, stored {before:.2f}")
        return lines

    def format_tables(self) -> str:
        """Return a Markdown table with a row for each work and rival, and a column for each measure."""
        measures = list(dict.fromkeys(row.measure for row in self.rows))
        cells = {(row.task, row.rival, row.measure): _format_cell(row) for row in self.rows}
        pairs = dict.fromkeys((row.task, row.rival) for row in self.rows)
        table = [["work", "against", *(measure or "gain" for measure in measures)]]
        table += [[*pair, *(cells.get((*pair, measure), "–") for measure in measures)] for pair in pairs]
        lines = [f"| {' | '.join(line)} |" for line in table]
        lines.insert(1, "|---" * len(table[0]) + "|")
        processor = f"{self.machine['processor']}, {self.machine['cores']} cores"
        rounds = f"{self.rounds} round{'s' if self.rounds > 1 else ''}"
        packages = f"torch {self.versions['torch']}, scikit-learn {self.versions['scikit-learn']}"
        return "\n".join([*lines, "", f"{self.date}, {processor}, {rounds}, {packages}."]) + "\n"


def describe_machine() -> dict[str, Any]:
    """Return the processor, the number of cores and the memory in 10⁹ bytes."""
    name, cpu_info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if cpu_info.is_file():
        found = re.search(r"^model name\s*: (.*)$", cpu_info.read_text(), flags=re.MULTILINE)
        name = found[1] if found else name
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    return {"processor": name, "cores": os.cpu_count(), "memory_gb": round(pages / 1e9, 1)}


def update_tables(text: str) -> str:
    """Return the text of a README with the table of each stored result between its markers."""

    def build(match: re.Match[str]) -> str:
        path = RESULTS_DIR / f"{match[1]}.json"
        body = StoredResults.read(path).format_tables() if path.is_file() else "Not measured yet.\n"
        return f"{match[1]}{match[2]}\n{body}\n"

    return TABLE_PATTERN.sub(build, text)


def update_quotes(text: str) -> str:
    """Return the text of the main README with the quoted results, in wall time of the whole command."""
    lines = ["| whole command | against | speed of genexp relative to it |", "|---|---|---|"]
    for name, (task, rival) in QUOTED_ROWS.items():
        rows = StoredResults.read(RESULTS_DIR / f"{name}.json").rows
        gain = next(
            row.gains[0] for row in rows if (row.task, row.rival, row.measure) == (task, rival, "wall time")
        )
        lines.append(f"| {task} | {rival} | {gain:.2f} |")
    return QUOTES_PATTERN.sub("\n{}\n\n".format("\n".join(lines)), text)


def _format_cell(row: PairedComparison) -> str:
    """Return the gain with its range, and the median of genexp."""
    gain, low, high = row.gains
    value = f"{row.ours:,.0f}" if row.ours >= 100 else f"{row.ours:.3g}"
    return f"{gain:.2f} ({low:.2f} … {high:.2f}); {value} {row.unit}"
