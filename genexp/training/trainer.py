"""Training loop. It depends on phases, batches and snapshots, but on no particular technique and on no files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genexp.config import require
from genexp.distributed.process_group import ProcessGroup
from genexp.errors import DivergenceError, PluginError, locate
from genexp.images.animation import VIDEO_FORMATS, can_encode
from genexp.seeding import seed_generators
from genexp.snapshot import Curve, FinalArtifacts, RunProgress, Snapshot
from genexp.technique import Batch, Batches, Clock, Metrics, Technique
from genexp.training.learner import AUTO_PRECISIONS, PRECISIONS, Learner, StepSettings
from genexp.training.progress import ProgressTracker
from genexp.training.stopping import StopRequest

METRICS_FLUSH_STEPS = 50  # metrics are copied from the device in blocks, so that no step waits for a copy
METRICS_FLUSH_SECONDS = 1.0
FINAL_CHECKPOINTS = ("full", "weights")  # with or without the state of the optimizers
MAX_ENCODED_SAMPLES = 2000  # maximum number of latent codes for figures and the TensorBoard projector
Metric = Callable[[Technique, Batches], float]


@dataclass
class TrainerConfig:
    """Trainer settings (conf/trainer/*.yaml). The `*_every` intervals are in epochs; 0 means never."""

    epochs: int
    early_stopping: int | None  # epochs without improvement of the objective after which the run ends
    min_improvement: float  # of the objective, for early stopping
    epoch_steps: int | None  # upper limit of the steps of an epoch
    max_steps: int | None  # steps after which the run ends, if that is before the end of `epochs`
    init_from: str | None  # directory of a run whose best weights are the initial ones
    time_budget: float | None  # seconds, after which the run saves and stops
    batch_size: int | None  # None: the whole training split is one batch
    accumulate: int  # see StepSettings
    precision: str  # one of AUTO_PRECISIONS or PRECISIONS
    compile: bool  # see StepSettings
    capture: bool  # whether steps are replayed as CUDA graphs
    gradient_clip: float | None  # maximum L2 norm of a phase's gradient
    ema: float  # decay of the averaged weights, in [0, 1); 0 disables averaging
    evaluate_every: int
    preview_every: int
    checkpoint_every: int
    checkpoint_spacing: float  # minimum time between two checkpoints, in seconds
    keep_checkpoints: int  # number of newest checkpoints to keep, besides the best
    final_checkpoint: str  # of a finished run, one of FINAL_CHECKPOINTS
    debug: bool  # see StepSettings
    deterministic: bool  # bit-exact on a GPU too, and slower there
    objective: str  # test metric that selects the best checkpoint; a prefix "test/" is removed
    direction: str  # min or max
    metrics: list[str]  # names of test metrics that are computed in addition to those of the technique
    video: str  # format of animations: one of VIDEO_FORMATS

    def __post_init__(self) -> None:
        self.objective = self.objective.removeprefix("test/")
        require(self.epochs > 0, "epochs", self.epochs, "must be at least 1")
        require(self.accumulate > 0, "accumulate", self.accumulate, "must be at least 1")
        for key in ("early_stopping", "epoch_steps", "max_steps", "time_budget", "batch_size", "gradient_clip"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "must be positive, or null")
        for key in (
            "min_improvement",
            "evaluate_every",
            "preview_every",
            "checkpoint_every",
            "checkpoint_spacing",
        ):
            require(getattr(self, key) >= 0, key, getattr(self, key), "must be 0 or more")
        is_evaluated = self.early_stopping is None or self.evaluate_every > 0
        require(is_evaluated, "early_stopping", self.early_stopping, "requires trainer.evaluate_every above 0")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "must be at least 1")
        choices = " or ".join(FINAL_CHECKPOINTS)
        is_known = self.final_checkpoint in FINAL_CHECKPOINTS
        require(is_known, "final_checkpoint", self.final_checkpoint, f"must be {choices}")
        require(0 <= self.ema < 1, "ema", self.ema, "must be a decay in [0, 1), or 0 for no average")
        precisions = (*AUTO_PRECISIONS, *PRECISIONS)
        require(
            self.precision in precisions, "precision", self.precision, f"must be one of {', '.join(precisions)}"
        )
        require(self.direction in ("min", "max"), "direction", self.direction, "must be min or max")
        require(self.video in VIDEO_FORMATS, "video", self.video, f"must be one of {', '.join(VIDEO_FORMATS)}")
        require(
            can_encode(self.video),
            "video",
            self.video,
            "requires an encoder. Run `pip install 'genexp[video]'`, or use gif",
        )

    @property
    def step_settings(self) -> StepSettings:
        """The settings that concern a single step."""
        return StepSettings(
            self.precision,
            self.gradient_clip,
            self.ema,
            self.capture,
            accumulate=self.accumulate,
            compile=self.compile,
            debug=self.debug,
        )

    def compute_total_steps(self, steps_per_epoch: int) -> int:
        """Return the number of steps of the whole run."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class BatchSource(Protocol):
    """Source of the training batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        ...

    def close(self) -> None:
        """Stop the prefetching of batches."""
        ...

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        """Return the endless sequence of batches of steps `first_step` (1-based), `first_step` + 1, …

        A batch is stream name → (batch, ...).
        """
        ...


@dataclass(frozen=True)
class RunData:
    """Training and test data of a run."""

    batch_source: BatchSource
    train_batches: Batches  # the training split in order
    test_batches: Batches  # the test split in order
    examples: Batch  # a few fixed held-out samples
    metrics: Mapping[str, Metric] = field(default_factory=dict)  # additional test metrics


@dataclass(frozen=True)
class TrainingResult:
    """State of a run when its training loop ended."""

    clock: Clock  # of the last step
    is_finished: bool  # False: the loop was interrupted before the last step, and the run can be resumed
    test_metrics: Mapping[str, float]  # of the latest evaluation; empty if there was none
    objective_value: float | None  # value of trainer.objective among them


class SnapshotSink(Protocol):
    """Receiver of snapshots."""

    def record(self, snapshot: Snapshot) -> None:
        """Record a snapshot."""
        ...


def train(
    learner: Learner,
    data: RunData,
    sink: SnapshotSink,
    config: TrainerConfig,
    stop_request: StopRequest,
    *,
    seed: int,
    completed_steps: int = 0,
    progress: RunProgress | None = None,
    group: ProcessGroup | None = None,
    read_time: Callable[[], float] = time.monotonic,
) -> TrainingResult:
    """Run the steps from `completed_steps` + 1 to the last one, and return the state after the last step run.

    Step n is a function of the learner's state, `seed` and n alone. If `group` has several ranks, all of them call
    this function, each with its rows of the batches. All ranks start from the state of rank 0. `progress` is the
    record of the completed steps. `read_time` returns seconds, which space metrics and checkpoints.
    Raises DivergenceError where a loss or a weight becomes NaN or infinite.
    """
    group = group or ProcessGroup()
    learner.set_process_group(group)
    steps_per_epoch = data.batch_source.steps_per_epoch
    clock = Clock(completed_steps, config.compute_total_steps(steps_per_epoch), steps_per_epoch)
    builder = SnapshotBuilder(
        learner, data, config, seed, group, completed_steps, progress or RunProgress(), read_time
    )
    if completed_steps == 0:
        if group.is_rank_zero:
            initialize_technique(learner, data.train_batches, seed)
        sink.record(builder.build_initial(clock))
    group.broadcast_state(learner)
    # The run may be complete already, or a stop may be requested before the first step.
    is_complete, is_interrupted, *reductions = group.all_reduce_max(
        clock,
        builder.is_run_complete(clock),
        completed_steps > 0 and stop_request.should_interrupt(clock.completed_epochs),
        *builder.count_plateau_reductions(),
    )
    learner.set_plateau_reductions(reductions)
    if is_complete or is_interrupted:
        sink.record(builder.build_final(clock, is_complete=bool(is_complete)))
        return builder.build_result(clock)
    for batch in data.batch_source.iter_batches(completed_steps + 1):
        clock = Clock(clock.step + 1, clock.total_steps, steps_per_epoch)
        seed_generators(learner.device, seed, clock.step)
        builder.add_metrics(learner.step(batch, data.train_batches, clock))
        if not group.should_sync(clock):
            continue
        if config.early_stopping is not None or learner.plateau_phases:
            builder.evaluate(clock)
        is_complete, is_interrupted, is_snapshot_due, signum, *reductions = group.all_reduce_max(
            clock,
            builder.is_run_complete(clock),
            stop_request.should_interrupt(clock.completed_epochs),
            builder.is_due(clock),
            stop_request.received_signal or 0,
            *builder.count_plateau_reductions(),
        )
        learner.set_plateau_reductions(reductions)
        stop_request.set_signal(signum)
        is_ending = bool(is_complete or is_interrupted)
        if is_ending or is_snapshot_due:
            sink.record(builder.build(clock, is_complete=bool(is_complete), is_ending=is_ending))
        if is_ending:
            break
    return builder.build_result(clock)


def is_run_complete(clock: Clock, technique: Technique, config: TrainerConfig, progress: RunProgress) -> bool:
    """Return whether the step of `clock` completes the run.

    It does so if it is the last step, if training has converged in its epoch, or if the objective has not improved
    for `config.early_stopping` epochs. `progress` includes the evaluation after this step.
    """
    if clock.is_last_step or clock.step == 0 or not clock.is_epoch_end:
        return clock.is_last_step
    if config.early_stopping is None or progress.reference_step is None:
        return technique.has_converged
    stagnant_steps = clock.step - progress.reference_step
    return technique.has_converged or stagnant_steps >= config.early_stopping * clock.steps_per_epoch


def initialize_technique(learner: Learner, train_batches: Batches, seed: int) -> None:
    """Initialize the technique of a new run from the training split `train_batches`, and restart its EMA.

    Weights that were loaded from another run are kept.
    """
    # The string is part of the seed: another spelling would change the initial weights.
    seed_generators(learner.device, seed, "begin")
    if not learner.has_loaded_weights:
        with torch.no_grad():
            learner.technique.initialize(train_batches)
    learner.reset_ema()


@contextmanager
def eval_mode(technique: Technique) -> Iterator[None]:
    """Disable gradients and set evaluation mode within the block, then restore the mode of every module."""
    modes = {module: module.training for module in technique.modules()}
    technique.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class SnapshotBuilder:
    """Builder of snapshots. It cannot influence a step, because every step seeds the generators itself."""

    def __init__(
        self,
        learner: Learner,
        data: RunData,
        config: TrainerConfig,
        seed: int,
        group: ProcessGroup,
        completed_steps: int,
        progress: RunProgress,
        read_time: Callable[[], float],
    ) -> None:
        self.learner, self.data, self.config, self.seed, self.group = learner, data, config, seed, group
        steps_per_epoch = data.batch_source.steps_per_epoch
        self._tracker = ProgressTracker(
            config.objective,
            config.direction,
            steps_per_epoch,
            completed_steps,
            progress,
            min_improvement=config.min_improvement,
            plateau_steps={
                name: learner.optimizer_configs[name].plateau_patience * steps_per_epoch
                for name in learner.plateau_phases
            },
        )
        self._test_metrics: dict[str, float] | None = None  # of this step, if `evaluate` came before `build`
        self._step_metrics: list[Metrics] = []
        self._read_time = read_time
        self._last_snapshot_time = self._last_checkpoint_time = read_time()

    def add_metrics(self, metrics: Metrics) -> None:
        """Store a step's metrics, which stay on the device until the next snapshot."""
        self._step_metrics.append(metrics)

    def build_initial(self, clock: Clock) -> Snapshot:
        """Return the snapshot of step 0. A run that is killed before the next checkpoint resumes from step 0."""
        return Snapshot(
            clock,
            preview_images=self._render_preview() if self.config.preview_every else {},
            progress=self._tracker.progress,
            checkpoint_state=self._build_checkpoint(clock) if self.config.checkpoint_every else None,
        )

    def build_final(self, clock: Clock, *, is_complete: bool) -> Snapshot:
        """Return a snapshot of the final artifacts alone, for a run that has recorded everything else."""
        return Snapshot(
            clock,
            progress=self._tracker.progress,
            final_artifacts=self._build_final_artifacts(),
            is_complete=is_complete,
        )

    def build_result(self, clock: Clock) -> TrainingResult:
        """Return the state of a run that ended at `clock`."""
        return TrainingResult(
            clock,
            self.is_run_complete(clock),
            self._tracker.progress.test_metrics,
            self._tracker.progress.test_metrics.get(self.config.objective),
        )

    def is_run_complete(self, clock: Clock) -> bool:
        """Return whether no step follows that of `clock`."""
        return is_run_complete(clock, self.learner.technique, self.config, self._tracker.progress)

    def evaluate(self, clock: Clock) -> None:
        """Evaluate if an evaluation is due at `clock`. `build` and early stopping use the scores."""
        if self._is_interval_end(self.config.evaluate_every, clock):
            self._test_metrics = self._evaluate()
            self._tracker.add_scores(self._test_metrics, clock.step)

    def count_plateau_reductions(self) -> list[int]:
        """Return the number of reductions of the learning rate of each phase in `Learner.plateau_phases`."""
        counts = self._tracker.progress.plateau_reductions
        return [counts.get(name, 0) for name in self.learner.plateau_phases]

    def is_due(self, clock: Clock) -> bool:
        """Return whether a snapshot is due at `clock`."""
        if (
            len(self._step_metrics) >= METRICS_FLUSH_STEPS
            or self._read_time() - self._last_snapshot_time >= METRICS_FLUSH_SECONDS
        ):
            return True
        intervals = (self.config.preview_every, self.config.evaluate_every)
        return any(self._is_interval_end(every, clock) for every in intervals) or self._is_checkpoint_due(clock)

    def build(self, clock: Clock, *, is_complete: bool, is_ending: bool) -> Snapshot:
        """Return a snapshot of the metrics since the previous snapshot, and of everything that is due at `clock`.

        `is_complete` adds an evaluation and a preview. If a signal, a time budget or an epoch limit interrupts a
        run, only `is_ending` is True, which adds neither. After a resumption, the records of the run must equal
        those of an uninterrupted run. Raises DivergenceError.
        """
        config, technique = self.config, self.learner.technique
        train_curves = self._collect_curves(clock)
        should_evaluate = bool(config.evaluate_every) and (
            is_complete or self._is_interval_end(config.evaluate_every, clock)
        )
        should_preview = bool(config.preview_every) and (
            is_complete or self._is_interval_end(config.preview_every, clock)
        )
        epoch_means = self._tracker.add_curves(train_curves, clock.step)
        if should_evaluate and self._test_metrics is None:
            self._test_metrics = self._evaluate()
            self._tracker.add_scores(self._test_metrics, clock.step)
        test_metrics, self._test_metrics = self._test_metrics or {}, None
        for number, means in enumerate(epoch_means, start=1):
            has_scores = clock.is_epoch_end and number == len(epoch_means)
            scores = {f"test/{name}": value for name, value in test_metrics.items()} if has_scores else {}
            warning = technique.diagnose({**means, **scores}) if means else None
            self._tracker.add_warnings((warning,) if warning else ())
        self._last_snapshot_time = self._read_time()
        return Snapshot(
            clock,
            train_curves,
            test_metrics=test_metrics,
            preview_images=self._render_preview() if should_preview else {},
            progress=self._tracker.progress,
            epoch_means=epoch_means[-1] if epoch_means else {},
            checkpoint_state=self._build_checkpoint(clock)
            if is_ending or self._is_checkpoint_due(clock)
            else None,
            technique_state=dict(self.learner.eval_technique.state_dict()) if should_evaluate else None,
            gradients={
                name: weight.grad for name, weight in technique.named_parameters() if weight.grad is not None
            }
            if should_evaluate
            else {},
            final_artifacts=self._build_final_artifacts() if is_ending else None,
            is_complete=is_complete,
        )

    def _collect_curves(self, clock: Clock) -> dict[str, Curve]:
        first_step = clock.step - len(self._step_metrics) + 1
        steps: dict[str, list[int]] = {}
        values: dict[str, list[Tensor]] = {}
        for offset, metrics in enumerate(self._step_metrics):
            for name, value in metrics.items():
                steps.setdefault(name, []).append(first_step + offset)
                values.setdefault(name, []).append(value)
        self._step_metrics.clear()
        means = {name: self.group.all_reduce_mean(torch.stack(values[name])) for name in values}
        curves = {
            name: Curve(np.array(steps[name]), values.float().cpu().numpy()) for name, values in means.items()
        }
        self._check_finite(curves)
        return curves

    def _check_finite(self, curves: Mapping[str, Curve]) -> None:
        for loss, phase in self.learner.phase_by_loss.items():
            curve = curves.get(loss)
            if curve is None or np.isfinite(curve.values).all():
                continue
            first_nonfinite = int(np.flatnonzero(~np.isfinite(curve.values))[0])
            value, step = curve.values[first_nonfinite], curve.steps[first_nonfinite]
            raise DivergenceError(
                f"the {loss} of phase {phase} became {value} at step {step}. "
                f"Use a smaller optimizer.lr, or trainer.gradient_clip=1."
            )

    def _is_checkpoint_due(self, clock: Clock) -> bool:
        has_spacing_elapsed = self._read_time() - self._last_checkpoint_time >= self.config.checkpoint_spacing
        return has_spacing_elapsed and self._is_interval_end(self.config.checkpoint_every, clock)

    def _build_checkpoint(self, clock: Clock) -> dict[str, Any]:
        self._last_checkpoint_time = self._read_time()
        for name, weight in self.learner.technique.state_dict().items():
            # A step with a finite loss can still produce non-finite weights.
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise DivergenceError(
                    f"{name} became NaN or infinite by step {clock.step}. "
                    f"Use a smaller optimizer.lr, or trainer.gradient_clip=1."
                )
        return {"step": clock.step, "epoch": clock.epoch, **self.learner.state_dict()}

    def _evaluate(self) -> dict[str, float]:
        with self._seeded_eval_mode("evaluate") as technique:
            scores = technique.evaluate(self.data.test_batches)
            if not (isinstance(scores, dict) and all(isinstance(value, int | float) for value in scores.values())):
                reason = "evaluate must return a dictionary of names and numbers, not tensors. Use float(value)"
                raise PluginError(f"{locate(technique.evaluate)}: {reason}.")
            for name, metric in self.data.metrics.items():
                value = metric(technique, self.data.test_batches)
                if not isinstance(value, int | float) and getattr(value, "numel", lambda: 0)() != 1:
                    raise PluginError(f"trainer.metrics={name}: not a number. Return a float or a scalar tensor.")
                scores = {**scores, name: float(value)}
            return scores

    def _render_preview(self) -> dict[str, Tensor]:
        with self._seeded_eval_mode("preview") as technique:
            return {name: to_uint8(image) for name, image in technique.preview(self.data.examples).items()}

    def _build_final_artifacts(self) -> FinalArtifacts | None:
        if not self.group.is_rank_zero:
            return None
        # The string is part of the seed: another spelling would change the final images.
        with self._seeded_eval_mode("finale") as technique:
            gallery = {
                name: to_uint8(image) for name, image in technique.render_gallery(self.data.examples).items()
            }
            return FinalArtifacts(gallery, **_collect_latents(technique, self.data.test_batches))

    @contextmanager
    def _seeded_eval_mode(self, purpose: str) -> Iterator[Technique]:
        # One seed per purpose: all snapshots use equal noise and prior samples, which makes them comparable.
        seed_generators(self.learner.device, self.seed, purpose)
        with eval_mode(self.learner.eval_technique):
            yield self.learner.eval_technique

    @staticmethod
    def _is_interval_end(interval: int, clock: Clock) -> bool:
        return bool(interval) and clock.is_epoch_end and clock.epoch % interval == 0


def to_uint8(image: Tensor) -> Tensor:
    """Return an image in [0, 1], of any shape, as uint8 in [0, 255] on the CPU."""
    return image.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8).cpu()


def _collect_latents(technique: Technique, test_batches: Batches) -> dict[str, Tensor]:
    """Return codes, labels and images of the first MAX_ENCODED_SAMPLES samples, or {} without a latent.

    Shapes: codes (samples, features), labels (samples,), images uint8 (samples, channels, height, width).
    """
    codes, labels, images = [], [], []
    count = 0
    for batch in test_batches:
        code = technique.encode(batch)
        if code is None:
            return {}
        codes.append(code.float().cpu())
        if "label" in batch:
            labels.append(batch["label"].cpu())
        if "image" in batch:
            images.append(to_uint8(batch["image"]))
        count += len(code)
        if count >= MAX_ENCODED_SAMPLES:
            break
    parts = {"codes": codes, "labels": labels, "images": images}
    return {name: torch.cat(part)[:MAX_ENCODED_SAMPLES] for name, part in parts.items() if part}
