"""Techniques small enough to check by hand, and their learners."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

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
from genexp.training.learner import Learner, StepSettings
from genexp.training.optimizers import plan_optimizers

CPU = torch.device("cpu")
STEPS_PER_EPOCH = 4
SCHEDULE = {"schedule": "constant", "warmup_steps": 0, "decay_start": 0.0}
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, **SCHEDULE}


class ToyTechnique(Technique):
    """Technique that moves a point towards the values of the batch and records the calls of its methods."""

    name = "toy"

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
        self.max_loss_calls: int | None = None
        self.calls: list[str] = []

    def phases(self) -> tuple[Phase, ...]:
        return (GradientPhase("fall", self.point, self.loss),)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        offsets = self.point.weight.T - batch["point"]  # (batch, size)
        self.num_loss_calls += 1
        loss = offsets.square().sum(1).mean()
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
        return self.max_loss_calls is not None and self.num_loss_calls.item() >= self.max_loss_calls


def clone_tensors(value: Any) -> Any:
    """Return nested values with copies of their tensors, which training changes in place."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, Mapping):
        return {key: clone_tensors(item) for key, item in value.items()}
    return [clone_tensors(item) for item in value] if isinstance(value, list) else value


def make_learner(
    technique: Technique, phases: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> Learner:
    """Return a learner with SGD. `phases` overrides optimizer settings by phase, `settings` the StepSettings."""
    return Learner(technique, plan_optimizers({**SGD, **(phases or {})}), StepSettings(**settings), CPU)


class TwoModuleTechnique(Technique):
    """Technique of two modules and counting phases, at different intervals."""

    name = "pair"

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
        # Gradients pass through the other module and must not accumulate in its weights.
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
