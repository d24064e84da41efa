"""The loop. It knows phases, batches and snapshots, and nothing of any technique or file."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from genexp.config import require
from genexp.distributed.process_group import ProcessGroup
from genexp.errors import DivergenceError
from genexp.seeding import seed_generators
from genexp.snapshot import Curve, FinalArtifacts, Snapshot
from genexp.technique import Batch, Batches, Clock, Metrics, Technique
from genexp.training.learner import AUTO_PRECISIONS, PRECISIONS, Learner, StepSettings
from genexp.training.stopping import StopRequest

METRICS_FLUSH_STEPS = 50  # metrics leave the device in blocks: no step waits for it
METRICS_FLUSH_SECONDS = 1.0
MAX_LATENT_SAMPLES = 2000  # latent codes kept for figures and the projector


@dataclass
class TrainerConfig:
    """conf/trainer/*.yaml. Intervals count epochs; 0 means never."""

    epochs: int
    max_steps: int | None
    time_budget: float | None  # seconds
    batch_size: int | None  # null takes the whole training split as one batch
    precision: str
    capture: bool
    gradient_clip: float | None
    ema: float
    evaluate_every: int
    preview_every: int
    checkpoint_every: int
    checkpoint_spacing: float  # seconds that pass at least between two checkpoints
    keep_checkpoints: int
    deterministic: bool
    objective: str
    direction: str

    def __post_init__(self) -> None:
        require(self.epochs > 0, "epochs", self.epochs, "use at least 1")
        for key in ("max_steps", "time_budget", "batch_size", "gradient_clip"):
            value = getattr(self, key)
            require(value is None or value > 0, key, value, "use a positive value, or null")
        for key in ("evaluate_every", "preview_every", "checkpoint_every", "checkpoint_spacing"):
            require(getattr(self, key) >= 0, key, getattr(self, key), "use 0 or more")
        require(self.keep_checkpoints > 0, "keep_checkpoints", self.keep_checkpoints, "keep at least 1")
        require(0 <= self.ema < 1, "ema", self.ema, "use a decay in [0, 1); 0 keeps no average")
        precisions = (*AUTO_PRECISIONS, *PRECISIONS)
        require(
            self.precision in precisions, "precision", self.precision, f"choose one of {', '.join(precisions)}"
        )
        require(self.direction in ("min", "max"), "direction", self.direction, "use min or max")

    @property
    def step_settings(self) -> StepSettings:
        return StepSettings(self.precision, self.gradient_clip, self.ema, self.capture)

    def compute_total_steps(self, steps_per_epoch: int) -> int:
        """Return the last step of the run."""
        steps = self.epochs * steps_per_epoch
        return steps if self.max_steps is None else min(steps, self.max_steps)


class BatchSource(Protocol):
    """Where batches come from."""

    @property
    def steps_per_epoch(self) -> int:
        """Return how many batches an epoch has."""
        ...

    def close(self) -> None:
        """End what reads ahead."""
        ...

    def batches(self, first_step: int) -> Iterator[Batch]:
        """Return the batches of steps `first_step`, `first_step` + 1, … without end."""
        ...


@dataclass(frozen=True)
class RunData:
    """What a run learns from and is judged by."""

    batch_source: BatchSource
    train: Batches  # the training split in order
    test: Batches  # the test split in order
    examples: Batch  # a few fixed held-out samples


class SnapshotSink(Protocol):
    """Who is told."""

    def record(self, snapshot: Snapshot) -> None:
        """Write down a snapshot."""
        ...


def train(
    learner: Learner,
    data: RunData,
    sink: SnapshotSink,
    config: TrainerConfig,
    stop: StopRequest,
    *,
    seed: int,
    start_step: int = 0,
    group: ProcessGroup | None = None,
) -> Clock:
    """Run steps `start` + 1 to the last, and return where the run stands when it ends.

    Step n is a function of the learner's state, `seed` and n alone. Of a `team` all members come here, and each
    has its rows of the batches; the first one's state is everyone's. Raises DivergenceError.
    """
    group = group or ProcessGroup()
    learner.set_process_group(group)
    steps_per_epoch = data.batch_source.steps_per_epoch
    clock = Clock(start_step, config.compute_total_steps(steps_per_epoch), steps_per_epoch)
    builder = SnapshotBuilder(learner, data, config, seed, group)
    if start_step == 0:
        if group.is_rank_zero:
            initialize_technique(learner, data.train, seed)
        sink.record(builder.build_initial(clock))
    group.broadcast_state(learner)
    # Killed between its last checkpoint and its last picture, or halted there before.
    (already_finished,) = group.all_reduce_max(
        clock, clock.is_last_step or (start_step > 0 and stop.should_interrupt(clock.completed_epochs))
    )
    if already_finished:
        sink.record(builder.build_final(clock))
        return clock
    for batch in data.batch_source.batches(start_step + 1):
        clock = Clock(clock.step + 1, clock.total_steps, steps_per_epoch)
        seed_generators(learner.device, seed, clock.step)
        builder.add_metrics(learner.step(batch, data.train, clock))
        if not group.should_sync(clock):
            continue
        is_finished, is_interrupted, is_snapshot_due, signum = group.all_reduce_max(
            clock,
            clock.is_last_step or stop.is_out_of_time or (clock.is_epoch_end and learner.technique.has_converged),
            stop.should_interrupt(clock.completed_epochs),
            builder.is_due(clock),
            stop.signal or 0,
        )
        stop.set_signal(signum)
        is_ending = bool(is_finished or is_interrupted)
        if is_ending or is_snapshot_due:
            sink.record(builder.build(clock, is_finished=bool(is_finished), is_ending=is_ending))
        if is_ending:
            break
    return clock


def initialize_technique(learner: Learner, samples: Batches, seed: int) -> None:
    """Initialize the technique of a fresh run from the training split."""
    seed_generators(learner.device, seed, "begin")
    with torch.no_grad():
        learner.technique.initialize(samples)
    learner.reset_ema()


@contextmanager
def eval_mode(technique: Technique) -> Iterator[None]:
    """Put a technique in evaluation mode without gradients, and back."""
    modes = {module: module.training for module in technique.modules()}
    technique.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


class SnapshotBuilder:
    """Makes snapshots. Nothing it does can change a step: every step seeds itself."""

    def __init__(
        self, learner: Learner, material: RunData, config: TrainerConfig, seed: int, team: ProcessGroup
    ) -> None:
        self.learner, self.data, self.config, self.seed, self.group = learner, material, config, seed, team
        self._step_metrics: list[Metrics] = []
        self._epoch = 0
        self._epoch_values: dict[str, list[np.ndarray]] = {}  # metrics since this epoch began
        self._last_snapshot_time = self._last_checkpoint_time = time.monotonic()

    def add_metrics(self, metrics: Metrics) -> None:
        """Keep a step's metrics on the device until the next snapshot."""
        self._step_metrics.append(metrics)

    def build_initial(self, clock: Clock) -> Snapshot:
        """Return the snapshot before the first step; with its checkpoint a run resumes from its first moment."""
        return Snapshot(
            clock,
            images=self._render_preview() if self.config.preview_every else {},
            checkpoint=self._build_checkpoint(clock) if self.config.checkpoint_every else None,
        )

    def build_final(self, clock: Clock) -> Snapshot:
        """Return what is looked at once at the end of a run that is otherwise complete."""
        return Snapshot(clock, final_artifacts=self._build_final_artifacts())

    def is_due(self, clock: Clock) -> bool:
        """Return whether a snapshot should be made at `clock`."""
        if (
            len(self._step_metrics) >= METRICS_FLUSH_STEPS
            or time.monotonic() - self._last_snapshot_time >= METRICS_FLUSH_SECONDS
        ):
            return True
        intervals = (self.config.preview_every, self.config.evaluate_every)
        return any(self._is_interval_end(every, clock) for every in intervals) or self._is_checkpoint_due(clock)

    def build(self, clock: Clock, *, is_finished: bool, is_ending: bool) -> Snapshot:
        """Return what happened since the last snapshot, and whatever is due now.

        A run that is `done` is judged once more; one that is only `ending`, interrupted, is not: it will be
        resumed, and must then hold the same records as a run that was never stopped. Raises DivergenceError.
        """
        config, technique = self.config, self.learner.technique
        train = self._collect_curves(clock)
        should_evaluate = bool(config.evaluate_every) and (
            is_finished or self._is_interval_end(config.evaluate_every, clock)
        )
        should_preview = bool(config.preview_every) and (
            is_finished or self._is_interval_end(config.preview_every, clock)
        )
        means = self._compute_epoch_means(train, clock)
        warning = technique.diagnose(means) if means else None
        self._last_snapshot_time = time.monotonic()
        return Snapshot(
            clock,
            train,
            test=self._evaluate() if should_evaluate else {},
            images=self._render_preview() if should_preview else {},
            warnings=(warning,) if warning else (),
            checkpoint=self._build_checkpoint(clock) if is_ending or self._is_checkpoint_due(clock) else None,
            weights=dict(self.learner.eval_technique.state_dict()) if should_evaluate else None,
            final_artifacts=self._build_final_artifacts() if is_ending else None,
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

    def _compute_epoch_means(self, train: Mapping[str, Curve], clock: Clock) -> dict[str, float]:
        """Return the mean metrics of the epoch that ends at `clock`, however many blocks it had; else nothing."""
        if clock.epoch != self._epoch:
            self._epoch, self._epoch_values = clock.epoch, {}
        start_step = (clock.epoch - 1) * clock.steps_per_epoch
        for name, curve in train.items():
            self._epoch_values.setdefault(name, []).append(curve.values[curve.steps > start_step])
        if not clock.is_epoch_end:
            return {}
        return {
            name: float(values.mean())
            for name, parts in self._epoch_values.items()
            if len(values := np.concatenate(parts))
        }

    def _check_finite(self, curves: Mapping[str, Curve]) -> None:
        for loss, phase in self.learner.loss_phases.items():
            curve = curves.get(loss)
            if curve is None or np.isfinite(curve.values).all():
                continue
            first_nonfinite = int(np.flatnonzero(~np.isfinite(curve.values))[0])
            value, step = curve.values[first_nonfinite], curve.steps[first_nonfinite]
            raise DivergenceError(
                f"the {loss} of phase {phase} became {value} at step {step}; "
                f"lower optimizer.lr or set trainer.gradient_clip=1"
            )

    def _is_checkpoint_due(self, clock: Clock) -> bool:
        is_spaced = time.monotonic() - self._last_checkpoint_time >= self.config.checkpoint_spacing
        return is_spaced and self._is_interval_end(self.config.checkpoint_every, clock)

    def _build_checkpoint(self, clock: Clock) -> dict[str, Any]:
        self._last_checkpoint_time = time.monotonic()
        for name, weight in self.learner.technique.state_dict().items():
            # A step can have a finite loss and still leave unusable weights behind.
            if weight.is_floating_point() and not torch.isfinite(weight).all():
                raise DivergenceError(
                    f"{name} became NaN or infinite by step {clock.step}; "
                    f"lower optimizer.lr or set trainer.gradient_clip=1"
                )
        return {"step": clock.step, "epoch": clock.epoch, **self.learner.state_dict()}

    def _evaluate(self) -> dict[str, float]:
        with self._seeded_eval_mode("evaluate") as technique:
            return technique.evaluate(self.data.test)

    def _render_preview(self) -> dict[str, Tensor]:
        with self._seeded_eval_mode("preview") as technique:
            return {name: to_uint8(image) for name, image in technique.preview(self.data.examples).items()}

    def _build_final_artifacts(self) -> FinalArtifacts | None:
        if not self.group.is_rank_zero:
            return None
        with self._seeded_eval_mode("finale") as technique:
            gallery = {
                name: to_uint8(image) for name, image in technique.render_gallery(self.data.examples).items()
            }
            return FinalArtifacts(gallery, **_collect_latents(technique, self.data.test))

    @contextmanager
    def _seeded_eval_mode(self, purpose: str) -> Iterator[Technique]:
        # The same seed each time: noise and prior samples are the same from one look to the next.
        seed_generators(self.learner.device, self.seed, purpose)
        with eval_mode(self.learner.eval_technique):
            yield self.learner.eval_technique

    @staticmethod
    def _is_interval_end(interval: int, clock: Clock) -> bool:
        return bool(interval) and clock.is_epoch_end and clock.epoch % interval == 0


def to_uint8(image: Tensor) -> Tensor:
    """Return an image in [0, 1] as uint8 on the CPU."""
    return image.detach().float().mul(255).round().clamp(0, 255).to(torch.uint8).cpu()


def _collect_latents(technique: Technique, samples: Batches) -> dict[str, Tensor]:
    codes, labels, thumbnails = [], [], []
    count = 0
    for batch in samples:
        code = technique.encode(batch)
        if code is None:
            return {}
        codes.append(code.float().cpu())
        if "label" in batch:
            labels.append(batch["label"].cpu())
        if "image" in batch:
            thumbnails.append(to_uint8(batch["image"]))
        count += len(code)
        if count >= MAX_LATENT_SAMPLES:
            break
    parts = {"codes": codes, "labels": labels, "thumbnails": thumbnails}
    return {name: torch.cat(part)[:MAX_LATENT_SAMPLES] for name, part in parts.items() if part}
