"""One run of an ensemble, with its own recorders, log and run directory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from genexp.distributed.process_group import ProcessGroup
from genexp.run_dir.files import read_time
from genexp.runs.build import Run
from genexp.runs.run import RunContext
from genexp.sweep.job import log_and_record_failure
from genexp.technique import Clock
from genexp.training.trainer import SnapshotBuilder, initialize_technique


@dataclass
class EnsembleMember:
    """A job whose run has been built. Its run directory stays locked until `release`."""

    job_number: int  # number of the job in its sweep
    context: RunContext
    exit_stack: ExitStack  # closes `context`
    # When a member is created, the root logger has the handlers that Hydra installed for its job.
    log_handlers: list[logging.Handler] = field(default_factory=lambda: list(logging.root.handlers))

    recorders: Any = None  # a RecorderGroup after `open`
    is_finished: bool = False  # True: the run is complete after this step
    is_ending: bool = False  # True: the run is complete or interrupted after this step

    @property
    def run(self) -> Run:
        return self.context.run

    def open(self) -> None:
        """Prepare the run directory and open the recorders. Raises GenexpError."""
        run = self.run
        self.recorders = self.context.prepare_recorders()
        self.snapshot_builder = SnapshotBuilder(
            run.learner,
            run.data,
            run.config.trainer,
            run.config.seed,
            ProcessGroup(),
            self.context.completed_steps,
            self.context.progress,
            read_time,
        )
        self.recorders.open(self.context.build_info())

    def initialize(self, clock: Clock) -> None:
        """Initialize the technique of a fresh run and record its first snapshot. Do nothing for a resumed run."""
        run = self.run
        if self.context.completed_steps == 0:
            initialize_technique(run.learner, run.data.train_batches, run.config.seed)
            self.recorders.record(self.snapshot_builder.build_initial(clock))

    def record(self, clock: Clock) -> None:
        """Record a snapshot at `clock`. Close the recorders if the run `is_ending`."""
        self.recorders.record(
            self.snapshot_builder.build(clock, is_complete=self.is_finished, is_ending=self.is_ending)
        )
        if self.is_ending:
            self.context.close_recorders(self.recorders, self.snapshot_builder.build_result(clock))

    def record_final_snapshot(self, clock: Clock) -> None:
        """Record the final snapshot of a run that needs no further step, and close its recorders."""
        self.recorders.record(self.snapshot_builder.build_final(clock, is_complete=self.is_finished))
        self.context.close_recorders(self.recorders, self.snapshot_builder.build_result(clock))

    def close_with_error(self, error: BaseException) -> None:
        """Close the recorders with the error that ended the run."""
        if self.recorders is not None:
            self.recorders.close_failed(error)

    def record_failure(self, error: Exception) -> None:
        """Close the recorders and write the error to the log and the run directory."""
        self.close_with_error(error)
        log_and_record_failure(self.run.config.values, self.context.run_dir, error)

    @contextmanager
    def redirect_logging(self) -> Iterator[None]:
        """Send log records to this run's log while the block runs."""
        previous_handlers = logging.root.handlers
        logging.root.handlers = self.log_handlers
        try:
            yield
        finally:
            logging.root.handlers = previous_handlers

    def release(self) -> None:
        """Close the run context, which unlocks the run directory, and the log handlers."""
        self.exit_stack.close()
        for handler in self.log_handlers:
            handler.close()
