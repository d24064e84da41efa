"""Equality of captured and eager steps, on CPU with a fake graph that runs its function when replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from genexp.technique import Batch, Clock, ClosedFormPhase, GradientPhase, Metrics, Phase, Technique
from genexp.training import learner as learner_module
from genexp.training.cuda_graphs import WARMUP_STEPS, get_graph_factory
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers

CPU = torch.device("cpu")
SCHEDULE = {"schedule": "linear", "warmup_steps": 2, "decay_start": 0.0}
ADAM = {"name": "adam", "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, **SCHEDULE}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **SCHEDULE}
Loss = Callable[["ToyTechnique", Tensor, Clock], Tensor]


class FakeGraph:
    """Fake CUDA graph that calls the captured function when replayed."""

    instances: list[FakeGraph]

    def __init__(self) -> None:
        self.replays = 0
        self.instances.append(self)

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, function: Callable[[], None]) -> None:
        self._function = function

    def replay(self) -> None:
        self.replays += 1
        self._function()


class BrokenGraph(FakeGraph):
    """Graph whose capture fails, as on CUDA when a step reads a value on the CPU."""

    def capture(self, function: Callable[[], None]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class ToyTechnique(Technique):
    """Technique that fits a line, and a second one at every other step."""

    name = "toy"

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)
        for line in (self.first, self.second):
            nn.init.constant_(line.weight, 0.5)
            nn.init.zeros_(line.bias)
        self._loss = loss

    def phases(self) -> tuple[Phase, ...]:
        return (
            GradientPhase("first", self.first, self.loss),
            GradientPhase("second", self.second, self.loss_2, every=2),
        )

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        loss = self._loss(self, self.first(batch["point"]), clock)
        return loss, {"largest": self.first.weight.detach().max()}

    def loss_2(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        return (self.second(batch["point"]) - self.first(batch["point"])).square().mean(), {}


class ToyWithClosedForm(ToyTechnique):
    """Toy technique with an additional closed-form phase."""

    def phases(self) -> tuple[Phase, ...]:
        return (*super().phases(), ClosedFormPhase("nothing", lambda batch, clock: {}))


def squared_error(toy: ToyTechnique, out: Tensor, clock: Clock) -> Tensor:
    return (out - 1).square().mean()


def step_dependent_error(toy: ToyTechnique, out: Tensor, clock: Clock) -> Tensor:
    return (out - clock.step).square().mean()


def noisy_error(toy: ToyTechnique, out: Tensor, clock: Clock) -> Tensor:
    return (out - torch.randn(())).square().mean()


@pytest.fixture
def fake_graph_class(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    FakeGraph.instances = []
    monkeypatch.setattr(learner_module, "get_graph_factory", lambda device: FakeGraph)
    return FakeGraph


def make_learner(
    loss: Loss = squared_error,
    *,
    should_capture: bool,
    technique_class: type[ToyTechnique] = ToyTechnique,
    optimizer: Any = None,
) -> Learner:
    return Learner(
        technique_class(loss),
        plan_optimizers(optimizer or ADAM),
        StepSettings(ema=0.5, capture=should_capture),
        CPU,
    )


def run_steps(learner: Learner, steps: range) -> list[Metrics]:
    """Run steps, each with its own batch and seed."""
    step_metrics = []
    for step in steps:
        points = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        step_metrics.append(learner.step({"point": points}, (), Clock(step, 20, 5)))
    return step_metrics


def assert_same_weights(left: Learner, right: Learner) -> None:
    torch.testing.assert_close(left.state_dict()["technique"], right.state_dict()["technique"])
    torch.testing.assert_close(left.state_dict()["average"], right.state_dict()["average"])


def test_captured_steps_equal_eager_steps(fake_graph_class: type[FakeGraph]) -> None:
    plain, captured = make_learner(should_capture=False), make_learner(should_capture=True)
    torch.testing.assert_close(run_steps(captured, range(1, 16)), run_steps(plain, range(1, 16)))
    assert_same_weights(plain, captured)
    # Of 15 steps, 8 have one phase and 7 have two. Each kind has a graph, replayed after its warm-up.
    assert [graph.replays for graph in fake_graph_class.instances] == [8 - WARMUP_STEPS, 7 - WARMUP_STEPS]


def test_metrics_are_copied_between_replays(fake_graph_class: type[FakeGraph]) -> None:
    losses = [
        float(metrics["first_loss"]) for metrics in run_steps(make_learner(should_capture=True), range(1, 16))
    ]
    assert len(set(losses)) == len(losses)


def test_resumed_captured_run_equals_uninterrupted_run(fake_graph_class: type[FakeGraph]) -> None:
    uninterrupted, resumed = make_learner(should_capture=True), make_learner(should_capture=True)
    run_steps(uninterrupted, range(1, 10))
    resumed.load_state_dict(copy.deepcopy(uninterrupted.state_dict()))
    for learner in (uninterrupted, resumed):
        run_steps(learner, range(10, 20))
    assert_same_weights(uninterrupted, resumed)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (step_dependent_error, "the loss depends on the step number"),
        (noisy_error, "a step draws random numbers on the CPU"),
    ],
)
def test_loss_with_step_or_cpu_randomness_falls_back_to_eager(
    fake_graph_class: type[FakeGraph], caplog: pytest.LogCaptureFixture, loss: Loss, reason: str
) -> None:
    plain, captured = make_learner(loss, should_capture=False), make_learner(loss, should_capture=True)
    run_steps(plain, range(1, 12)), run_steps(captured, range(1, 12))
    assert_same_weights(plain, captured)
    assert [graph.replays for graph in fake_graph_class.instances] == [0, 0]
    assert f"steps run without a CUDA graph, because {reason}" in caplog.text


def test_capture_failure_falls_back_to_eager(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeGraph.instances = []
    monkeypatch.setattr(learner_module, "get_graph_factory", lambda device: BrokenGraph)
    plain, captured = make_learner(should_capture=False), make_learner(should_capture=True)
    run_steps(plain, range(1, 12)), run_steps(captured, range(1, 12))
    assert_same_weights(plain, captured)
    assert "CUDA cannot capture it (operation not permitted when stream is capturing)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": SGD}, "optimizer=sgd cannot be captured (use adam or adamw)"),
        ({"technique_class": ToyWithClosedForm}, "the model has a closed-form phase"),
    ],
)
def test_unsupported_capture_is_logged_without_trying(
    fake_graph_class: type[FakeGraph], caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    run_steps(make_learner(should_capture=True, **changes), range(1, 6))
    assert not fake_graph_class.instances
    assert f"trainer.capture=true: no effect, because {reason}" in caplog.text


def test_capture_on_cpu_has_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    run_steps(make_learner(should_capture=True), range(1, 6))
    assert "trainer.capture=true: no effect, because device=cpu does not support graphs" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", [squared_error, noisy_error])
def test_captured_steps_equal_eager_steps_on_a_gpu(loss: Loss) -> None:
    device = torch.device("cuda")

    def on_gpu(toy: ToyTechnique, out: Tensor, clock: Clock) -> Tensor:
        noise = torch.randn((), device=device) if loss is noisy_error else torch.ones((), device=device)
        return (out - noise).square().mean()

    learners = [
        Learner(
            ToyTechnique(on_gpu).to(device), plan_optimizers(ADAM), StepSettings(ema=0.5, capture=capture), device
        )
        for capture in (False, True)
    ]
    for step in range(1, 30):
        points = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).to(device)
        step_metrics = []
        for learner in learners:
            torch.cuda.manual_seed(step)
            step_metrics.append(learner.step({"point": points}, (), Clock(step, 40, 5)))
        torch.testing.assert_close(*step_metrics)
    assert_same_weights(*learners)


def test_cpu_has_no_graph_factory() -> None:
    assert get_graph_factory(CPU) is None
