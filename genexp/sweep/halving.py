"""Successive halving (Jamieson & Talwalkar 2016): at rungs the weaker configurations stop, the others go on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from genexp.config import require
from genexp.errors import ConfigError
from genexp.run_dir.status import read_status
from genexp.sweep.job import Job
from genexp.sweep.manifest import digest

METRICS = "metrics.jsonl"


@dataclass
class HalvingConfig:
    """The node `sweep.halving` of conf/train.yaml."""

    factor: int | None
    epochs: int

    def __post_init__(self) -> None:
        require(self.factor is None or self.factor > 1, "factor", self.factor, "use at least 2, or null")
        require(self.epochs > 0, "epochs", self.epochs, "use at least 1")


@dataclass(frozen=True)
class Rung:
    """Where some configurations stop."""

    epoch: int
    enter: int  # configurations
    leave: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}: the best {self.leave} of {self.enter} configurations go on"


class Halving:
    """Which jobs of a sweep go on from rung to rung. The seeds of one configuration are judged together.

    Who goes on follows from what the jobs' logs say of the rung's epoch: after a kill it is the same again.
    """

    def __init__(self, settings: HalvingConfig, jobs: Sequence[Job]) -> None:
        """Plan the rungs. Raises ConfigError where jobs cannot be judged by one metric, or not at a rung."""
        self._settings = settings
        self._configurations = {job.number: digest(job.config, but=("seed",)) for job in jobs}
        self._jobs = list(jobs)
        self.rungs = list(self._plan()) if settings.factor is not None and jobs else []
        if self.rungs:
            self._refuse_what_cannot_be_judged()

    @property
    def expected(self) -> float | None:
        """Return how many whole jobs the parts of all jobs will come to; None for all of them."""
        if not self.rungs:
            return None
        seeds = len(self._jobs) / self.rungs[0].enter
        parts, before = 0.0, 0
        for rung in self.rungs:
            parts += rung.enter * (rung.epoch - before)
            before = rung.epoch
        return seeds * (parts + self.rungs[-1].leave * (self._epochs - before)) / self._epochs

    def reached(self, job: Job, rung: Rung) -> bool:
        """Return whether a job has come to a rung, and rests there or further on."""
        state = read_status(job.folder).state
        return state == "finished" or (
            state == "stopped" and self._judgement(job, rung, at_least=rung.epoch) is not None
        )

    def better(self, jobs: Sequence[Job], rung: Rung) -> list[Job]:
        """Return the jobs that go on behind a rung."""
        costs: dict[str, list[float]] = {}
        for job in jobs:
            costs.setdefault(self._configurations[job.number], []).append(self._cost(job, rung))
        means = {configuration: sum(each) / len(each) for configuration, each in costs.items()}
        kept = sorted(means, key=lambda configuration: means[configuration])[
            : rung.leave
        ]  # the first of equal ones
        return [job for job in jobs if self._configurations[job.number] in kept]

    @property
    def _epochs(self) -> int:
        return max(job.config.trainer.epochs for job in self._jobs)

    def _plan(self) -> Iterator[Rung]:
        factor = self._settings.factor
        assert factor is not None
        epoch, count = self._settings.epochs, len(set(self._configurations.values()))
        while epoch < self._epochs and count > 1:
            yield Rung(epoch, count, max(1, count // factor))
            epoch, count = epoch * factor, max(1, count // factor)

    def _refuse_what_cannot_be_judged(self) -> None:
        aims = {f"{job.config.trainer.objective} ({job.config.trainer.direction})" for job in self._jobs}
        if len(aims) > 1:
            raise ConfigError(
                f"sweep.halving judges all jobs by one metric, not by {' and '.join(sorted(aims))}; "
                f"set trainer.objective and trainer.direction"
            )
        for job in self._jobs:
            every = job.config.trainer.evaluate_every
            if every == 0 or self._settings.epochs % every:
                first = self._settings.epochs
                raise ConfigError(
                    f"sweep.halving.epochs={first} is no multiple of trainer.evaluate_every={every}: "
                    f"nothing is judged there; set one of them"
                )

    def _cost(self, job: Job, rung: Rung) -> float:
        """Return a number that is lower for a better job, and highest for one that failed."""
        value = None if read_status(job.folder).state == "failed" else self._judgement(job, rung)
        if value is None or not math.isfinite(value):
            return math.inf
        return -value if job.config.trainer.direction == "max" else value

    def _judgement(self, job: Job, rung: Rung, at_least: int = 0) -> float | None:
        """Return a job's objective as it was judged last up to a rung, or None."""
        objective = job.config.trainer.objective.removeprefix("test/")
        found = None
        for row in _test_rows(job.folder / METRICS):
            if at_least <= row["epoch"] <= rung.epoch and row.get(objective) is not None:
                found = float(row[objective])
        return found


def _test_rows(path: Path) -> Iterator[dict[str, float]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        if '"split": "test"' in line:
            try:
                yield json.loads(line)
            except ValueError:
                return  # the last line of a job that was killed
