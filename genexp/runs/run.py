"""A run in its folder: begun or gone on with, trained, and written down to its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from genexp.config import bind
from genexp.data.fingerprint import fingerprint
from genexp.data.loading import translate_worker_error
from genexp.device import DeviceConfig, flush_denormals
from genexp.distributed.launch import Gathering, gathering
from genexp.distributed.rank import chosen_place
from genexp.distributed.rank_process import Follower
from genexp.distributed.store import Task
from genexp.recorders.checkpoints import Checkpoints, truncate_logs
from genexp.recorders.console import Console
from genexp.recorders.figures import Figures
from genexp.recorders.gif import PreviewGifs
from genexp.recorders.group import RecorderGroup
from genexp.recorders.metrics_log import MetricsLog
from genexp.recorders.recorder import Recorder
from genexp.recorders.report import Report
from genexp.recorders.status import StatusFile
from genexp.recorders.tensorboard import TensorBoard
from genexp.reports import write_run_report
from genexp.run_dir.environment import describe_environment
from genexp.run_dir.paths import format_command, format_path
from genexp.runs.build import Run, build_run, refuse_other_keys
from genexp.runs.resume import claimed, refuse_if_finished, state_to_resume
from genexp.snapshot import RunOutcome, RunInfo, Snapshot
from genexp.technique import Clock
from genexp.training.stopping import stop_on_signals
from genexp.training.trainer import TrainerConfig, train


@dataclass(frozen=True)
class Result:
    """What a finished command has to say."""

    exit_code: int
    objective: float | None  # the last value of trainer.objective


def run_experiment(cfg: DictConfig, folder: Path, until_epoch: int | None = None) -> Result:
    """Run what `cfg` says in `folder`; halt behind `until_epoch`, where it is given. Raises GenexpError."""
    flush_denormals()  # before torch begins its other threads
    with claimed(folder):
        plain, previous = _to_run(cfg, folder)
        settings = bind(DeviceConfig, plain["device"], "device")
        place = chosen_place(settings.processes)
        built = build_run(plain, previous, place)  # first: what cannot be built starts no other process
        with closing(built.material.feed), gathering(place, settings.threads) as others:
            return _execute(Sitting(built, plain, folder, previous), others, until_epoch)


def _to_run(cfg: DictConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return a configuration, plain and resolved, and the state to go on from. Raises GenexpError."""
    previous = state_to_resume(cfg, folder)
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    plain = {str(key): value for key, value in config.items()} | {"resume": None}
    refuse_other_keys(plain)
    return plain, previous


def follow() -> None:
    """Do this process's part of runs that another process leads. Raises what keeps it from that."""
    follower = Follower()
    try:
        for task in follower.tasks():
            _follow(follower, task)
    except Exception as error:
        follower.explain(error)
        raise


def _follow(follower: Follower, task: Task) -> None:
    flush_denormals()
    torch.set_default_dtype(getattr(torch, task.precision))
    built = build_run(task.config, None, follower.place)
    # The first process looks, judges and saves.
    blind = replace(built.trainer, evaluate_every=0, preview_every=0, checkpoint_every=0)
    with (
        closing(built.material.feed),
        stop_on_signals(None) as stop,
        follower.at_work(built.learner.device) as team,
    ):
        train(built.learner, built.material, _Nobody(), blind, stop, seed=built.seed, start=task.start, team=team)


class _Nobody:
    def record(self, snapshot: Snapshot) -> None:
        """Write nothing."""


@dataclass(frozen=True)
class Sitting:
    """A run and its folder, from its beginning, or where it goes on, to where it ends or stops."""

    built: Run
    config: Mapping[str, Any]  # plain and resolved
    folder: Path
    previous: Mapping[str, Any] | None  # the state that it goes on from

    @property
    def start(self) -> int:
        return self.previous["step"] if self.previous is not None else 0

    def recorders(self) -> RecorderGroup:
        """Make the folder ready and return what writes to it, to be opened. Raises GenexpError."""
        built, folder = self.built, self.folder
        if self.previous is not None:
            if self.start >= built.total_steps or built.learner.technique.has_converged:
                refuse_if_finished(folder)
            truncate_logs(folder, self.previous["ledger"])
        _write_config(self.config, folder)  # not before: a refused command leaves a run as it was
        return run_recorders(built.trainer, self.previous)

    def describe(self, processes: int = 1) -> RunInfo:
        """Return what recorders are told when they open."""
        return describe_run(self.built, self.config, self.folder, self.start, processes)

    def conclude(self, recorders: RecorderGroup, clock: Clock) -> bool:
        """Write down how the run stands now that it has come to `clock`; return whether nothing is left to do."""
        done = clock.is_last_step or self.built.learner.technique.has_converged
        again = None if done else self.command_to_go_on
        recorders.close(RunOutcome("finished" if done else "stopped", clock.step, resume_command=again))
        return done

    @property
    def command_to_go_on(self) -> str:
        return format_command("genexp", f"resume={format_path(self.folder)}")


@contextmanager
def sitting_down(cfg: DictConfig, folder: Path, like: Run | None = None) -> Iterator[Sitting]:
    """Build what `cfg` says, for a loop in this process, and keep other processes from the folder.

    A run `like` it, on the same data, shares these with it. Raises GenexpError.
    """
    flush_denormals()
    with claimed(folder):
        plain, previous = _to_run(cfg, folder)
        built = build_run(plain, previous, like=like)
        with closing(built.material.feed):
            yield Sitting(built, plain, folder, previous)


def _execute(sitting: Sitting, others: Gathering, until_epoch: int | None) -> Result:
    built, recorders = sitting.built, sitting.recorders()
    task = Task(sitting.config, sitting.start, str(torch.get_default_dtype()).removeprefix("torch."))
    with stop_on_signals(built.trainer.time_budget, until_epoch=until_epoch) as stop:
        try:
            recorders.open(sitting.describe(others.place.processes))
            with others.at_work(task, built.learner.device, sitting.command_to_go_on) as team:
                clock = train(
                    *(built.learner, built.material, recorders, built.trainer, stop),
                    seed=built.seed,
                    start=sitting.start,
                    team=team,
                )
        except BaseException as raised:
            error = translate_worker_error(raised)
            recorders.close(failure(recorders, error))
            if error is raised:
                raise
            raise error from raised
        done = sitting.conclude(recorders, clock)
    exit_code = 128 + stop.signal if stop.signal is not None and not done else 0
    return Result(exit_code, recorders.test_metrics.get(built.trainer.objective.removeprefix("test/")))


def failure(recorders: RecorderGroup, error: BaseException) -> RunOutcome:
    """Return what recorders are told of an error that ends their run."""
    return RunOutcome("failed", recorders.last_step, error=_in_words(error))


def _in_words(error: BaseException) -> str:
    """Return an error for the records. What is no Exception asks to exit: rich does where its reader has gone."""
    return str(error) if isinstance(error, Exception) and str(error) else type(error).__name__


def run_recorders(trainer: TrainerConfig, previous: Mapping[str, Any] | None) -> RecorderGroup:
    """Return the recorders that a run has by default."""
    # TensorBoard and the report show the pictures, and the console names the files, that those before them write.
    report = Report(write_run_report)
    others: Sequence[Recorder] = (MetricsLog(), PreviewGifs(), Figures(), TensorBoard(), StatusFile(), report, Console())
    best = previous["best"] if previous else None
    return RecorderGroup([*others, Checkpoints(others, max_to_keep=trainer.keep_checkpoints, best=best)])


def describe_run(built: Run, config: Mapping[str, Any], folder: Path, start: int, processes: int = 1) -> RunInfo:
    """Return what recorders are told of a run."""
    technique, material = built.learner.technique, built.material
    return RunInfo(
        run_dir=folder,
        model=technique.name,
        dataset=built.dataset.name,
        config=config,
        total_steps=built.total_steps,
        steps_per_epoch=material.feed.steps_per_epoch,
        batch_size=built.trainer.batch_size or len(built.dataset.train),
        num_parameters=sum(weight.numel() for weight in technique.parameters() if weight.requires_grad),
        objective=built.trainer.objective.removeprefix("test/"),
        direction="max" if built.trainer.direction == "max" else "min",
        class_names=built.dataset.class_names,
        environment={
            **describe_environment(built.learner.device, processes),
            "precision": built.learner.precision,
        },
        data_fingerprints=fingerprint(built.dataset),
        start_step=start,
    )


def _write_config(config: Mapping[str, Any], folder: Path) -> None:
    temporary = folder / "config.yaml.tmp"
    OmegaConf.save(OmegaConf.create(dict(config)), temporary)
    temporary.replace(folder / "config.yaml")
