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
from tests.support.command import assert_same, genexp, in_folder, metrics
from tests.support.compose import tiny
from tests.support.optimizers import RATES, settings_of

CPU = torch.device("cpu")
EPOCH = 4  # steps
STEADY = {"schedule": "constant", "warmup_steps": 0, "decay_start": 0.0}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **STEADY}
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


class Toy(Technique):
    """A point that falls towards the batch's values, and what is asked of a technique besides."""

    name = "toy"
    objective = "height"

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.point = nn.Linear(1, size, bias=False)
        nn.init.constant_(self.point.weight, 5.0)
        self.dropout = nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(size).eval()
        self.register_buffer("begun", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))
        self.seen: Tensor
        self.begun: Tensor
        self.stop_at: int | None = None
        self.looks: list[str] = []

    def phases(self) -> tuple[Phase, ...]:
        return (GradientPhase("fall", self.point, self.loss),)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        away = self.point.weight.T - batch["point"]  # (batch, size)
        self.seen += 1
        loss = away.square().sum(1).mean()
        return loss, detach_metrics(noise=torch.rand(()), value=batch["point"].mean())

    def initialize(self, train_batches: Batches) -> None:
        self.begun += len(list(train_batches))

    def evaluate(self, test_batches: Batches) -> dict[str, float]:
        self.looks.append("evaluate")
        assert not self.training
        assert not torch.is_grad_enabled()
        return {"height": self.point.weight.square().sum().item(), "noise": torch.rand(()).item()}

    def preview(self, examples: Batch) -> dict[str, Tensor]:
        self.looks.append("preview")
        return {"noise": torch.rand(1, 2, 2)}

    def render_gallery(self, examples: Batch) -> dict[str, Tensor]:
        self.looks.append("gallery")
        return {"last": torch.tensor([[[0.0, 0.5, 2.0]]])}

    @property
    def has_converged(self) -> bool:
        return self.stop_at is not None and self.seen.item() >= self.stop_at


class Values:
    """Batches whose values tell their step."""

    steps_per_epoch = EPOCH

    def iter_batches(self, first_step: int) -> Iterator[Batch]:
        step = first_step
        while True:
            yield {"point": torch.full((2, 1), float(step))}
            step += 1

    def close(self) -> None:
        """Nothing to close."""


class Heard:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []

    def record(self, snapshot: Snapshot) -> None:
        """Keep a snapshot, with the tensors as they are now."""
        self.snapshots.append(replace(snapshot, checkpoint_state=copied(snapshot.checkpoint_state)))

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Return a training metric's steps and values over all blocks."""
        blocks = [snapshot.train_curves[name] for snapshot in self.snapshots if name in snapshot.train_curves]
        return (
            np.concatenate([block.steps for block in blocks]).tolist(),
            np.concatenate([block.values for block in blocks]).tolist(),
        )

    def steps(self, of: Callable[[Snapshot], object]) -> list[int]:
        """Return the steps of the snapshots that have something."""
        return [snapshot.clock.step for snapshot in self.snapshots if of(snapshot)]


def copied(value: Any) -> Any:
    """Return nested values with copies of their tensors, which would go on changing."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def taught(technique: Technique, phases: dict[str, dict[str, Any]] | None = None, **settings: Any) -> Learner:
    return Learner(technique, OptimizerPlan(SGD, phases or {}), StepSettings(**settings), CPU)


def run(
    technique: Technique, *, start: int = 0, stop: StopRequest | None = None, seed: int = 0, **changes: Any
) -> tuple[Heard, Clock]:
    """Train, and return what was heard and where it ended."""
    config = replace(CONFIG, **changes)
    learner = taught(technique, **vars(config.step_settings))
    return go_on(learner, config, start=start, stop=stop, seed=seed)


def go_on(
    learner: Learner, config: TrainerConfig, *, start: int = 0, stop: StopRequest | None = None, seed: int = 0
) -> tuple[Heard, Clock]:
    heard = Heard()
    samples: list[Batch] = [{"point": torch.zeros(2, 1)}] * 3
    material = RunData(Values(), samples, samples, samples[0])
    clock = train(learner, material, heard, config, stop or StopRequest(), seed=seed, completed_steps=start)
    return heard, clock


# --- One step.


def stepped(learner: Learner, step: int = 1, *, value: float = 0.0) -> Metrics:
    batch = {"point": torch.full((2, 1), value)}
    return learner.step(batch, [batch, batch], Clock(step, 100, EPOCH))


@pytest.mark.parametrize("clip", [0.01, 1.0, 1e6])
def test_clipping_bounds_the_gradient_and_reports_it_unbounded(clip: float) -> None:
    toy = Toy()
    before = toy.point.weight.detach().clone()
    told = stepped(taught(toy, gradient_clip=clip))
    whole = torch.full((3,), 2 * 5.0).norm().item()  # of Σ(5 - 0)², a derivative of 2 · 5 each
    moved = (toy.point.weight.detach() - before).norm().item() / 0.1
    assert told["fall_gradient_norm"].item() == pytest.approx(whole)
    assert moved == pytest.approx(min(clip, whole), rel=1e-3)


def test_without_clipping_no_norm_is_computed() -> None:
    assert set(stepped(taught(Toy()))) == {"loss", "noise", "value"}


def test_the_average_is_the_one_computed_by_hand() -> None:
    toy = Toy()
    learner = taught(toy, ema=0.9)
    shown = learner.eval_technique
    assert isinstance(shown, Toy)
    expected = toy.point.weight.detach().clone()
    for step in range(1, 101):
        stepped(learner, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * toy.point.weight.detach()
        torch.testing.assert_close(shown.point.weight.detach(), expected)
    assert not torch.equal(shown.point.weight, toy.point.weight)
    assert shown.seen == toy.seen == 100  # a buffer is copied, not averaged
    assert not any(weight.requires_grad for weight in shown.parameters())


def test_without_an_average_the_technique_itself_is_shown() -> None:
    toy = Toy()
    assert taught(toy).eval_technique is toy


def test_the_average_begins_where_the_technique_was_initialized() -> None:
    learner = taught(Toy(), ema=0.999)
    with torch.no_grad():
        next(learner.technique.parameters()).fill_(100.0)
    learner.reset_ema()
    assert next(learner.eval_technique.parameters()).mean() == 100.0


def test_a_technique_without_parameters_can_be_averaged() -> None:
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
    taught(counter).step({}, [], Clock(1, 2, 1))
    average.update(counter, Clock(1, 2, 1))
    assert average.technique.get_buffer("count") == 1


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32() -> None:
    kinds: set[torch.dtype] = set()

    class Wide(Toy):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            out = self.point(batch["point"])
            kinds.add(out.dtype)
            return out.float().square().mean(), {}

    toy = Wide()
    learner = taught(toy, precision="bf16")
    losses = [stepped(learner, step, value=1.0)["loss"].item() for step in range(1, 30)]
    assert kinds == {torch.bfloat16}
    assert toy.point.weight.dtype == torch.float32
    assert losses[-1] < 0.1 * losses[0]


def test_bf32_multiplies_in_bf16_while_a_step_lasts_and_not_for_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": True})
    seen: list[tuple[str, str]] = []
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]

    def notice(where: str) -> None:
        seen.append((where, matmul.fp32_precision))

    class Watched(Toy):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            out = self.point(batch["point"])
            out.register_hook(lambda gradient: notice(f"gradient {gradient.dtype}"))
            notice(f"loss {out.dtype}")
            return out.square().mean(), {}

        def phases(self) -> tuple[Phase, ...]:
            return (*super().phases(), ClosedFormPhase("refit", self.refit, every=1, is_full_batch=False))

        def refit(self, batch: Batch, clock: Clock) -> Metrics:
            notice("refit")
            return {}

    before = matmul.fp32_precision
    stepped(taught(Watched(), precision="bf32"), 1, value=1.0)
    assert seen == [("loss torch.float32", "bf16"), ("gradient torch.float32", "bf16"), ("refit", before)]
    assert matmul.fp32_precision == before != "bf16"


@pytest.mark.skipif(not has_bf16_matmul(CPU), reason="this processor has no instructions for matrices of bf16")
def test_products_of_bf16_are_added_in_full() -> None:
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
def test_the_precision_suits_the_processor(
    instructions: str, auto: str, amx: str, bf32: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {instructions: True, "amx_int8": True})
    assert taught(Toy(), precision="auto").precision == auto
    assert taught(Toy(), precision="amx").precision == amx
    assert taught(Toy(), precision="bf32").precision == bf32
    assert taught(Toy(), precision="fp32").precision == "fp32"
    assert resolve_precision("auto", torch.device("cuda")) == "fp32"
    monkeypatch.setattr("torch.get_default_dtype", lambda: torch.float64)
    assert resolve_precision("auto", CPU) == "fp32", "who asks for doubles wants them"


class Pair(Technique):
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
            ClosedFormPhase("all", self.everything, every=EPOCH, is_full_batch=True),
            GradientPhase("late", self.left, self.left_loss, is_active=lambda clock: clock.epoch > 1),
        )

    def both(self) -> Tensor:
        return self.right(self.left(torch.ones(1, 2))).square().sum()

    def left_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        self.calls.append("left" if clock.epoch == 1 else "left or late")
        # Gradients reach the other player's activations, and must not stay in its weights.
        return self.both(), {}

    def right_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        assert all(weight.grad is None for weight in self.right.parameters()) or clock.step > 2
        self.calls.append("right")
        return -self.both(), {}

    def count(self, batch: Batch, clock: Clock) -> Metrics:
        assert not torch.is_grad_enabled()
        assert set(batch) == {"point"}
        self.calls.append("count")
        return {}

    def everything(self, batches: Batches, clock: Clock) -> Metrics:
        assert len(list(batches)) == len(list(batches)) > 1
        self.calls.append("all")
        return {"batches": torch.tensor(2.0)}


def test_phases_take_their_turns_in_order() -> None:
    pair = Pair()
    learner = taught(pair)
    told = []
    for step in range(1, 7):
        told.append(set(stepped(learner, step)))
        pair.calls.append("|")
    steps = "".join(call[0] if call != "|" else call for call in pair.calls).split("|")
    assert steps[:6] == ["l", "lr", "lc", "lra", "ll", "lrcl"]
    assert told[0] == {"left_loss"}  # with several descents, each loss bears its phase's name
    assert told[1] == {"left_loss", "right_loss"}
    assert told[3] == {"left_loss", "right_loss", "batches"}
    assert told[4] == {"left_loss", "late_loss"}
    assert learner.phase_by_loss == {"left_loss": "left", "right_loss": "right", "late_loss": "late"}


def test_a_phase_leaves_gradients_in_its_learner_only() -> None:
    pair = Pair()
    learner = taught(pair)
    before = {name: weight.clone() for name, weight in pair.right.state_dict().items()}
    stepped(learner, 1)
    assert all(weight.grad is not None for weight in pair.left.parameters())
    assert all(weight.grad is None for weight in pair.right.parameters())
    assert_same(dict(pair.right.state_dict()), before)


def test_phases_have_optimizers_of_their_own() -> None:
    learner = taught(Pair(), {"right": {"lr": 0.0625}, "late": {"momentum": 0.5}})
    stepped(learner, 2)
    groups = {name: state["param_groups"][0] for name, state in learner.state_dict()["optimizers"].items()}
    assert {name: group["lr"] for name, group in groups.items()} == {"left": 0.1, "right": 0.0625, "late": 0.1}
    assert {name: group["momentum"] for name, group in groups.items()} == {"left": 0, "right": 0, "late": 0.5}


def test_settings_for_a_phase_that_is_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.middle names no phase of this model"):
        taught(Pair(), {"middle": {"lr": 1.0}})


def test_an_optimizer_that_asks_several_times_is_told_of_once() -> None:
    toy = Toy()
    lbfgs = {"name": "lbfgs", "lr": 0.1, "max_iter": 5, "history_size": 10, "line_search_fn": None, **STEADY}
    learner = Learner(toy, OptimizerPlan(lbfgs, {}), StepSettings(gradient_clip=1e9), CPU)
    told = stepped(learner)
    assert toy.seen == 5
    # The first call's: where the step begins.
    assert told["loss"].item() == pytest.approx(3 * 25.0)
    assert told["fall_gradient_norm"].item() == pytest.approx(3**0.5 * 10)


def test_a_learner_becomes_what_its_state_says() -> None:
    first, second = taught(Toy(), ema=0.5), taught(Toy(), ema=0.5)
    for step in range(1, 4):
        stepped(first, step)
    second.load_state_dict(copied(first.state_dict()))
    stepped(first, 4)
    stepped(second, 4)
    first_state, second_state = first.state_dict(), second.state_dict()
    assert_same(first_state["optimizers"], second_state["optimizers"])
    assert_same(first_state["technique"]["point.weight"], second_state["technique"]["point.weight"])
    assert_same(first_state["average"], second_state["average"])


def test_the_state_of_another_model_is_refused_in_a_line() -> None:
    state = taught(Toy(size=4)).state_dict()
    with pytest.raises(CheckpointError, match="not one of this model and optimizer") as caught:
        taught(Toy(size=3)).load_state_dict(state)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError):
        taught(Toy(size=4), ema=0.5).load_state_dict(state)


# --- The loop.


@pytest.mark.parametrize("block", [1, 3, 50])
@pytest.mark.parametrize(("evaluate", "checkpoint"), [(0, 0), (1, 2), (3, 1)])
def test_blocks_of_metrics_cover_every_step_once(
    block: int, evaluate: int, checkpoint: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_STEPS", block)
    heard, clock = run(Toy(), evaluate_every=evaluate, checkpoint_every=checkpoint, max_steps=11)
    steps, values = heard.column("value")
    assert clock.step == 11
    assert steps == list(range(1, 12))
    assert values == [float(step) for step in range(1, 12)]
    assert heard.column("loss")[0] == steps


def test_a_phase_that_rests_leaves_its_steps_out() -> None:
    heard, _ = run(Pair(), epochs=2, evaluate_every=0, preview_every=0)
    assert heard.column("left_loss")[0] == list(range(1, 9))
    assert heard.column("right_loss")[0] == [2, 4, 6, 8]
    assert heard.column("late_loss")[0] == [5, 6, 7, 8]
    assert heard.column("batches")[0] == [4, 8]


@pytest.mark.parametrize("block", [1, 3, 50])
def test_a_diagnosis_is_made_of_the_whole_epoch(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_STEPS", block)

    class Patient(Toy):
        def diagnose(self, metrics: Mapping[str, float]) -> str | None:
            return f"{metrics['value']:g}"

    heard, _ = run(Patient())
    warnings = [(snapshot.clock.step, *snapshot.warnings) for snapshot in heard.snapshots if snapshot.warnings]
    # The values are the steps' numbers: 1 to 4, 5 to 8, 9 to 12.
    assert warnings == [(4, "2.5"), (8, "6.5"), (12, "10.5")]


def test_a_block_does_not_last_longer_than_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "METRICS_FLUSH_SECONDS", 0.0)
    heard, _ = run(Toy(), evaluate_every=0, preview_every=0, checkpoint_every=0, max_steps=5)
    assert [list(snapshot.train_curves["loss"].steps) for snapshot in heard.snapshots[1:]] == [
        [1],
        [2],
        [3],
        [4],
        [5],
    ]


def test_intervals_count_epochs_and_the_end_is_looked_at_in_any_case() -> None:
    heard, clock = run(Toy(), epochs=5, evaluate_every=2, preview_every=3, checkpoint_every=4)
    assert (clock.step, clock.is_last_step) == (20, True)
    assert heard.steps(lambda snapshot: snapshot.test_metrics) == [8, 16, 20]
    assert heard.steps(lambda snapshot: snapshot.technique_state) == [8, 16, 20]
    assert heard.steps(lambda snapshot: snapshot.preview_images) == [0, 12, 20]
    assert heard.steps(lambda snapshot: snapshot.final_artifacts) == [20]
    assert {16, 20} <= set(heard.steps(lambda snapshot: snapshot.checkpoint_state)) <= {0, 16, 20}


def test_never_is_never() -> None:
    toy = Toy()
    heard, _ = run(toy, evaluate_every=0, preview_every=0, checkpoint_every=0)
    assert toy.looks == ["gallery"]
    assert not heard.steps(lambda snapshot: snapshot.test_metrics or snapshot.preview_images)
    assert heard.snapshots[-1].checkpoint_state is not None, "a run that ends is saved"


def test_checkpoints_keep_their_distance() -> None:
    heard, _ = run(Toy(), checkpoint_spacing=3600.0)
    assert set(heard.steps(lambda snapshot: snapshot.checkpoint_state)) <= {0, 12}


def test_looks_see_the_same_randomness_each_time_and_change_no_step() -> None:
    looking, _ = run(Toy())
    blind, _ = run(Toy(), evaluate_every=0, preview_every=0)
    assert len({snapshot.test_metrics["noise"] for snapshot in looking.snapshots if snapshot.test_metrics}) == 1
    first, *others = (
        snapshot.preview_images["noise"] for snapshot in looking.snapshots if snapshot.preview_images
    )
    assert all(torch.equal(first, other) for other in others)
    assert looking.column("noise") == blind.column("noise")
    other_seed, _ = run(Toy(), seed=1)
    assert looking.column("noise") != other_seed.column("noise")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_going_on_from_any_checkpoint_is_the_same_run(ema: float) -> None:
    config = replace(CONFIG, ema=ema)
    straight, _ = run(Toy(), ema=ema)
    for snapshot in straight.snapshots[:-1]:
        if snapshot.checkpoint_state is None or not snapshot.clock.step:
            continue
        learner = taught(Toy(), ema=ema)
        learner.load_state_dict(snapshot.checkpoint_state)
        resumed, _ = go_on(learner, config, start=snapshot.clock.step)
        assert_same(copied(resumed.snapshots[-1].checkpoint_state), straight.snapshots[-1].checkpoint_state)
        assert resumed.snapshots[-1].test_metrics == straight.snapshots[-1].test_metrics
        steps, noise = straight.column("noise")
        left = steps.index(snapshot.clock.step) + 1
        assert resumed.column("noise") == (steps[left:], noise[left:])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_from_a_file_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    rate = {"lr": RATES[name] / 10, "schedule": "linear", "warmup_steps": 3}
    plan = OptimizerPlan({**settings_of(name), **rate}, {})

    def learner() -> Learner:
        return Learner(Toy(), plan, StepSettings(ema=0.5, gradient_clip=5.0), CPU)

    config = replace(CONFIG, ema=0.5)
    straight, _ = go_on(learner(), config)
    (middle,) = (snapshot.checkpoint_state for snapshot in straight.snapshots if snapshot.clock.step == 8)
    assert middle is not None
    save_checkpoint(tmp_path / "state.pt", middle)
    resumed = learner()
    resumed.load_state_dict(load_checkpoint(tmp_path / "state.pt"))
    heard, _ = go_on(resumed, config, start=8)
    assert_same(copied(heard.snapshots[-1].checkpoint_state), straight.snapshots[-1].checkpoint_state)
    steps, losses = straight.column("loss")
    assert heard.column("loss") == (steps[8:], losses[8:])


def test_only_a_fresh_run_is_initialized_from_its_data() -> None:
    fresh, resumed = Toy(), Toy()
    run(fresh)
    run(resumed, start=4)
    assert (fresh.begun.item(), resumed.begun.item()) == (3, 0)


def test_a_run_killed_at_its_very_end_still_gets_its_pictures() -> None:
    toy = Toy()
    heard, clock = run(toy, start=12)
    (snapshot,) = heard.snapshots
    assert clock.is_last_step
    assert snapshot.final_artifacts is not None
    assert toy.seen == 0


def test_pictures_arrive_as_bytes() -> None:
    heard, _ = run(Toy())
    finale = heard.snapshots[-1].final_artifacts
    assert finale is not None
    assert finale.gallery["last"].tolist() == [[[0, 128, 255]]]
    assert finale.gallery["last"].dtype == torch.uint8


def test_a_signal_ends_the_run_after_the_step_and_saves_it_unjudged() -> None:
    class Interrupted(Toy):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            if clock.step == 6:
                stop.handle_signal(signal.SIGTERM, None)
            return super().loss(batch, clock)

    stop = StopRequest()
    heard, clock = run(Interrupted(), stop=stop)
    assert (clock.step, clock.is_last_step) == (6, False)
    last = heard.snapshots[-1]
    assert last.checkpoint_state is not None
    assert (last.checkpoint_state["step"], dict(last.test_metrics), dict(last.preview_images)) == (6, {}, {})


def losses(heard: Heard) -> list[float]:
    return [
        value
        for shot in heard.snapshots
        if "loss" in shot.train_curves
        for value in shot.train_curves["loss"].values
    ]


def test_a_halt_at_an_epoch_changes_no_step() -> None:
    whole, _ = run(Toy())
    learner, start, train = taught(Toy(), **vars(CONFIG.step_settings)), 0, []
    for until_epoch, ends in ((2, 8), (2, 8), (None, 12)):  # the second time nothing is left to do
        heard, clock = go_on(learner, CONFIG, start=start, stop=StopRequest(until_epoch=until_epoch))
        start = clock.step
        assert start == ends
        train += losses(heard)
    assert train == losses(whole)


def test_a_spent_time_budget_ends_the_run_judged_and_saved() -> None:
    heard, clock = run(Toy(), stop=StopRequest(time_budget=0.0))
    assert clock.step == 1
    assert heard.snapshots[-1].test_metrics
    assert heard.snapshots[-1].checkpoint_state is not None


def test_a_technique_that_has_converged_ends_the_run_with_the_epoch() -> None:
    toy = Toy()
    toy.stop_at = 5
    _, clock = run(toy, epochs=100)
    assert clock.step == 8


def test_max_steps_ends_earlier_than_epochs_but_not_later() -> None:
    assert run(Toy(), max_steps=7)[1].step == 7
    assert run(Toy(), max_steps=700)[1].step == 12


class Explosive(Toy):
    """Goes wrong at one step."""

    def __init__(self, step: int, loss: float = float("nan"), metric: float = 0.0) -> None:
        super().__init__()
        self.step, self.wrong, self.metric = step, loss, metric

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        loss, told = super().loss(batch, clock)
        return (loss * self.wrong if clock.step == self.step else loss), {
            **told,
            "metric": torch.tensor(self.metric),
        }


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize("step", [1, 6, 12])
def test_a_loss_that_is_not_finite_is_named_with_its_step_and_phase(value: str, step: int) -> None:
    heard = Heard()
    learner = taught(Explosive(step, float(value)))
    samples: list[Batch] = [{"point": torch.zeros(2, 1)}]
    material = RunData(Values(), samples, samples, samples[0])
    with pytest.raises(DivergenceError, match=rf"the loss of phase fall became {value} at step {step};"):
        train(learner, material, heard, CONFIG, StopRequest(), seed=0)
    saved = [snapshot.checkpoint_state for snapshot in heard.snapshots if snapshot.checkpoint_state is not None]
    assert all(state["step"] < step for state in saved)


def test_the_phase_that_diverged_is_the_one_named() -> None:
    class Lopsided(Pair):
        def right_loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            loss, told = super().right_loss(batch, clock)
            return loss * (float("nan") if clock.step == 4 else 1), told

    with pytest.raises(DivergenceError, match="the right_loss of phase right became nan at step 4"):
        run(Lopsided(), evaluate_every=0, preview_every=0)


def test_a_metric_that_is_not_finite_stops_nothing() -> None:
    _, clock = run(Explosive(99, metric=float("nan")))
    assert clock.is_last_step


def test_weights_that_are_not_finite_are_not_saved() -> None:
    class Overflowing(Toy):
        def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
            loss, told = super().loss(batch, clock)
            # A finite loss with an infinite gradient.
            spike = (self.point.weight - self.point.weight.detach()).abs().sum().sqrt()
            return loss + (spike if clock.step == 8 else 0), told

    with pytest.raises(DivergenceError, match=r"point\.weight became NaN or infinite by step 8"):
        run(Overflowing())


def test_looking_leaves_every_module_in_its_mode() -> None:
    toy = Toy()
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
    run(toy)
    assert {name for name, module in toy.named_modules() if not module.training} == {"frozen"}


# --- Around the loop.


def test_signals_are_heard_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals(None) as stop:
        assert stop.received_signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.received_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_only_a_second_interruption_by_hand_is_obeyed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr("os._exit", exits.append)
    told: list[str] = []
    with stop_on_signals(on_signal=lambda: told.append("once")) as stop:
        signal.raise_signal(signal.SIGUSR2)
        signal.raise_signal(signal.SIGTERM)
        assert (stop.received_signal, exits) == (signal.SIGUSR2, [])
        signal.raise_signal(signal.SIGINT)
    assert exits == [130]
    assert told == ["once"]


def test_a_time_budget_is_spent_when_its_seconds_are_over() -> None:
    assert not StopRequest().is_out_of_time
    assert not StopRequest(time_budget=3600).is_out_of_time
    assert StopRequest(time_budget=0).is_out_of_time


def test_deterministic_algorithms_are_asked_for_and_let_go_of() -> None:
    try:
        use_deterministic_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_runs_are_the_same_runs_on_a_cpu(tmp_path: Path) -> None:
    short = (
        *tiny("conv_autoencoder"),
        "trainer.max_steps=2",
        "trainer.evaluate_every=0",
        "trainer.preview_every=0",
    )
    for choice in ("true", "false"):
        ended = genexp(*short, f"trainer.deterministic={choice}", in_folder(tmp_path / choice))
        assert ended.code == 0, ended.err
        assert not torch.are_deterministic_algorithms_enabled() or choice == "true"
    assert metrics(tmp_path / "true") == metrics(tmp_path / "false")
