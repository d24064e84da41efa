"""The training loop, on techniques small enough to check by hand."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from genexp.errors import DivergenceError
from genexp.run_dir.checkpoint import load_checkpoint, save_checkpoint
from genexp.snapshot import Snapshot
from genexp.technique import (
    Batch,
    Clock,
    Metrics,
    Technique,
)
from genexp.training import trainer as trainer_module
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import OPTIMIZERS, plan_optimizers
from genexp.training.stopping import StopRequest
from genexp.training.trainer import RunData, TrainerConfig, TrainingResult, eval_mode, train
from tests.support.assertions import assert_same
from tests.support.optimizers import LEARNING_RATES, load_optimizer_settings
from tests.support.toy_techniques import (
    CPU,
    STEPS_PER_EPOCH,
    ToyTechnique,
    TwoModuleTechnique,
    clone_tensors,
    make_learner,
)

CONFIG = TrainerConfig(
    epochs=3,
    early_stopping=None,
    min_improvement=0.0,
    epoch_steps=None,
    max_steps=None,
    init_from=None,
    time_budget=None,
    batch_size=2,
    accumulate=1,
    precision="fp32",
    compile=False,
    capture=False,
    gradient_clip=None,
    ema=0.0,
    evaluate_every=1,
    preview_every=1,
    checkpoint_every=1,
    checkpoint_spacing=0,
    keep_checkpoints=2,
    final_checkpoint="full",
    debug=False,
    deterministic=False,
    objective="height",
    direction="min",
    metrics=[],
    video="gif",
)


class StepNumberBatches:
    """Batch source whose values are the number of the step."""

    steps_per_epoch = STEPS_PER_EPOCH

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        step = first_step
        while True:
            yield {"point": torch.full((2, 1), float(step))}
            step += 1

    def close(self) -> None:
        """Do nothing: there is nothing to close."""


class SnapshotCollector:
    """Snapshot sink that keeps all snapshots."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def record(self, snapshot: Snapshot) -> None:
        """Keep a snapshot with copies of its tensors."""
        self.snapshots.append(replace(snapshot, checkpoint_state=clone_tensors(snapshot.checkpoint_state)))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return a training metric's steps and values over all blocks."""
        blocks = [snapshot.train_curves[name] for snapshot in self.snapshots if name in snapshot.train_curves]
        return (
            np.concatenate([block.steps for block in blocks]).tolist(),
            np.concatenate([block.values for block in blocks]).tolist(),
        )

    def steps_with(self, selector: Callable[[Snapshot], object]) -> list[int]:
        """Return the steps of the snapshots for which `selector` is true."""
        return [snapshot.clock.step for snapshot in self.snapshots if selector(snapshot)]


def train_technique(
    technique: Technique, *, start_step: int = 0, stop: StopRequest | None = None, seed: int = 0, **changes: Any
) -> tuple[SnapshotCollector, TrainingResult]:
    """Train, and return the collected snapshots and the result of the loop."""
    config = replace(CONFIG, **changes)
    learner = make_learner(technique, **vars(config.step_settings))
    return train_learner(learner, config, start_step=start_step, stop=stop, seed=seed)


def train_learner(
    learner: Learner, config: TrainerConfig, *, start_step: int = 0, stop: StopRequest | None = None, seed: int = 0
) -> tuple[SnapshotCollector, TrainingResult]:
    collector = SnapshotCollector()
    samples: list[Batch] = [{"point": torch.zeros(2, 1)}] * 3
    data = RunData(StepNumberBatches(), samples, samples, samples[0])
    result = train(learner, data, collector, config, stop or StopRequest(), seed=seed, completed_steps=start_step)
    return collector, result


@pytest.mark.parametrize("block", [1, 3, 50])
@pytest.mark.parametrize(("evaluate", "checkpoint"), [(0, 0), (1, 2), (3, 1)])
def test_metric_blocks_cover_every_step_once(
    block: int, evaluate: int, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_STEPS", block)
    collector, result = train_technique(
        ToyTechnique(), evaluate_every=evaluate, checkpoint_every=checkpoint, max_steps=11
    )
    steps, values = collector.column("value")
    assert result.clock.step == 11
    assert steps == list(range(1, 12))
    assert values == [float(step) for step in range(1, 12)]
    assert collector.column("loss")[0] == steps


def test_inactive_phase_has_no_metrics() -> None:
    collector, _ = train_technique(TwoModuleTechnique(), epochs=2, evaluate_every=0, preview_every=0)
    assert collector.column("left_loss")[0] == list(range(1, 9))
    assert collector.column("right_loss")[0] == [2, 4, 6, 8]
    assert collector.column("late_loss")[0] == [5, 6, 7, 8]
    assert collector.column("batches")[0] == [4, 8]


@pytest.mark.parametrize("block", [1, 3, 50])
def test_diagnose_receives_epoch_means(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_STEPS", block)

    class DiagnosedTechnique(ToyTechnique):
        def diagnose(self, metrics: Mapping[str, float]) -> str | None:
            return f"{metrics['value']:g}"

    collector, _ = train_technique(DiagnosedTechnique())
    warnings = {snapshot.clock.step: snapshot.progress.warnings for snapshot in collector.snapshots}
    # The values are the step numbers: 1 to 4, 5 to 8, 9 to 12.
    assert (warnings[4], warnings[8], warnings[12]) == (("2.5",), ("2.5", "6.5"), ("2.5", "6.5", "10.5"))


def test_diagnose_receives_the_test_metrics_of_an_epoch_with_an_evaluation() -> None:
    class DiagnosedTechnique(ToyTechnique):
        def diagnose(self, metrics: Mapping[str, float]) -> str | None:
            return f"{metrics.get('test/height', 'none')} {metrics['value']:g}"

    collector, _ = train_technique(DiagnosedTechnique(), evaluate_every=2)
    warnings = collector.snapshots[-1].progress.warnings
    heights = {
        snapshot.clock.epoch: snapshot.test_metrics["height"]
        for snapshot in collector.snapshots
        if snapshot.test_metrics
    }
    assert warnings == ("none 2.5", f"{heights[2]} 6.5", f"{heights[3]} 10.5")


def test_metric_block_is_flushed_after_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_SECONDS", 0.0)
    collector, _ = train_technique(
        ToyTechnique(), evaluate_every=0, preview_every=0, checkpoint_every=0, max_steps=5
    )
    assert [list(snapshot.train_curves["loss"].steps) for snapshot in collector.snapshots[1:]] == [
        [1],
        [2],
        [3],
        [4],
        [5],
    ]


def test_intervals_count_epochs_and_the_last_step_is_always_evaluated() -> None:
    collector, result = train_technique(
        ToyTechnique(), epochs=5, evaluate_every=2, preview_every=3, checkpoint_every=4
    )
    assert (result.clock.step, result.clock.is_last_step) == (20, True)
    assert collector.steps_with(lambda snapshot: snapshot.test_metrics) == [8, 16, 20]
    assert collector.steps_with(lambda snapshot: snapshot.technique_state) == [8, 16, 20]
    assert collector.steps_with(lambda snapshot: snapshot.preview_images) == [0, 12, 20]
    assert collector.steps_with(lambda snapshot: snapshot.final_artifacts) == [20]
    assert {16, 20} <= set(collector.steps_with(lambda snapshot: snapshot.checkpoint_state)) <= {0, 16, 20}


def test_zero_intervals_disable_evaluation_previews_and_checkpoints() -> None:
    toy = ToyTechnique()
    collector, _ = train_technique(toy, evaluate_every=0, preview_every=0, checkpoint_every=0)
    assert toy.calls == ["gallery"]
    assert not collector.steps_with(lambda snapshot: snapshot.test_metrics or snapshot.preview_images)
    assert collector.snapshots[-1].checkpoint_state is not None, "the end of a run has no checkpoint"


def test_checkpoint_spacing_limits_checkpoints() -> None:
    collector, _ = train_technique(ToyTechnique(), checkpoint_spacing=3600.0)
    assert set(collector.steps_with(lambda snapshot: snapshot.checkpoint_state)) <= {0, 12}


def test_evaluation_uses_fixed_randomness_and_does_not_change_training() -> None:
    evaluated, _ = train_technique(ToyTechnique())
    unevaluated, _ = train_technique(ToyTechnique(), evaluate_every=0, preview_every=0)
    assert len({snapshot.test_metrics["noise"] for snapshot in evaluated.snapshots if snapshot.test_metrics}) == 1
    first, *others = (
        snapshot.preview_images["noise"] for snapshot in evaluated.snapshots if snapshot.preview_images
    )
    assert all(torch.equal(first, other) for other in others)
    assert evaluated.column("noise") == unevaluated.column("noise")
    other_seed, _ = train_technique(ToyTechnique(), seed=1)
    assert evaluated.column("noise") != other_seed.column("noise")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_run_resumed_from_any_checkpoint_equals_uninterrupted_run(ema: float) -> None:
    config = replace(CONFIG, ema=ema)
    uninterrupted, _ = train_technique(ToyTechnique(), ema=ema)
    for snapshot in uninterrupted.snapshots[:-1]:
        if snapshot.checkpoint_state is None or not snapshot.clock.step:
            continue
        learner = make_learner(ToyTechnique(), ema=ema)
        learner.load_state_dict(snapshot.checkpoint_state)
        resumed, _ = train_learner(learner, config, start_step=snapshot.clock.step)
        assert_same(
            clone_tensors(resumed.snapshots[-1].checkpoint_state), uninterrupted.snapshots[-1].checkpoint_state
        )
        assert resumed.snapshots[-1].test_metrics == uninterrupted.snapshots[-1].test_metrics
        steps, noise = uninterrupted.column("noise")
        left = steps.index(snapshot.clock.step) + 1
        assert resumed.column("noise") == (steps[left:], noise[left:])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_exactly_from_a_file(name: str, tmp_path: Path) -> None:
    rate = {"lr": LEARNING_RATES[name] / 10, "schedule": "linear", "warmup_steps": 3}
    plan = plan_optimizers({**load_optimizer_settings(name), **rate})

    def learner() -> Learner:
        return Learner(ToyTechnique(), plan, StepSettings(ema=0.5, gradient_clip=5.0), CPU)

    config = replace(CONFIG, ema=0.5)
    uninterrupted, _ = train_learner(learner(), config)
    (middle,) = (snapshot.checkpoint_state for snapshot in uninterrupted.snapshots if snapshot.clock.step == 8)
    assert middle is not None
    save_checkpoint(tmp_path / "state.pt", middle)
    resumed = learner()
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    collector, _ = train_learner(resumed, config, start_step=8)
    assert_same(
        clone_tensors(collector.snapshots[-1].checkpoint_state), uninterrupted.snapshots[-1].checkpoint_state
    )
    steps, losses = uninterrupted.column("loss")
    assert collector.column("loss") == (steps[8:], losses[8:])


def test_only_a_fresh_run_is_initialized_from_its_data() -> None:
    fresh, resumed = ToyTechnique(), ToyTechnique()
    train_technique(fresh)
    train_technique(resumed, start_step=4)
    assert (fresh.num_initial_samples.item(), resumed.num_initial_samples.item()) == (3, 0)


def test_run_killed_after_its_last_step_still_renders_final_artifacts() -> None:
    toy = ToyTechnique()
    collector, result = train_technique(toy, start_step=12)
    (snapshot,) = collector.snapshots
    assert result.clock.is_last_step
    assert snapshot.final_artifacts is not None
    assert toy.num_loss_calls == 0


def test_gallery_images_are_uint8() -> None:
    collector, _ = train_technique(ToyTechnique())
    finale = collector.snapshots[-1].final_artifacts
    assert finale is not None
    assert finale.gallery["last"].tolist() == [[[0, 128, 255]]]
    assert finale.gallery["last"].dtype == torch.uint8


def test_signal_ends_the_run_after_the_step_without_evaluation() -> None:
    class SignalingTechnique(ToyTechnique):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            if clock.step == 6:
                stop.handle_signal(signal.SIGTERM, None)
            return super().loss(batch, clock)

    stop = StopRequest()
    collector, result = train_technique(SignalingTechnique(), stop=stop)
    assert (result.clock.step, result.is_finished) == (6, False)
    last = collector.snapshots[-1]
    assert last.checkpoint_state is not None
    assert (last.checkpoint_state["step"], dict(last.test_metrics), dict(last.preview_images)) == (6, {}, {})


def collect_losses(heard: SnapshotCollector) -> list[float]:
    return [
        value
        for shot in heard.snapshots
        if "loss" in shot.train_curves
        for value in shot.train_curves["loss"].values
    ]


def test_halting_at_an_epoch_does_not_change_training() -> None:
    uninterrupted, _ = train_technique(ToyTechnique())
    learner, start, train = make_learner(ToyTechnique(), **vars(CONFIG.step_settings)), 0, []
    for until_epoch, ends in ((2, 8), (2, 8), (None, 12)):  # the second call has no step left
        collector, result = train_learner(
            learner, CONFIG, start_step=start, stop=StopRequest(until_epoch=until_epoch)
        )
        start = result.clock.step
        assert start == ends
        train += collect_losses(collector)
    assert train == collect_losses(uninterrupted)


def test_exhausted_time_budget_interrupts_the_run_with_a_checkpoint() -> None:
    collector, result = train_technique(ToyTechnique(), stop=StopRequest(time_budget=0.0))
    last = collector.snapshots[-1]
    assert (result.clock.step, result.is_finished) == (1, False)
    assert not last.test_metrics
    assert not last.is_complete
    assert last.checkpoint_state is not None


def test_converged_technique_ends_the_run_at_the_end_of_the_epoch() -> None:
    toy = ToyTechnique()
    toy.max_loss_calls = 5
    _, result = train_technique(toy, epochs=100)
    assert (result.clock.step, result.is_finished) == (8, True)
    # Killed after this checkpoint, the run is complete and takes no further step.
    collector, result = train_technique(toy, epochs=100, start_step=8)
    assert (result.clock.step, result.is_finished) == (8, True)
    (snapshot,) = collector.snapshots
    assert snapshot.is_complete


def test_max_steps_ends_earlier_than_epochs_but_not_later() -> None:
    assert train_technique(ToyTechnique(), max_steps=7)[1].clock.step == 7
    assert train_technique(ToyTechnique(), max_steps=700)[1].clock.step == 12


class DivergingTechnique(ToyTechnique):
    """Toy technique with a nonfinite loss at one step."""

    def __init__(self, step: int, loss: float = float("nan"), metric: float = 0.0) -> None:
        super().__init__()
        self.failing_step, self.loss_factor, self.metric_value = step, loss, metric

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        loss, metrics = super().loss(batch, clock)
        return (loss * self.loss_factor if clock.step == self.failing_step else loss), {
            **metrics,
            "metric": torch.tensor(self.metric_value),
        }


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("step", [1, 6, 12])
def test_nonfinite_loss_is_reported_with_its_step_and_phase(value: str, step: int) -> None:
    collector = SnapshotCollector()
    learner = make_learner(DivergingTechnique(step, float(value)))
    samples: list[Batch] = [{"point": torch.zeros(2, 1)}]
    data = RunData(StepNumberBatches(), samples, samples, samples[0])
    with pytest.raises(DivergenceError, match=rf"the loss of phase fall became {value} at step {step}\."):
        train(learner, data, collector, CONFIG, StopRequest(), seed=0)
    saved = [
        snapshot.checkpoint_state for snapshot in collector.snapshots if snapshot.checkpoint_state is not None
    ]
    assert all(state["step"] < step for state in saved)


def test_diverged_phase_is_reported() -> None:
    class DivergingSecondPhase(TwoModuleTechnique):
        def right_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            loss, metrics = super().right_loss(batch, clock)
            return loss * (float("nan") if clock.step == 4 else 1), metrics

    with pytest.raises(DivergenceError, match="the right_loss of phase right became nan at step 4"):
        train_technique(DivergingSecondPhase(), evaluate_every=0, preview_every=0)


def test_nonfinite_metric_does_not_stop_the_run() -> None:
    _, result = train_technique(DivergingTechnique(99, metric=float("nan")))
    assert result.is_finished


def test_nonfinite_weights_are_not_saved() -> None:
    class OverflowingTechnique(ToyTechnique):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            loss, metrics = super().loss(batch, clock)
            # A finite loss with an infinite gradient.
            spike = (self.point.weight - self.point.weight.detach()).abs().sum().sqrt()
            return loss + (spike if clock.step == 8 else 0), metrics

    with pytest.raises(DivergenceError, match=r"point\.weight became NaN or infinite by step 8"):
        train_technique(OverflowingTechnique())


def test_eval_mode_restores_the_mode_of_every_module() -> None:
    toy = ToyTechnique()
    assert toy.training
    assert not toy.frozen.training
    with eval_mode(toy):
        assert not any(module.training for module in toy.modules())
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert {name for name, module in toy.named_modules() if not module.training} == {"frozen"}
    with pytest.raises(ZeroDivisionError), eval_mode(toy):
        raise ZeroDivisionError
    assert toy.training
    train_technique(toy)
    assert {name for name, module in toy.named_modules() if not module.training} == {"frozen"}


def test_loop_returns_its_latest_scores_and_the_objective() -> None:
    collector, result = train_technique(ToyTechnique(), epochs=3, evaluate_every=2, objective="test/height")
    assert result.test_metrics == collector.snapshots[-1].test_metrics
    assert result.objective_value == result.test_metrics["height"]
    _, unevaluated = train_technique(ToyTechnique(), evaluate_every=0, objective="height")
    assert (unevaluated.test_metrics, unevaluated.objective_value) == ({}, None)
