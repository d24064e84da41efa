"""Which jobs a sweep has: `sweep.json` in its folder, written before the first of them begins."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from genexp.errors import ConfigError
from genexp.run_dir.status import RunStatus, read_status

FILE = "sweep.json"
# Not what a job computes: how it was started, and words about it.
BESIDE = ("resume", "tags", "notes")
START = re.compile(r"\$\{\s*(now|hydra)\s*:")


def digest(config: DictConfig, but: tuple[str, ...] = ()) -> str:
    """Return a hash of what a job computes, `but` some of it. What depends on its start is left out."""
    raw = plain(config, resolve=False)
    kept = {key: _lasting(raw[key], value) for key, value in plain(config).items() if key not in BESIDE + but}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def plain(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """Return what a job is configured with, as plain values: Hydra's and the sweep's own parts are not of it."""
    own = copy.deepcopy(config)
    with open_dict(own):
        own.pop("hydra", None)
        own.pop("sweep", None)
    values = OmegaConf.to_container(own, resolve=resolve)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _lasting(raw: Any, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(raw, dict):
        return {key: _lasting(raw[key], part) for key, part in value.items()}
    return None if isinstance(raw, str) and START.search(raw) else value


@dataclass(frozen=True)
class Entry:
    """A job as the ledger has it."""

    number: int
    digest: str
    words: tuple[str, ...]  # what tells it from the others, as a user would type it
    direction: str  # of its objective: min or max

    @property
    def name(self) -> str:
        """Return the job in words."""
        return " ".join((f"#{self.number}", *self.words))


class Ledger:
    """The jobs of a sweep by number."""

    def __init__(self, folder: Path) -> None:
        """Read the ledger in `folder`, which may have none yet. Raises ConfigError where it is damaged."""
        self.folder = folder
        self._path = folder / FILE
        self._entries: dict[int, Entry] = {}
        self.halted: set[int] = set()  # jobs that are to go no further, by number: see `Halving`
        if self._path.exists():
            try:
                content = json.loads(self._path.read_text(encoding="utf-8"))
                jobs, self.halted = content["jobs"], set(content.get("halted", []))
                entries = [Entry(**{**job, "words": tuple(job["words"])}) for job in jobs]
            except (ValueError, KeyError, TypeError):
                raise ConfigError(f"{self._path} is damaged; start the sweep anew") from None
            self._entries = {entry.number: entry for entry in entries}

    @property
    def entries(self) -> list[Entry]:
        """Return all jobs."""
        return [entry for _, entry in sorted(self._entries.items())]

    def run_folder(self, entry: Entry) -> Path:
        """Return where a job runs."""
        return self.folder / str(entry.number)

    def standings(self, since: float) -> dict[Entry, RunStatus]:
        """Return where every job stands; see `read_standing`."""
        return {
            entry: read_status(self.run_folder(entry), 0.0 if entry.number in self.halted else since)
            for entry in self.entries
        }

    def note(self, wanted: Entry) -> Entry:
        """Return `wanted` with the number that its digest has here already; else its own, which must be free."""
        for entry in self.entries:
            if entry.digest == wanted.digest:
                return entry
        other = self._entries.get(wanted.number)
        if other is not None:
            before, now = " ".join(other.words), " ".join(wanted.words)
            differs = f"is {before}, not {now}" if before != now else "had other settings"
            raise ConfigError(
                f"sweep.resume={self.folder} is another sweep's: its job {wanted.number} {differs}; "
                f"give the command that it was started with"
            )
        if (self.run_folder(wanted) / "config.yaml").exists():
            raise ConfigError(f"{self.run_folder(wanted)} holds a run already; choose another hydra.sweep.dir")
        self._entries[wanted.number] = wanted
        return wanted

    def write(self) -> None:
        """Write down all jobs; to be done before they begin."""
        unfinished = self._path.with_suffix(".json.tmp")
        content = {"format": 1, "jobs": [asdict(entry) for entry in self.entries], "halted": sorted(self.halted)}
        unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        unfinished.replace(self._path)
