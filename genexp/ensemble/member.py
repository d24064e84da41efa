"""Runs as rows of one computation: what each has beside its weights, and what is done for each by itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from genexp.distributed.process_group import ProcessGroup
from genexp.runs.build import Run
from genexp.runs.run import RunContext, build_failed_outcome
from genexp.snapshot import Snapshot
from genexp.sweep.job import log_failure
from genexp.technique import Clock
from genexp.training.trainer import SnapshotBuilder, initialize_technique


@dataclass
class EnsembleMember:
    """A job whose run is built, and perhaps under way. Its folder stays claimed until `leave`."""

    job_number: int  # the job's
    context: RunContext
    exit_stack: ExitStack
    log_handlers: list[logging.Handler] = field(default_factory=lambda: list(logging.root.handlers))  # its log's

    recorders: Any = None  # once it is open
    is_finished: bool = False  # nothing is left to do after this step
    is_ending: bool = False  # it stops after this step

    @property
    def run(self) -> Run:
        return self.context.run

    def open(self) -> None:
        """Begin to write to the folder. Raises GenexpError."""
        built = self.run
        self.recorders = self.context.prepare_recorders()
        self.snapshot_builder = SnapshotBuilder(
            built.learner, built.data, built.trainer_config, built.seed, ProcessGroup()
        )
        self.recorders.open(self.context.build_info())

    def initialize(self, clock: Clock) -> None:
        """Do what comes before the first step of a fresh run."""
        built = self.run
        if self.context.start_step == 0:
            initialize_technique(built.learner, built.data.train, built.seed)
            self.recorders.record(self.snapshot_builder.build_initial(clock))

    def record(self, clock: Clock) -> None:
        """Write down where the run stands; and its end, where it is `ending`."""
        self.recorders.record(
            self.snapshot_builder.build(clock, is_finished=self.is_finished, is_ending=self.is_ending)
        )
        if self.is_ending:
            self.context.close_recorders(self.recorders, clock)

    def record_final_snapshot(self, clock: Clock) -> None:
        """Write down the end of a run that had come to it, and was killed before it could."""
        snapshot: Snapshot = self.snapshot_builder.build_final(clock)
        self.recorders.record(snapshot)
        self.context.close_recorders(self.recorders, clock)

    def close(self, error: BaseException) -> None:
        """Tell the recorders of an error that ends the run."""
        if self.recorders is not None:
            self.recorders.close(build_failed_outcome(self.recorders, error))

    def record_failure(self, error: Exception) -> None:
        """Write down that the run ends here."""
        self.close(error)
        log_failure(dict(self.context.config), self.context.run_dir, error)

    @contextmanager
    def redirect_logging(self) -> Iterator[None]:
        """Let what is logged in the block go to this run's log."""
        previous_handlers = logging.root.handlers
        logging.root.handlers = self.log_handlers
        try:
            yield
        finally:
            logging.root.handlers = previous_handlers

    def release(self) -> None:
        """Close what the run holds open."""
        self.exit_stack.close()
        for handler in self.log_handlers:
            handler.close()
