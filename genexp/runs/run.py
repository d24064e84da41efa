"""Execution of a run in its directory: start or resumption, training and recording."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from genexp.data.dataset import fingerprint
from genexp.data.loading import translate_worker_error
from genexp.device import flush_denormals, keep_thread_count
from genexp.distributed.launch import ProcessLauncher, launch_processes
from genexp.distributed.rank import RankInfo, resolve_rank_info
from genexp.distributed.rank_process import RankProcess
from genexp.distributed.store import RankTask
from genexp.errors import CheckpointError, ConfigError
from genexp.recorders import DEFAULT_RECORDERS, build_named_recorders, get_options, is_enabled
from genexp.recorders.checkpoints import CheckpointRecorder
from genexp.recorders.console import ConsoleRecorder
from genexp.recorders.figures import FigureRecorder
from genexp.recorders.metrics_log import MetricsRecorder
from genexp.recorders.previews import PreviewRecorder
from genexp.recorders.recorder import Recorder, RecorderGroup, format_error
from genexp.recorders.report import ReportRecorder
from genexp.recorders.status import StatusRecorder
from genexp.recorders.tensorboard import TensorBoardRecorder
from genexp.registry import get_plugins, list_plugin_sources, set_plugins
from genexp.reports import write_run_report
from genexp.run_dir.checkpoint import truncate_logs
from genexp.run_dir.environment import describe_environment, list_plugin_options, write_plugins
from genexp.run_dir.files import lock_run_dir, read_time, sync_files, write_file
from genexp.run_dir.paths import CONFIG_FILE, HYDRA_DIR, STATUS_FILE, format_command, format_path
from genexp.run_dir.status import read_job_status, record_failure
from genexp.runs.build import Run, build_run
from genexp.runs.config import ExperimentConfig, bind_experiment
from genexp.runs.load import load_initial_weights
from genexp.runs.resume import check_lacks_pages, load_progress, load_resume_state
from genexp.snapshot import RunInfo, RunOutcome, RunProgress, Snapshot
from genexp.technique import Clock
from genexp.training.stopping import stop_on_signals
from genexp.training.trainer import TrainingResult, is_run_complete, train

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """Result of a training command."""

    exit_code: int  # 0, or 128 + the signal that stopped the run
    objective_value: float | None  # last value of trainer.objective; None if nothing was evaluated


def run_experiment(values: Mapping[str, Any], run_dir: Path, until_epoch: int | None = None) -> RunResult:
    """Train a run in `run_dir`, and stop after `until_epoch` if given. Raises GenexpError.

    `values` is its plain, resolved configuration.
    """
    flush_denormals()  # before torch starts its other threads
    with lock_run_dir(run_dir), keep_thread_count():
        resume_state = load_resume_state(values, run_dir)
        with _record_failed_start(values, run_dir):
            config = bind_experiment(values)
            rank_info = resolve_rank_info(config.device.processes)
            # The run is built before the launch, so that an error in it does not start other processes.
            run = _build_run(config, resume_state, rank_info)
        with closing(run.data.batch_source), launch_processes(rank_info, config.device.threads) as launcher:
            return _train_and_record(RunContext(run, run_dir, resume_state), launcher, until_epoch)


def _build_run(
    config: ExperimentConfig,
    resume_state: Mapping[str, Any] | None,
    rank_info: RankInfo | None = None,
    data_source_run: Run | None = None,
) -> Run:
    """Return the run of `config`. A new run gets the weights of trainer.init_from. Raises GenexpError."""
    run = build_run(config, resume_state, rank_info, data_source_run)
    if config.trainer.init_from is not None and resume_state is None:
        load_initial_weights(run.learner, Path(config.trainer.init_from))
    return run


@contextmanager
def _record_failed_start(values: Mapping[str, Any], run_dir: Path) -> Iterator[None]:
    """Write an error in the block to the status file and the log if there is no status file.

    A rejected resumption changes nothing.
    """
    try:
        yield
    except Exception as error:
        if not (run_dir / STATUS_FILE).exists():
            record_failure(run_dir, values, format_error(error))
            log.info("failed: %s", format_error(error))
        raise


def run_rank_process() -> None:
    """Train this rank's part of each run that rank 0 sends. Reports an error to rank 0 and reraises it."""
    rank_process = RankProcess()
    try:
        for task in rank_process.receive_tasks():
            _run_rank_task(rank_process, task)
    except Exception as error:
        rank_process.report_error(error)
        raise


def _run_rank_task(rank_process: RankProcess, task: RankTask) -> None:
    flush_denormals()
    torch.set_default_dtype(getattr(torch, task.default_dtype))
    set_plugins(task.plugins)
    run = build_run(bind_experiment(task.config), None, rank_process.rank_info)
    # Only rank 0 evaluates, renders previews and writes files.
    trainer_config = replace(
        run.config.trainer, early_stopping=None, evaluate_every=0, preview_every=0, checkpoint_every=0
    )
    with (
        closing(run.data.batch_source),
        stop_on_signals(None) as stop,
        rank_process.join_group(run.learner.device) as group,
    ):
        train(
            run.learner,
            run.data,
            _NullSink(),
            trainer_config,
            stop,
            seed=run.config.seed,
            completed_steps=task.completed_steps,
            group=group,
        )


class _NullSink:
    def record(self, snapshot: Snapshot) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RunContext:
    """A run with its directory, and the state that it resumes from."""

    run: Run
    run_dir: Path
    resume_state: Mapping[str, Any] | None  # checkpoint that it resumes from; None for a new run

    @property
    def completed_steps(self) -> int:
        """Last step already done, or 0 for a new run."""
        return self.resume_state["step"] if self.resume_state is not None else 0

    def prepare_recorders(self) -> RecorderGroup:
        """Truncate the logs of a resumed run, write config.yaml, and return the recorders, not yet opened.

        The logs of a run that starts from step 0 are removed.
        Raises GenexpError.
        """
        run, run_dir = self.run, self.run_dir
        if self.resume_state is not None:
            clock = Clock(self.completed_steps, run.total_steps, run.data.batch_source.steps_per_epoch)
            is_complete = is_run_complete(clock, run.learner.technique, run.config.trainer, self.progress)
            if not is_complete and self.resume_state["optimizers"] is None:
                path = format_path(run_dir)
                raise CheckpointError(
                    f"resume={path}: has no optimizer state, because it finished with "
                    f"trainer.final_checkpoint=weights. Use trainer.init_from={path} to start from its weights."
                )
            if is_complete and read_job_status(run_dir).state == "finished":
                check_lacks_pages(run_dir, run.config.recorders)
                return RecorderGroup(build_page_recorders(run.config))
        truncate_logs(run_dir, self.resume_state["log_offsets"] if self.resume_state is not None else {})
        # Files change only after the checks: a rejected command leaves the run unchanged.
        config_text = OmegaConf.to_yaml(OmegaConf.create(dict(run.config.values)))
        sync_files((run_dir / HYDRA_DIR).glob("*.yaml"))  # Hydra does not flush them
        write_file(run_dir / CONFIG_FILE, config_text, should_sync=True)
        write_plugins(run_dir, get_plugins())
        return build_recorders(run.config)

    def build_info(self, world_size: int = 1) -> RunInfo:
        """Return the facts about the run with which recorders are opened."""
        info = build_run_info(self.run, self.run_dir, self.completed_steps, world_size)
        return replace(info, progress=self.progress)

    @property
    def progress(self) -> RunProgress:
        """Scores, epoch means and warnings of the completed steps."""
        return load_progress(self.resume_state) if self.resume_state is not None else RunProgress()

    def close_recorders(
        self, recorders: RecorderGroup, result: TrainingResult, stop_reason: str | None = None
    ) -> None:
        """Close the recorders of a run that ended without an error. Raises the error of a recorder."""
        step = result.clock.step
        recorders.close(
            RunOutcome("finished", step)
            if result.is_finished
            else RunOutcome("stopped", step, error=stop_reason, resume_command=self.resume_command)
        )

    @property
    def resume_command(self) -> str:
        """Command line that resumes the run."""
        return format_command("genexp", *list_plugin_options(), f"resume={format_path(self.run_dir)}")


@contextmanager
def open_run_context(
    values: Mapping[str, Any], run_dir: Path, data_source_run: Run | None = None
) -> Iterator[RunContext]:
    """Yield a run that is built for a single process, and lock `run_dir` within the block.

    `values` is its plain, resolved configuration. `data_source_run` is another run on the same data set, whose
    data set and loaders are reused.
    Raises GenexpError.
    """
    flush_denormals()
    with lock_run_dir(run_dir):
        resume_state = load_resume_state(values, run_dir)
        config = bind_experiment(values)
        run = _build_run(config, resume_state, data_source_run=data_source_run)
        with closing(run.data.batch_source):
            yield RunContext(run, run_dir, resume_state)


def _train_and_record(context: RunContext, launcher: ProcessLauncher, until_epoch: int | None) -> RunResult:
    run, recorders = context.run, context.prepare_recorders()
    default_dtype = str(torch.get_default_dtype()).removeprefix("torch.")
    task = RankTask(run.config.values, context.completed_steps, default_dtype, list_plugin_sources())
    with stop_on_signals(run.config.trainer.time_budget, until_epoch=until_epoch) as stop:
        try:
            recorders.open(context.build_info(launcher.rank_info.world_size))
            with launcher.dispatch_task(task, run.learner.device, context.resume_command) as group:
                result = train(
                    run.learner,
                    run.data,
                    recorders,
                    run.config.trainer,
                    stop,
                    seed=run.config.seed,
                    completed_steps=context.completed_steps,
                    progress=context.progress,
                    group=group,
                    read_time=read_time,
                )
        except BaseException as original_error:
            error = _translate_error(original_error, run.config.trainer.batch_size)
            recorders.close_failed(error)
            if error is original_error:
                raise
            raise error from original_error
        is_pipe_closed = stop.received_signal is not None and stop.received_signal.name == "SIGPIPE"
        context.close_recorders(recorders, result, "its output pipe was closed" if is_pipe_closed else None)
    exit_code = 128 + stop.received_signal if stop.received_signal is not None and not result.is_finished else 0
    return RunResult(exit_code, result.objective_value)


def _translate_error(error: BaseException, batch_size: int | None) -> BaseException:
    """Return a GenexpError for errors of torch that the settings of a run cause, else `error` itself."""
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return ConfigError(f"trainer.batch_size={batch_size}: batch normalization needs more. Use at least 2.")
    return translate_worker_error(error)


def build_recorders(config: ExperimentConfig) -> RecorderGroup:
    """Return the recorders of a run. Raises ConfigError."""
    trainer, settings = config.trainer, config.recorders
    # The order matters. TensorBoard and the report read images that earlier recorders write. The console lists the
    # written files. A checkpoint stores the sizes of the logs.
    recorders: list[tuple[str, Recorder]] = [
        ("metrics", MetricsRecorder()),
        ("previews", PreviewRecorder(trainer.preview_every, trainer.video)),
        ("figures", FigureRecorder(trainer.video, read_time=read_time)),
        ("tensorboard", TensorBoardRecorder(trainer.preview_every, **get_options(settings, "tensorboard"))),
        *(("named", recorder) for recorder in build_named_recorders(settings)),
        ("status", StatusRecorder(read_time=read_time)),
        ("report", ReportRecorder(write_run_report, read_time=read_time)),
        ("console", ConsoleRecorder()),
        (
            "checkpoints",
            CheckpointRecorder(max_to_keep=trainer.keep_checkpoints, final_checkpoint=trainer.final_checkpoint),
        ),
    ]
    return RecorderGroup(
        [recorder for name, recorder in recorders if name not in DEFAULT_RECORDERS or is_enabled(settings, name)]
    )


def build_page_recorders(config: ExperimentConfig) -> list[Recorder]:
    """Return the recorders that write the missing figures and the missing report of a finished run."""
    recorders: dict[str, Recorder] = {
        "figures": FigureRecorder(config.trainer.video, read_time=read_time),
        "report": ReportRecorder(write_run_report),
        "console": ConsoleRecorder(),
    }
    return [recorder for name, recorder in recorders.items() if is_enabled(config.recorders, name)]


def build_run_info(run: Run, run_dir: Path, completed_steps: int, world_size: int = 1) -> RunInfo:
    """Return the facts about a run with which recorders are opened."""
    technique, data, config = run.learner.technique, run.data, run.config
    return RunInfo(
        run_dir=run_dir,
        model_name=technique.name,
        dataset_name=run.dataset.name,
        config=config.values,
        total_steps=run.total_steps,
        steps_per_epoch=data.batch_source.steps_per_epoch,
        batch_size=config.trainer.batch_size or len(run.dataset.train),
        num_parameters=sum(weight.numel() for weight in technique.parameters() if weight.requires_grad),
        objective=config.trainer.objective,
        direction="max" if config.trainer.direction == "max" else "min",
        class_names=run.dataset.class_names,
        picture_labels=technique.label_pictures(run.dataset.class_names),
        environment={
            **describe_environment(run.learner.device, world_size),
            "precision": run.learner.precision,
        },
        data_fingerprints=fingerprint(run.dataset),
        completed_steps=completed_steps,
    )
