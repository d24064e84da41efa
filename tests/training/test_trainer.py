"""The loop and one step of it, on techniques small enough to check by hand."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from genexp.device import has_bf16_matmul, use_bf16_matmul, use_deterministic_algorithms
from genexp.errors import CheckpointError, ConfigError, DivergenceError
from genexp.run_dir.checkpoint import load_checkpoint, save_checkpoint
from genexp.snapshot import Snapshot
from genexp.technique import (
    Batch,
    Batches,
    Clock,
    ClosedFormPhase,
    GradientPhase,
    Metrics,
    Phase,
    Technique,
    detach_metrics,
)
from genexp.training import trainer as trainer_module
from genexp.training.learner import EMA, Learner, StepSettings, resolve_precision
from genexp.training.optimizers import OPTIMIZERS, OptimizerPlan
from genexp.training.stopping import StopRequest, stop_on_signals
from genexp.training.trainer import RunData, TrainerConfig, eval_mode, train
from tests.support.assertions import assert_same
from tests.support.command import read_metrics_log, run_dir_override, run_genexp
from tests.support.compose import tiny_overrides
from tests.support.optimizers import LEARNING_RATES, load_optimizer_settings

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 4  # steps
SCHEDULE = {"schedule": "constant", "warmup_steps": 0, "decay_start": 0.0}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **SCHEDULE}
CONFIG = TrainerConfig(
    epochs=3,
    max_steps=None,
    time_budget=None,
    batch_size=2,
    precision="fp32",
    capture=False,
    gradient_clip=None,
    ema=0.0,
    evaluate_every=1,
    preview_every=1,
    checkpoint_every=1,
    checkpoint_spacing=0,
    keep_checkpoints=2,
    deterministic=False,
    objective="height",
    direction="min",
)


class ToyTechnique(Technique):
    """A point that falls towards the batch's values, and what is asked of a technique besides."""

    name = "toy"
    objective = "height"

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.point = nn.Linear(1, size, bias=False)
        nn.init.constant_(self.point.weight, 5.0)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(size).eval()
        self.register_buffer("num_initial_samples", torch.zeros(()))
        self.register_buffer("num_loss_calls", torch.zeros(()))
        self.num_loss_calls: Tensor
        self.num_initial_samples: Tensor
        self.stop_at: int | None = None
        self.calls: list[str] = []

    def phases(self) -> tuple[Phase, ...]:
        return (GradientPhase("fall", self.point, self.loss),)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        away = self.point.weight.T - batch["point"]  # (batch, size)
        self.num_loss_calls += 1
        loss = away.square().sum(1).mean()
        return loss, detach_metrics(noise=torch.rand(()), value=batch["point"].mean())

    def initialize(self, train_batches: Batches) -> None:
        self.num_initial_samples += len(list(train_batches))

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        self.calls.append("evaluate")
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"height": self.point.weight.square().sum().item(), "noise": torch.rand(()).item()}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        self.calls.append("preview")
        return {"noise": torch.rand(1, 2, 2)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        self.calls.append("gallery")
        return {"last": torch.tensor([[[0.0, 0.5, 2.0]]])}

    @property
    def has_converged(self) -> bool:
        return self.stop_at is not None and self.num_loss_calls.item() >= self.stop_at


class StepNumberBatches:
    """Batches whose values tell their step."""

    steps_per_epoch = STEPS_PER_EPOCH

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        step = first_step
        while True:
            yield {"point": torch.full((2, 1), float(step))}
            step += 1

    def close(self) -> None:
        """Nothing to close."""


class SnapshotCollector:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def record(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, with the tensors as they are now."""
        self.snapshots.append(replace(snapshot, checkpoint_state=clone_tensors(snapshot.checkpoint_state)))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return a training metric's steps and values over all blocks."""
        blocks = [snapshot.train_curves[name] for snapshot in self.snapshots if name in snapshot.train_curves]
        return (
            np.concatenate([block.steps for block in blocks]).tolist(),
            np.concatenate([block.values for block in blocks]).tolist(),
        )

    def steps_with(self, selector: Callable[[Snapshot], object]) -> list[int]:
        """Return the steps of the snapshots that have something."""
        return [snapshot.clock.step for snapshot in self.snapshots if selector(snapshot)]


def clone_tensors(value: Any) -> Any:
    """Return nested values with copies of their tensors, which would go on changing."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: clone_tensors(item) for key, item in value.items()}
    return [clone_tensors(item) for item in value] if isinstance(value, list) else value


def make_learner(
    technique: Technique, phases: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> Learner:
    return Learner(technique, OptimizerPlan(SGD, phases or {}), StepSettings(**settings), CPU)


def train_technique(
    technique: Technique, *, start_step: int = 0, stop: StopRequest | None = None, seed: int = 0, **changes: Any
) -> tuple[SnapshotCollector, Clock]:
    """Train, and return what was heard and where it ended."""
    config = replace(CONFIG, **changes)
    learner = make_learner(technique, **vars(config.step_settings))
    return train_learner(learner, config, start_step=start_step, stop=stop, seed=seed)


def train_learner(
    learner: Learner, config: TrainerConfig, *, start_step: int = 0, stop: StopRequest | None = None, seed: int = 0
) -> tuple[SnapshotCollector, Clock]:
    collector = SnapshotCollector()
    samples: list[Batch] = [{"point": torch.zeros(2, 1)}] * 3
    data = RunData(StepNumberBatches(), samples, samples, samples[0])
    clock = train(learner, data, collector, config, stop or StopRequest(), seed=seed, completed_steps=start_step)
    return collector, clock


# --- One step.


def run_step(learner: Learner, step: int = 1, *, value: float = 0.0) -> Metrics:
    batch = {"point": torch.full((2, 1), value)}
    return learner.step(batch, [batch, batch], Clock(step, 100, STEPS_PER_EPOCH))


@pytest.mark.parametrize("clip", [0.01, 1.0, 1e6])
def test_clipping_limits_the_gradient_and_reports_the_original_norm(clip: float) -> None:
    toy = ToyTechnique()
    before = toy.point.weight.detach().clone()
    metrics = run_step(make_learner(toy, gradient_clip=clip))
    full_norm = torch.full((3,), 2 * 5.0).norm().item()  # of Σ(5 - 0)², a derivative of 2 · 5 each
    moved = (toy.point.weight.detach() - before).norm().item() / 0.1
    assert metrics["fall_gradient_norm"].item() == pytest.approx(full_norm)
    assert moved == pytest.approx(min(clip, full_norm), rel=1e-3)


def test_gradient_norm_is_not_computed_without_clipping() -> None:
    assert set(run_step(make_learner(ToyTechnique()))) == {"loss", "noise", "value"}


def test_ema_matches_a_manual_computation() -> None:
    toy = ToyTechnique()
    learner = make_learner(toy, ema=0.9)
    eval_technique = learner.eval_technique
    assert isinstance(eval_technique, ToyTechnique)
    expected = toy.point.weight.detach().clone()
    for step in range(1, 101):
        run_step(learner, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * toy.point.weight.detach()
        torch.testing.assert_close(eval_technique.point.weight.detach(), expected)
    assert not torch.equal(eval_technique.point.weight, toy.point.weight)
    assert eval_technique.num_loss_calls == toy.num_loss_calls == 100  # a buffer is copied, not averaged
    assert not any(weight.requires_grad for weight in eval_technique.parameters())


def test_eval_technique_is_the_technique_without_ema() -> None:
    toy = ToyTechnique()
    assert make_learner(toy).eval_technique is toy


def test_reset_ema_copies_the_initialized_weights() -> None:
    learner = make_learner(ToyTechnique(), ema=0.999)
    with torch.no_grad():
        next(learner.technique.parameters()).fill_(100.0)
    learner.reset_ema()
    assert next(learner.eval_technique.parameters()).mean() == 100.0


def test_ema_accepts_a_technique_without_parameters() -> None:
    class Counter(Technique):
        name = "counter"
        objective = "none"

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.count: Tensor

        def phases(self) -> tuple[Phase, ...]:
            return (ClosedFormPhase("count", lambda batch, clock: {"count": self.count.add_(1)}),)

    counter = Counter()
    average = EMA(counter, 0.9)
    make_learner(counter).step({}, [], Clock(1, 2, 1))
    average.update(counter, Clock(1, 2, 1))
    assert average.technique.get_buffer("count") == 1


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32() -> None:
    dtypes: set[torch.dtype] = set()

    class DtypeRecorder(ToyTechnique):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            out = self.point(batch["point"])
            dtypes.add(out.dtype)
            return out.float().square().mean(), {}

    toy = DtypeRecorder()
    learner = make_learner(toy, precision="bf16")
    losses = [run_step(learner, step, value=1.0)["loss"].item() for step in range(1, 30)]
    assert dtypes == {torch.bfloat16}
    assert toy.point.weight.dtype == torch.float32
    assert losses[-1] < 0.1 * losses[0]


def test_bf32_uses_bf16_matmul_only_in_gradient_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    seen: list[tuple[str, str]] = []
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

    def record_precision(where: str) -> None:
        seen.append((where, matmul.fp32_precision))

    class PrecisionRecorder(ToyTechnique):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            out = self.point(batch["point"])
            out.register_hook(lambda gradient: record_precision(f"gradient {gradient.dtype}"))
            record_precision(f"loss {out.dtype}")
            return out.square().mean(), {}

        def phases(self) -> tuple[Phase, ...]:
            return (*super().phases(), ClosedFormPhase("refit", self.refit, every=1, is_full_batch=False))

        def refit(self, batch: Batch, clock: Clock) -> Metrics:
            record_precision("refit")
            return {}

    before = matmul.fp32_precision
    run_step(make_learner(PrecisionRecorder(), precision="bf32"), 1, value=1.0)
    assert seen == [("loss torch.float32", "bf16"), ("gradient torch.float32", "bf16"), ("refit", before)]
    assert matmul.fp32_precision == before != "bf16"


@pytest.mark.skipif(not has_bf16_matmul(CPU), reason="this processor has no instructions for matrices of bf16")
def test_bf16_matmul_accumulates_in_fp32() -> None:
    left, right = torch.randn(400, 300), torch.randn(300, 400)  # torch 2.11 multiplies smaller ones in full
    exact = left.double() @ right.double()
    with use_bf16_matmul():
        found = left @ right
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    assert (found - rounded).abs().max() < 1e-4 < (found - exact).abs().max()


@pytest.mark.parametrize(
    ("instructions", "auto", "amx", "bf32"),
    [
        ("avx512_f", "fp32", "fp32", "fp32"),
        ("avx512_bf16", "bf16", "fp32", "fp32"),
        ("amx_bf16", "bf16", "bf16", "bf32"),
    ],
)
def test_precision_is_resolved_from_cpu_instructions(
    instructions: str, auto: str, amx: str, bf32: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {instructions: True, "amx_int8": True})
    assert make_learner(ToyTechnique(), precision="auto").precision == auto
    assert make_learner(ToyTechnique(), precision="amx").precision == amx
    assert make_learner(ToyTechnique(), precision="bf32").precision == bf32
    assert make_learner(ToyTechnique(), precision="fp32").precision == "fp32"
    assert resolve_precision("auto", torch.device("cuda")) == "fp32"
    monkeypatch.setattr("torch.get_default_dtype", lambda: torch.float64)
    assert resolve_precision("auto", CPU) == "fp32", "who asks for doubles wants them"


class TwoModuleTechnique(Technique):
    """Two players and a count, which take turns."""

    name = "pair"
    objective = "none"

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 2), nn.Linear(2, 2)
        self.calls: list[str] = []

    def phases(self) -> tuple[Phase, ...]:
        return (
            GradientPhase("left", self.left, self.left_loss),
            GradientPhase("right", self.right, self.right_loss, every=2),
            ClosedFormPhase("count", self.count, every=3),
            ClosedFormPhase("all", self.count_batches, every=STEPS_PER_EPOCH, is_full_batch=True),
            GradientPhase("late", self.left, self.left_loss, is_active=lambda clock: clock.epoch > 1),
        )

    def combined_output(self) -> Tensor:
        return self.right(self.left(torch.ones(1, 2))).square().sum()

    def left_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        self.calls.append("left" if clock.epoch == 1 else "left or late")
        # Gradients reach the other player's activations, and must not stay in its weights.
        return self.combined_output(), {}

    def right_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        assert all(weight.grad is None for weight in self.right.parameters()) or clock.step > 2
        self.calls.append("right")
        return -self.combined_output(), {}

    def count(self, batch: Batch, clock: Clock) -> Metrics:
        assert not torch.is_grad_enabled()
        assert set(batch) == {"point"}
        self.calls.append("count")
        return {}

    def count_batches(self, batches: Batches, clock: Clock) -> Metrics:
        assert len(list(batches)) == len(list(batches)) > 1
        self.calls.append("all")
        return {"batches": torch.tensor(2.0)}


def test_phases_run_in_order_at_their_intervals() -> None:
    pair = TwoModuleTechnique()
    learner = make_learner(pair)
    metric_names = []
    for step in range(1, 7):
        metric_names.append(set(run_step(learner, step)))
        pair.calls.append("|")
    steps = "".join(call[0] if call != "|" else call for call in pair.calls).split("|")
    assert steps[:6] == ["l", "lr", "lc", "lra", "ll", "lrcl"]
    assert metric_names[0] == {"left_loss"}  # with several descents, each loss bears its phase's name
    assert metric_names[1] == {"left_loss", "right_loss"}
    assert metric_names[3] == {"left_loss", "right_loss", "batches"}
    assert metric_names[4] == {"left_loss", "late_loss"}
    assert learner.phase_by_loss == {"left_loss": "left", "right_loss": "right", "late_loss": "late"}


def test_phase_leaves_gradients_only_in_its_module() -> None:
    pair = TwoModuleTechnique()
    learner = make_learner(pair)
    before = {name: weight.clone() for name, weight in pair.right.state_dict().items()}
    run_step(learner, 1)
    assert all(weight.grad is not None for weight in pair.left.parameters())
    assert all(weight.grad is None for weight in pair.right.parameters())
    assert_same(dict(pair.right.state_dict()), before)


def test_each_phase_has_its_own_optimizer() -> None:
    learner = make_learner(TwoModuleTechnique(), {"right": {"lr": 0.0625}, "late": {"momentum": 0.5}})
    run_step(learner, 2)
    groups = {name: state["param_groups"][0] for name, state in learner.state_dict()["optimizers"].items()}
    assert {name: group["lr"] for name, group in groups.items()} == {"left": 0.1, "right": 0.0625, "late": 0.1}
    assert {name: group["momentum"] for name, group in groups.items()} == {"left": 0, "right": 0, "late": 0.5}


def test_optimizer_settings_of_an_unknown_phase_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.middle names no phase of this model"):
        make_learner(TwoModuleTechnique(), {"middle": {"lr": 1.0}})


def test_lbfgs_reports_the_metrics_of_its_first_evaluation() -> None:
    toy = ToyTechnique()
    lbfgs = {"name": "lbfgs", "lr": 0.1, "max_iter": 5, "history_size": 10, "line_search_fn": None, **SCHEDULE}
    learner = Learner(toy, OptimizerPlan(lbfgs, {}), StepSettings(gradient_clip=1e9), CPU)
    metrics = run_step(learner)
    assert toy.num_loss_calls == 5
    # The first call's: where the step begins.
    assert metrics["loss"].item() == pytest.approx(3 * 25.0)
    assert metrics["fall_gradient_norm"].item() == pytest.approx(3**0.5 * 10)


def test_learner_state_can_be_restored() -> None:
    first, second = make_learner(ToyTechnique(), ema=0.5), make_learner(ToyTechnique(), ema=0.5)
    for step in range(1, 4):
        run_step(first, step)
    second.load_state_dict(clone_tensors(first.state_dict()))
    run_step(first, 4)
    run_step(second, 4)
    first_state, second_state = first.state_dict(), second.state_dict()
    assert_same(first_state["optimizers"], second_state["optimizers"])
    assert_same(first_state["technique"]["point.weight"], second_state["technique"]["point.weight"])
    assert_same(first_state["average"], second_state["average"])


def test_state_of_another_model_is_rejected_with_one_line() -> None:
    state = make_learner(ToyTechnique(size=4)).state_dict()
    with pytest.raises(CheckpointError, match="not one of this model and optimizer") as excinfo:
        make_learner(ToyTechnique(size=3)).load_state_dict(state)
    assert "\n" not in str(excinfo.value)
    with pytest.raises(CheckpointError):
        make_learner(ToyTechnique(size=4), ema=0.5).load_state_dict(state)


# --- The loop.


@pytest.mark.parametrize("block", [1, 3, 50])
@pytest.mark.parametrize(("evaluate", "checkpoint"), [(0, 0), (1, 2), (3, 1)])
def test_metric_blocks_cover_every_step_once(
    block: int, evaluate: int, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_STEPS", block)
    collector, clock = train_technique(
        ToyTechnique(), evaluate_every=evaluate, checkpoint_every=checkpoint, max_steps=11
    )
    steps, values = collector.column("value")
    assert clock.step == 11
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
    warnings = [(snapshot.clock.step, *snapshot.warnings) for snapshot in collector.snapshots if snapshot.warnings]
    # The values are the steps' numbers: 1 to 4, 5 to 8, 9 to 12.
    assert warnings == [(4, "2.5"), (8, "6.5"), (12, "10.5")]


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
    collector, clock = train_technique(
        ToyTechnique(), epochs=5, evaluate_every=2, preview_every=3, checkpoint_every=4
    )
    assert (clock.step, clock.is_last_step) == (20, True)
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
    assert collector.snapshots[-1].checkpoint_state is not None, "a run that ends is saved"


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
    plan = OptimizerPlan({**load_optimizer_settings(name), **rate}, {})

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
    collector, clock = train_technique(toy, start_step=12)
    (snapshot,) = collector.snapshots
    assert clock.is_last_step
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
    collector, clock = train_technique(SignalingTechnique(), stop=stop)
    assert (clock.step, clock.is_last_step) == (6, False)
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
    for until_epoch, ends in ((2, 8), (2, 8), (None, 12)):  # the second time nothing is left to do
        collector, clock = train_learner(
            learner, CONFIG, start_step=start, stop=StopRequest(until_epoch=until_epoch)
        )
        start = clock.step
        assert start == ends
        train += collect_losses(collector)
    assert train == collect_losses(uninterrupted)


def test_exhausted_time_budget_ends_the_run_with_evaluation_and_checkpoint() -> None:
    collector, clock = train_technique(ToyTechnique(), stop=StopRequest(time_budget=0.0))
    assert clock.step == 1
    assert collector.snapshots[-1].test_metrics
    assert collector.snapshots[-1].checkpoint_state is not None


def test_converged_technique_ends_the_run_at_the_end_of_the_epoch() -> None:
    toy = ToyTechnique()
    toy.stop_at = 5
    _, clock = train_technique(toy, epochs=100)
    assert clock.step == 8


def test_max_steps_ends_earlier_than_epochs_but_not_later() -> None:
    assert train_technique(ToyTechnique(), max_steps=7)[1].step == 7
    assert train_technique(ToyTechnique(), max_steps=700)[1].step == 12


class DivergingTechnique(ToyTechnique):
    """Goes wrong at one step."""

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
    with pytest.raises(DivergenceError, match=rf"the loss of phase fall became {value} at step {step};"):
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
    _, clock = train_technique(DivergingTechnique(99, metric=float("nan")))
    assert clock.is_last_step


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


# --- Around the loop.


def test_signals_are_handled_only_inside_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(None) as stop:
        assert stop.received_signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_second_interrupt_exits_immediately(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    notifications: list[str] = []
    with stop_on_signals(on_signal=lambda: notifications.append("once")) as stop:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received_signal, exits) == (signal.SIGUSR2, [])
        signal.raise_signal(signal.SIGINT)
    assert exits == [130]
    assert notifications == ["once"]


def test_time_budget_expires_after_its_seconds() -> None:
    assert not StopRequest().is_out_of_time
    assert not StopRequest(time_budget=3600).is_out_of_time
    assert StopRequest(time_budget=0).is_out_of_time


def test_deterministic_algorithms_are_enabled_and_disabled() -> None:
    try:
        use_deterministic_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_mode_does_not_change_cpu_runs(tmp_path: Path) -> None:
    short = (
        *tiny_overrides("conv_autoencoder"),
        "trainer.max_steps=2",
        "trainer.evaluate_every=0",
        "trainer.preview_every=0",
    )
    for choice in ("true", "false"):
        result = run_genexp(*short, f"trainer.deterministic={choice}", run_dir_override(tmp_path / choice))
        assert result.exit_code == 0, result.stderr
        assert not torch.are_deterministic_algorithms_enabled() or choice == "true"
    assert read_metrics_log(tmp_path / "true") == read_metrics_log(tmp_path / "false")
