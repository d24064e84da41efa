"""Optimizers that go downhill, and learning rates that are functions of the clock."""

from __future__ import annotations

import math
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from genexp.device import move_to_device
from genexp.technique import Clock
from genexp.training.optimizers import (
    OPTIMIZERS,
    SCHEDULES,
    OptimizerConfig,
    build_optimizer,
    learning_rate,
    plan_optimizers,
    remove_dynamo_wrappers,
)
from tests.support.optimizers import RATES, settings_of

TORCHS_OWN = (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adadelta, optim.LBFGS)


def configured(name: str, **changes: Any) -> OptimizerConfig:
    """Return an optimizer's settings as its file has them, but for `changes`."""
    return plan_optimizers({**settings_of(name), **changes}).bind_phase_config("")


class Bowl(nn.Module):
    """A quadratic whose axes differ tenfold in curvature; its lowest value, 0, is at (1, -2)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)

    def height(self) -> Tensor:
        away = self.place - torch.tensor([1.0, -2.0])
        return (torch.tensor([1.0, 10.0]) * away.square()).sum()


def descend(optimizer: torch.optim.Optimizer, bowl: Bowl, steps: int) -> int:
    """Step with a closure, as the trainer does, and return how often it was called."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        height = bowl.height()
        height.backward()
        return height

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name: str) -> None:
    bowl = Bowl()
    before = bowl.height().item()
    optimizer = build_optimizer(configured(name, lr=RATES[name], schedule="constant"), bowl)
    descend(optimizer, bowl, steps=200)
    assert bowl.height().item() < 1e-3 * before
    assert bowl.fixed.item() == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_needs_no_gradient_is_no_ones_to_move(name: str) -> None:
    bowl = Bowl()
    (group,) = build_optimizer(configured(name), bowl).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(bowl.place)]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("adam", {"lr": 0.3, "betas": [0.5, 0.6], "eps": 1e-3, "weight_decay": 0.1}),
        ("adamw", {"lr": 0.3, "betas": [0.5, 0.6], "eps": 1e-3, "weight_decay": 0.1}),
        ("sgd", {"lr": 0.3, "momentum": 0.4, "nesterov": True, "weight_decay": 0.1}),
        ("rmsprop", {"lr": 0.3, "alpha": 0.5, "eps": 1e-3, "momentum": 0.4, "weight_decay": 0.1}),
        ("adadelta", {"lr": 0.3, "rho": 0.5, "eps": 1e-3, "weight_decay": 0.1}),
        ("lbfgs", {"lr": 0.3, "max_iter": 3, "history_size": 4, "line_search_fn": "strong_wolfe"}),
    ],
)
def test_every_setting_reaches_the_optimizer(name: str, changes: dict[str, Any]) -> None:
    optimizer = build_optimizer(configured(name, **changes), Bowl())
    assert type(optimizer) is OPTIMIZERS[name].optimizer_class
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in changes} == {**changes, **_tuples(changes)}
    assert set(changes) == set(configured(name).to_kwargs())


def _tuples(changes: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(value) for key, value in changes.items() if isinstance(value, list)}


def test_optimizers_with_one_kernel_for_all_parameters_use_it() -> None:
    for name in ("adam", "adamw", "sgd"):
        assert build_optimizer(configured(name), Bowl()).param_groups[0]["fused"]


def test_lbfgs_calls_the_loss_as_often_as_it_iterates() -> None:
    bowl = Bowl()
    optimizer = build_optimizer(configured("lbfgs", schedule="constant"), bowl)
    assert descend(optimizer, bowl, steps=10) == 10
    bowl = Bowl()
    optimizer = build_optimizer(configured("lbfgs", lr=0.1, max_iter=4, schedule="constant"), bowl)
    assert descend(optimizer, bowl, steps=3) == 12


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    """Return the rate of each step of a run."""
    return [learning_rate(config, Clock(step, steps, 10)) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_begins_at_the_full_rate(schedule: str) -> None:
    assert rates(configured("adam", lr=0.5, schedule=schedule), 100)[0] == 0.5


def test_a_constant_rate_never_changes() -> None:
    assert set(rates(configured("adam", lr=0.5, schedule="constant"), 100)) == {0.5}


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("linear", lambda progress: 1 - progress),
        ("cosine", lambda progress: (1 + math.cos(math.pi * progress)) / 2),
    ],
)
def test_a_decaying_rate_follows_its_curve(schedule: str, shape: Any) -> None:
    course = rates(configured("adam", lr=0.5, schedule=schedule), 100)
    assert course[50] == pytest.approx(0.5 * 0.5)
    assert course == pytest.approx([0.5 * shape(step / 100) for step in range(100)])
    assert all(later < earlier for earlier, later in pairwise(course))
    assert 0 < course[-1] < 0.01 * 0.5 + 1e-9  # the last step still counts, a step later it would be 0


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_rate_warms_up_linearly_and_decays_from_there(schedule: str) -> None:
    course = rates(configured("adam", lr=0.5, schedule=schedule, warmup_steps=20), 100)
    assert course[:20] == pytest.approx([0.5 * step / 20 for step in range(1, 21)])
    assert course[20] == pytest.approx(0.5)
    assert max(course) == pytest.approx(0.5)
    halfway = 60  # between the end of the warm-up and that of the run
    assert course[halfway] == pytest.approx(0.5 * SCHEDULES[schedule](0.5))


def test_a_decay_may_set_in_late() -> None:
    """As CycleGAN's does: constant for the first half, then linear to zero."""
    course = rates(configured("adam", lr=0.5, schedule="linear", decay_start=0.5), 100)
    assert set(course[:51]) == {0.5}
    assert course[75] == pytest.approx(0.25)
    assert course[99] == pytest.approx(0.5 * 0.02)


def test_a_warm_up_longer_than_the_run_does_no_harm() -> None:
    course = rates(configured("adam", lr=0.5, schedule="cosine", warmup_steps=1000), 10)
    assert course == pytest.approx([0.5 * step / 1000 for step in range(1, 11)])


def test_a_run_of_one_step_has_the_full_rate() -> None:
    for schedule in SCHEDULES:
        assert rates(configured("adam", lr=0.5, schedule=schedule), 1) == [0.5]


def test_lbfgs_moves_filters_whatever_their_layout() -> None:
    network = move_to_device(nn.Conv2d(2, 3, 3), torch.device("cpu"))
    optimizer = build_optimizer(configured("lbfgs", lr=0.1, max_iter=2, schedule="constant"), network)
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize("kind", TORCHS_OWN)
def test_what_is_eager_moves_as_torchs_own(kind: type[torch.optim.Optimizer]) -> None:
    ended = []
    for variant in (kind, remove_dynamo_wrappers(kind)):
        bowl = Bowl()
        optimizer = variant([bowl.place], lr=0.01)  # type: ignore[call-arg]
        calls = descend(optimizer, bowl, 5)
        assert bowl.place.requires_grad
        optimizer.load_state_dict(optimizer.state_dict())
        ended.append((calls, bowl.place.tolist(), str(optimizer.state_dict())))
    assert ended[0] == ended[1]


def test_a_step_does_not_wait_for_the_compiler() -> None:
    lines = (
        "import sys, torch",
        "from genexp.training.optimizers import OPTIMIZERS",
        "weight = torch.ones(2, requires_grad=True)",
        "for kind in OPTIMIZERS.values():",
        "    optimizer = kind.optimizer_class([weight], lr=0.1)",
        "    weight.grad = weight.detach().clone()",
        "    optimizer.step(lambda: 1.0)",
        "    optimizer.load_state_dict(optimizer.state_dict())",
        "assert 'torch._dynamo' not in sys.modules",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)
