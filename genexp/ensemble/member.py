"""Runs as rows of one computation: what each has beside its weights, and what is done for each by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from genexp.distributed.process_group import Team
from genexp.runs.build import Run
from genexp.runs.run import Sitting, failure
from genexp.snapshot import Snapshot
from genexp.sweep.job import note_failure
from genexp.technique import Clock
from genexp.training.trainer import Observer, begin


@dataclass
class Row:
    """A job whose run is built, and perhaps under way. Its folder stays claimed until `leave`."""

    number: int  # the job's
    sitting: Sitting
    left: ExitStack
    handlers: list[logging.Handler] = field(default_factory=lambda: list(logging.root.handlers))  # its log's

    recorders: Any = None  # once it is open
    done: bool = False  # nothing is left to do after this step
    ending: bool = False  # it stops after this step

    @property
    def built(self) -> Run:
        return self.sitting.built

    def open(self) -> None:
        """Begin to write to the folder. Raises GenexpError."""
        built = self.built
        self.recorders = self.sitting.recorders()
        self.observer = Observer(built.learner, built.material, built.trainer, built.seed, Team())
        self.recorders.open(self.sitting.describe())

    def begin(self, clock: Clock) -> None:
        """Do what comes before the first step of a fresh run."""
        built = self.built
        if self.sitting.start == 0:
            begin(built.learner, built.material.train, built.seed)
            self.recorders.record(self.observer.first(clock))

    def record(self, clock: Clock) -> None:
        """Write down where the run stands; and its end, where it is `ending`."""
        self.recorders.record(self.observer.snapshot(clock, done=self.done, ending=self.ending))
        if self.ending:
            self.sitting.conclude(self.recorders, clock)

    def look_back(self, clock: Clock) -> None:
        """Write down the end of a run that had come to it, and was killed before it could."""
        snapshot: Snapshot = self.observer.last(clock)
        self.recorders.record(snapshot)
        self.sitting.conclude(self.recorders, clock)

    def close(self, error: BaseException) -> None:
        """Tell the recorders of an error that ends the run."""
        if self.recorders is not None:
            self.recorders.close(failure(self.recorders, error))

    def fail(self, error: Exception) -> None:
        """Write down that the run ends here."""
        self.close(error)
        note_failure(dict(self.sitting.config), self.sitting.folder, error)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Let what is logged in the block go to this run's log."""
        before = logging.root.handlers
        logging.root.handlers = self.handlers
        try:
            yield
        finally:
            logging.root.handlers = before

    def leave(self) -> None:
        """Close what the run holds open."""
        self.left.close()
        for handler in self.handlers:
            handler.close()
