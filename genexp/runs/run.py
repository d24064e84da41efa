"""Execution of a run in its directory: start or resumption, training and recording."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genexp.config import bind
from genexp.data.dataset import fingerprint
from genexp.data.loading import translate_worker_error
from genexp.device import DeviceConfig, flush_denormals
from genexp.distributed.launch import ProcessLauncher, launch_processes
from genexp.distributed.rank import resolve_rank_info
from genexp.distributed.rank_process import RankProcess
from genexp.distributed.store import RankTask
from genexp.recorders.checkpoints import CheckpointRecorder, truncate_logs
from genexp.recorders.console import ConsoleRecorder
from genexp.recorders.figures import FigureRecorder
from genexp.recorders.metrics_log import MetricsRecorder
from genexp.recorders.previews import PreviewRecorder
from genexp.recorders.recorder import Recorder, RecorderGroup
from genexp.recorders.report import ReportRecorder
from genexp.recorders.status import StatusRecorder
from genexp.recorders.tensorboard import TensorBoardRecorder
from genexp.reports import write_run_report
from genexp.run_dir.environment import describe_environment
from genexp.run_dir.files import lock_run_dir, write_file
from genexp.run_dir.paths import CONFIG_FILE, STATUS_FILE, format_command, format_path
from genexp.run_dir.status import record_failure
from genexp.runs.build import Run, build_run, check_top_level_keys
from genexp.runs.resume import check_not_finished, load_resume_state
from genexp.snapshot import RunInfo, RunOutcome, Snapshot
from genexp.technique import Clock
from genexp.training.stopping import stop_on_signals
from genexp.training.trainer import TrainerConfig, train


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training command."""

    exit_code: int  # 0, or 128 + the signal that stopped the run
    objective_value: float | None  # last value of trainer.objective; None if nothing was evaluated


def run_experiment(cfg: DictConfig, run_dir: Path, until_epoch: int | None = None) -> TrainingResult:
    """Train the run of `cfg` in `run_dir`, and stop after `until_epoch` if given. Raises GenexpError."""
    flush_denormals()  # before torch starts its other threads
    with lock_run_dir(run_dir):
        config, resume_state = _load_config_and_state(cfg, run_dir)
        with _record_failed_start(config, run_dir):
            check_top_level_keys(config)
            device_config = bind(DeviceConfig, config["device"], "device")
            rank_info = resolve_rank_info(device_config.processes)
            # Built before the launch, so that a run that cannot be built starts no process.
            run = build_run(config, resume_state, rank_info)
        with closing(run.data.batch_source), launch_processes(rank_info, device_config.threads) as launcher:
            return _train_and_record(RunContext(run, config, run_dir, resume_state), launcher, until_epoch)


def _load_config_and_state(cfg: DictConfig, run_dir: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return the plain, resolved configuration, and the state to resume from or None. Raises GenexpError."""
    resume_state = load_resume_state(cfg, run_dir)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()} | {"resume": None}, resume_state


@contextmanager
def _record_failed_start(config: Mapping[str, Any], run_dir: Path) -> Iterator[None]:
    """Write an error in the block to the status file if there is none: a rejected resumption changes nothing."""
    try:
        yield
    except Exception as error:
        if not (run_dir / STATUS_FILE).exists():
            record_failure(run_dir, config, _format_error(error))
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
    run = build_run(task.config, None, rank_process.rank_info)
    # Only rank 0 evaluates, renders previews and writes files.
    trainer_config = replace(run.trainer_config, evaluate_every=0, preview_every=0, checkpoint_every=0)
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
            seed=run.seed,
            completed_steps=task.completed_steps,
            group=group,
        )


class _NullSink:
    def record(self, snapshot: Snapshot) -> None:
        """Do nothing."""


@dataclass(frozen=True)
class RunContext:
    """A run with its configuration, its directory, and the state that it resumes from."""

    run: Run
    config: Mapping[str, Any]  # plain and resolved
    run_dir: Path
    resume_state: Mapping[str, Any] | None  # checkpoint that it resumes from; None for a new run

    @property
    def completed_steps(self) -> int:
        """Last step already done, or 0 for a new run."""
        return self.resume_state["step"] if self.resume_state is not None else 0

    def prepare_recorders(self) -> RecorderGroup:
        """Truncate the logs of a resumed run, write config.yaml, and return the recorders, not yet opened.

        Raises GenexpError.
        """
        run, run_dir = self.run, self.run_dir
        if self.resume_state is not None:
            if self.completed_steps >= run.total_steps or run.learner.technique.has_converged:
                check_not_finished(run_dir)
            truncate_logs(run_dir, self.resume_state["log_offsets"])
        # After the checks: a rejected command leaves the run unchanged.
        write_file(run_dir / CONFIG_FILE, OmegaConf.to_yaml(OmegaConf.create(dict(self.config))), should_sync=True)
        return build_recorders(run.trainer_config, self.resume_state)

    def build_info(self, world_size: int = 1) -> RunInfo:
        """Return the facts about the run with which recorders are opened."""
        return build_run_info(self.run, self.config, self.run_dir, self.completed_steps, world_size)

    def close_recorders(self, recorders: RecorderGroup, clock: Clock) -> bool:
        """Close the recorders with the outcome of the run at `clock`, and return whether it is finished."""
        is_finished = clock.is_last_step or self.run.learner.technique.has_converged
        resume_command = None if is_finished else self.resume_command
        recorders.close(
            RunOutcome("finished" if is_finished else "stopped", clock.step, resume_command=resume_command)
        )
        return is_finished

    @property
    def resume_command(self) -> str:
        """Command line that resumes the run."""
        return format_command("genexp", f"resume={format_path(self.run_dir)}")


@contextmanager
def open_run_context(cfg: DictConfig, run_dir: Path, data_source_run: Run | None = None) -> Iterator[RunContext]:
    """Yield the run of `cfg`, built for a single process, and lock `run_dir` within the block.

    `data_source_run` is another run on the same data set, whose data set and loaders are reused.
    Raises GenexpError.
    """
    flush_denormals()
    with lock_run_dir(run_dir):
        config, resume_state = _load_config_and_state(cfg, run_dir)
        check_top_level_keys(config)
        run = build_run(config, resume_state, data_source_run=data_source_run)
        with closing(run.data.batch_source):
            yield RunContext(run, config, run_dir, resume_state)


def _train_and_record(context: RunContext, launcher: ProcessLauncher, until_epoch: int | None) -> TrainingResult:
    run, recorders = context.run, context.prepare_recorders()
    task = RankTask(context.config, context.completed_steps, str(torch.get_default_dtype()).removeprefix("torch."))
    with stop_on_signals(run.trainer_config.time_budget, until_epoch=until_epoch) as stop:
        try:
            recorders.open(context.build_info(launcher.rank_info.world_size))
            with launcher.dispatch_task(task, run.learner.device, context.resume_command) as group:
                clock = train(
                    run.learner,
                    run.data,
                    recorders,
                    run.trainer_config,
                    stop,
                    seed=run.seed,
                    completed_steps=context.completed_steps,
                    group=group,
                )
        except BaseException as original_error:
            error = translate_worker_error(original_error)
            recorders.close(build_failed_outcome(recorders, error))
            if error is original_error:
                raise
            raise error from original_error
        is_finished = context.close_recorders(recorders, clock)
    exit_code = 128 + stop.received_signal if stop.received_signal is not None and not is_finished else 0
    return TrainingResult(
        exit_code, recorders.test_metrics.get(run.trainer_config.objective.removeprefix("test/"))
    )


def build_failed_outcome(recorders: RecorderGroup, error: BaseException) -> RunOutcome:
    """Return the outcome of a run that `error` ended, for its recorders."""
    return RunOutcome("failed", recorders.last_step, error=_format_error(error))


def _format_error(error: BaseException) -> str:
    """Return the message of an error, or its class name if it has none or is not an Exception.

    rich raises SystemExit, which is not an Exception, when its output pipe is closed.
    """
    return str(error) if isinstance(error, Exception) and str(error) else type(error).__name__


def build_recorders(trainer_config: TrainerConfig, resume_state: Mapping[str, Any] | None) -> RecorderGroup:
    """Return the default recorders of a run."""
    # The order matters: TensorBoard and the report read images of earlier recorders, and the console lists files.
    report = ReportRecorder(write_run_report)
    output_recorders: Sequence[Recorder] = (
        MetricsRecorder(),
        PreviewRecorder(trainer_config.preview_every, trainer_config.video),
        FigureRecorder(trainer_config.video),
        TensorBoardRecorder(trainer_config.preview_every),
        StatusRecorder(),
        report,
        ConsoleRecorder(),
    )
    best = resume_state["best"] if resume_state else None
    return RecorderGroup(
        [
            *output_recorders,
            CheckpointRecorder(output_recorders, max_to_keep=trainer_config.keep_checkpoints, best=best),
        ]
    )


def build_run_info(
    run: Run, config: Mapping[str, Any], run_dir: Path, completed_steps: int, world_size: int = 1
) -> RunInfo:
    """Return the facts about a run with which recorders are opened."""
    technique, data = run.learner.technique, run.data
    return RunInfo(
        run_dir=run_dir,
        model_name=technique.name,
        dataset_name=run.dataset.name,
        config=config,
        total_steps=run.total_steps,
        steps_per_epoch=data.batch_source.steps_per_epoch,
        batch_size=run.trainer_config.batch_size or len(run.dataset.train),
        num_parameters=sum(weight.numel() for weight in technique.parameters() if weight.requires_grad),
        objective=run.trainer_config.objective.removeprefix("test/"),
        direction="max" if run.trainer_config.direction == "max" else "min",
        class_names=run.dataset.class_names,
        environment={
            **describe_environment(run.learner.device, world_size),
            "precision": run.learner.precision,
        },
        data_fingerprints=fingerprint(run.dataset),
        completed_steps=completed_steps,
    )
