"""A captured step does what the step does. CUDA's part is played by a graph that works when it is replayed."""

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
STEADY = {"schedule": "linear", "warmup_steps": 2, "decay_start": 0.0}
ADAM = {"name": "adam", "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, **STEADY}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **STEADY}
Loss = Callable[["Toy", Tensor, Clock], Tensor]


class FakeGraph:
    """Keeps what it is to do."""

    made: list[FakeGraph]

    def __init__(self) -> None:
        self.replays = 0
        self.made.append(self)

    def warm_up(self, function: Callable[[], None]) -> None:
        function()

    def capture(self, function: Callable[[], None]) -> None:
        self._function = function

    def replay(self) -> None:
        self.replays += 1
        self._function()


class BrokenGraph(FakeGraph):
    """Cannot record, as CUDA cannot where a step looks at a value."""

    def capture(self, function: Callable[[], None]) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Toy(Technique):
    """A line that is fitted, and at every other step a second one."""

    name = "toy"
    objective = "loss"

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


class Refitted(Toy):
    """Has a phase in closed form too."""

    def phases(self) -> tuple[Phase, ...]:
        return (*super().phases(), ClosedFormPhase("nothing", lambda batch, clock: {}))


def squares(toy: Toy, out: Tensor, clock: Clock) -> Tensor:
    return (out - 1).square().mean()


def scheduled(toy: Toy, out: Tensor, clock: Clock) -> Tensor:
    return (out - clock.step).square().mean()


def noisy(toy: Toy, out: Tensor, clock: Clock) -> Tensor:
    return (out - torch.randn(())).square().mean()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeGraph]:
    FakeGraph.made = []
    monkeypatch.setattr(learner_module, "get_graph_factory", lambda device: FakeGraph)
    return FakeGraph


def taught(loss: Loss = squares, *, capture: bool, toy: type[Toy] = Toy, optimizer: Any = None) -> Learner:
    return Learner(toy(loss), plan_optimizers(optimizer or ADAM), StepSettings(ema=0.5, capture=capture), CPU)


def run(learner: Learner, steps: range) -> list[Metrics]:
    """Do steps, each with a batch and a seed of its own."""
    done = []
    for step in steps:
        points = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        torch.manual_seed(step)
        done.append(learner.step({"point": points}, (), Clock(step, 20, 5)))
    return done


def assert_same(one: Learner, other: Learner) -> None:
    torch.testing.assert_close(one.state_dict()["technique"], other.state_dict()["technique"])
    torch.testing.assert_close(one.state_dict()["average"], other.state_dict()["average"])


def test_captured_steps_equal_those_that_are_not(fake: type[FakeGraph]) -> None:
    plain, captured = taught(capture=False), taught(capture=True)
    torch.testing.assert_close(run(captured, range(1, 16)), run(plain, range(1, 16)))
    assert_same(plain, captured)
    # Of 15 steps 8 have one phase and 7 have two: a graph for each kind, after its warm-up.
    assert [graph.replays for graph in fake.made] == [8 - WARMUP_STEPS, 7 - WARMUP_STEPS]


def test_metrics_of_a_step_are_not_those_of_the_next(fake: type[FakeGraph]) -> None:
    losses = [float(metrics["first_loss"]) for metrics in run(taught(capture=True), range(1, 16))]
    assert len(set(losses)) == len(losses)


def test_a_resumed_captured_run_equals_the_straight_one(fake: type[FakeGraph]) -> None:
    straight, resumed = taught(capture=True), taught(capture=True)
    run(straight, range(1, 10))
    resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
    for learner in (straight, resumed):
        run(learner, range(10, 20))
    assert_same(straight, resumed)


@pytest.mark.parametrize(
    ("loss", "reason"),
    [(scheduled, "the loss depends on the step"), (noisy, "it draws random numbers on the processor")],
)
def test_what_a_graph_would_freeze_is_done_as_it_is(
    fake: type[FakeGraph], caplog: pytest.LogCaptureFixture, loss: Loss, reason: str
) -> None:
    plain, captured = taught(loss, capture=False), taught(loss, capture=True)
    run(plain, range(1, 12)), run(captured, range(1, 12))
    assert_same(plain, captured)
    assert [graph.replays for graph in fake.made] == [0, 0]
    assert f"a step is done as it is, since {reason}" in caplog.text


def test_what_cuda_cannot_record_is_done_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    FakeGraph.made = []
    monkeypatch.setattr(learner_module, "get_graph_factory", lambda device: BrokenGraph)
    plain, captured = taught(capture=False), taught(capture=True)
    run(plain, range(1, 12)), run(captured, range(1, 12))
    assert_same(plain, captured)
    assert "CUDA cannot record it (operation not permitted when stream is capturing)" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"optimizer": SGD}, "optimizer=sgd cannot be part of a graph; choose adam or adamw"),
        ({"toy": Refitted}, "a phase of this model refits, and is no chain of kernels"),
    ],
)
def test_what_allows_no_graph_is_said_at_once(
    fake: type[FakeGraph], caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    run(taught(capture=True, **changes), range(1, 6))
    assert not fake.made
    assert f"trainer.capture=true has no effect: {reason}" in caplog.text


def test_a_processor_has_no_graphs(caplog: pytest.LogCaptureFixture) -> None:
    run(taught(capture=True), range(1, 6))
    assert "trainer.capture=true has no effect: device=cpu has no graphs" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("loss", [squares, noisy])
def test_captured_steps_equal_those_that_are_not_on_a_gpu(loss: Loss) -> None:
    device = torch.device("cuda")

    def on_gpu(toy: Toy, out: Tensor, clock: Clock) -> Tensor:
        noise = torch.randn((), device=device) if loss is noisy else torch.ones((), device=device)
        return (out - noise).square().mean()

    learners = [
        Learner(Toy(on_gpu).to(device), plan_optimizers(ADAM), StepSettings(ema=0.5, capture=capture), device)
        for capture in (False, True)
    ]
    for step in range(1, 30):
        points = torch.randn(4, 3, generator=torch.Generator().manual_seed(step)).to(device)
        done = []
        for learner in learners:
            torch.cuda.manual_seed(step)
            done.append(learner.step({"point": points}, (), Clock(step, 40, 5)))
        torch.testing.assert_close(*done)
    assert_same(*learners)


def test_only_a_gpu_has_graphs() -> None:
    assert get_graph_factory(CPU) is None
