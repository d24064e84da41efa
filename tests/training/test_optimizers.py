"""Optimizers and learning-rate schedules: settings, steps and errors."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim

from genexp.device import move_to_device
from genexp.errors import ConfigError
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
from tests.support.compose import compose_config, compose_values
from tests.support.optimizers import LEARNING_RATES, load_optimizer_settings

TORCH_OPTIMIZERS = (optim.Adam, optim.AdamW, optim.SGD, optim.RMSprop, optim.Adadelta, optim.LBFGS)


def make_optimizer_config(name: str, **changes: Any) -> OptimizerConfig:
    """Return the settings of an optimizer's file, with `changes`."""
    return plan_optimizers({**load_optimizer_settings(name), **changes}).shared_config


class Quadratic(nn.Module):
    """Quadratic with minimum 0 at (1, -2), whose curvature differs by a factor of ten between the axes."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(2))
        self.fixed = nn.Parameter(torch.zeros(1), requires_grad=False)

    def value(self) -> Tensor:
        away = self.position - torch.tensor([1.0, -2.0])
        return (torch.tensor([1.0, 10.0]) * away.square()).sum()


def minimize(optimizer: torch.optim.Optimizer, bowl: Quadratic, steps: int) -> int:
    """Step with a closure, as the trainer does, and return the number of its calls."""
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        height = bowl.value()
        height.backward()
        return height

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return calls


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_minimizes_a_quadratic(name: str) -> None:
    bowl = Quadratic()
    before = bowl.value().item()
    optimizer = build_optimizer(make_optimizer_config(name, lr=LEARNING_RATES[name], schedule="constant"), bowl)
    minimize(optimizer, bowl, steps=200)
    assert bowl.value().item() < 1e-3 * before
    assert bowl.fixed.item() == 0.0


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parameters_are_not_optimized(name: str) -> None:
    bowl = Quadratic()
    (group,) = build_optimizer(make_optimizer_config(name), bowl).param_groups
    assert [id(parameter) for parameter in group["params"]] == [id(bowl.position)]


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
    optimizer = build_optimizer(make_optimizer_config(name, **changes), Quadratic())
    assert type(optimizer) is OPTIMIZERS[name].optimizer_class
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in changes} == {**changes, **_lists_to_tuples(changes)}
    assert set(changes) == set(make_optimizer_config(name).to_kwargs())


def _lists_to_tuples(changes: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    return {key: tuple(value) for key, value in changes.items() if isinstance(value, list)}


def test_fused_kernels_are_used_where_available() -> None:
    for name in ("adam", "adamw", "sgd"):
        assert build_optimizer(make_optimizer_config(name), Quadratic()).param_groups[0]["fused"]


def test_lbfgs_evaluates_the_loss_once_per_iteration() -> None:
    bowl = Quadratic()
    optimizer = build_optimizer(make_optimizer_config("lbfgs", schedule="constant"), bowl)
    assert minimize(optimizer, bowl, steps=10) == 10
    bowl = Quadratic()
    optimizer = build_optimizer(make_optimizer_config("lbfgs", lr=0.1, max_iter=4, schedule="constant"), bowl)
    assert minimize(optimizer, bowl, steps=3) == 12


def compute_learning_rates(config: OptimizerConfig, steps: int) -> list[float]:
    """Return the learning rate of each step of a run."""
    return [learning_rate(config, Clock(step, steps, 10)) for step in range(1, steps + 1)]


@pytest.mark.parametrize("schedule", sorted({*SCHEDULES} - {"one_cycle"}))
def test_every_schedule_starts_at_the_full_rate(schedule: str) -> None:
    assert compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule=schedule), 100)[0] == 0.5


def test_constant_schedule_never_changes() -> None:
    assert set(compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule="constant"), 100)) == {0.5}


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("linear", lambda progress: 1 - progress),
        ("cosine", lambda progress: (1 + math.cos(math.pi * progress)) / 2),
    ],
)
def test_decay_to_zero_follows_its_formula(schedule: str, shape: Any) -> None:
    course = compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule=schedule), 100)
    assert course[50] == pytest.approx(0.5 * 0.5)
    assert course == pytest.approx([0.5 * shape(step / 100) for step in range(100)])
    assert all(later < earlier for earlier, later in pairwise(course))
    assert 0 < course[-1] < 0.01 * 0.5 + 1e-9  # positive at the last step; 0 one step later


def test_step_and_exponential_schedules_follow_their_formulas() -> None:
    course = compute_learning_rates(make_optimizer_config("adam", lr=1.0, schedule="step"), 90)
    assert course == pytest.approx([1.0] * 30 + [0.1] * 30 + [0.01] * 30)
    course = compute_learning_rates(make_optimizer_config("adam", lr=1.0, schedule="exponential"), 100)
    assert course == pytest.approx([0.01 ** (step / 100) for step in range(100)])


def test_one_cycle_has_the_shape_of_torch() -> None:
    steps = 101
    course = compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule="one_cycle"), steps - 1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.5, total_steps=steps, pct_start=0.3 + 0.7 / steps, final_div_factor=1e12
    )
    expected = []
    for _ in range(steps - 1):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert course == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("schedule", sorted({*SCHEDULES} - {"one_cycle"}))
def test_rate_warms_up_linearly_and_then_decays(schedule: str) -> None:
    course = compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule=schedule, warmup_steps=20), 100)
    assert course[:20] == pytest.approx([0.5 * step / 20 for step in range(1, 21)])
    assert course[20] == pytest.approx(0.5)
    assert max(course) == pytest.approx(0.5)
    halfway = 60  # in the middle between the end of the warm-up and of the run
    assert course[halfway] == pytest.approx(0.5 * SCHEDULES[schedule](0.5))


def test_decay_start_delays_the_decay() -> None:
    """The schedule of CycleGAN: constant for the first half, then linear to zero."""
    course = compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule="linear", decay_start=0.5), 100)
    assert set(course[:51]) == {0.5}
    assert course[75] == pytest.approx(0.25)
    assert course[99] == pytest.approx(0.5 * 0.02)


def test_warmup_may_be_longer_than_the_run() -> None:
    course = compute_learning_rates(
        make_optimizer_config("adam", lr=0.5, schedule="cosine", warmup_steps=1000), 10
    )
    assert course == pytest.approx([0.5 * step / 1000 for step in range(1, 11)])


def test_a_run_of_one_step_has_the_full_rate() -> None:
    for schedule in sorted({*SCHEDULES} - {"one_cycle"}):
        assert compute_learning_rates(make_optimizer_config("adam", lr=0.5, schedule=schedule), 1) == [0.5]


def test_lbfgs_updates_channels_last_filters() -> None:
    network = move_to_device(nn.Conv2d(2, 3, 3), torch.device("cpu"))
    optimizer = build_optimizer(make_optimizer_config("lbfgs", lr=0.1, max_iter=2, schedule="constant"), network)
    images = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    before = network.weight.detach().clone()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = network(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    assert not torch.equal(network.weight, before)


@pytest.mark.parametrize("optimizer_class", TORCH_OPTIMIZERS)
def test_optimizers_without_dynamo_wrappers_match_torch(optimizer_class: type[torch.optim.Optimizer]) -> None:
    results = []
    for variant in (optimizer_class, remove_dynamo_wrappers(optimizer_class)):
        bowl = Quadratic()
        optimizer = variant([bowl.position], lr=0.01)  # type: ignore[call-arg]
        calls = minimize(optimizer, bowl, 5)
        assert bowl.position.requires_grad
        optimizer.load_state_dict(optimizer.state_dict())
        results.append((calls, bowl.position.tolist(), str(optimizer.state_dict())))
    assert results[0] == results[1]


def test_step_does_not_import_the_compiler() -> None:
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


def test_phase_settings_override_shared_settings() -> None:
    plan = plan_optimizers(compose_values("model=gan", "optimizer.discriminator.lr=1e-4")["optimizer"])
    shared = compose_config("model=gan").optimizer.lr
    assert plan.get_config("discriminator").lr == 1e-4
    assert plan.get_config("generator").lr == shared != 1e-4
    assert plan.get_config("discriminator").name == plan.get_config("generator").name == "adam"
    plan.check_phases(["discriminator", "generator"])


def test_phases_default_to_the_shared_value() -> None:
    plan = plan_optimizers(compose_values("model=gan", "optimizer=sgd", "optimizer.lr=0.3")["optimizer"])
    assert plan.get_config("discriminator").lr == plan.get_config("generator").lr == 0.3


def test_any_setting_can_be_set_per_phase() -> None:
    overrides = ("model=gan", "+optimizer.generator.betas=[0.1,0.2]", "+optimizer.generator.schedule=linear")
    plan = plan_optimizers(compose_values(*overrides)["optimizer"])
    assert plan.get_config("generator").to_kwargs()["betas"] == (0.1, 0.2)
    assert plan.get_config("generator").schedule == "linear"
    assert plan.get_config("discriminator").schedule == "constant"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.generator.lr=-1", "optimizer.generator.lr=-1.0: must be positive and finite."),
        (
            "+optimizer.generator.name=sgd",
            "optimizer.generator.name=sgd: all phases have the same optimizer",
        ),
        ("+optimizer.generator.beta=1", "optimizer.generator.beta: unknown key"),
    ],
)
def test_invalid_phase_setting_is_reported(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as excinfo:
        plan_optimizers(compose_values("model=gan", override)["optimizer"]).get_config("generator")
    assert message in str(excinfo.value)


def test_unknown_phase_is_reported() -> None:
    plan = plan_optimizers(compose_values("model=gan", "+optimizer.critic.lr=1")["optimizer"])
    with pytest.raises(ConfigError, match=r"optimizer\.critic: unknown phase"):
        plan.check_phases(["discriminator", "generator"])


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("adam", "betas", [0.9], "optimizer.betas=[0.9]: must be two values."),
        ("adam", "betas", [0.9, 1], "optimizer.betas=[0.9, 1.0]: must be values in [0, 1)."),
        ("adam", "eps", 0, "optimizer.eps=0.0: must be positive."),
        ("adamw", "weight_decay", -1, "optimizer.weight_decay=-1.0: must be 0 or more."),
        ("adamw", "lr", float("nan"), "optimizer.lr=nan: must be positive and finite."),
        ("adam", "warmup_steps", -1, "optimizer.warmup_steps=-1: must be 0 or more."),
        ("adam", "decay_start", 1, "optimizer.decay_start=1.0: must be a fraction of the run in [0, 1)."),
        ("sgd", "momentum", -1, "optimizer.momentum=-1.0: must be 0 or more."),
        ("sgd", "momentum", 0, "optimizer.nesterov=True: must be false unless momentum is positive."),
        ("rmsprop", "alpha", -1, "optimizer.alpha=-1.0: must be in [0, 1)."),
        ("rmsprop", "momentum", -1, "optimizer.momentum=-1.0: must be 0 or more."),
        ("adadelta", "rho", 3, "optimizer.rho=3.0: must be in [0, 1)."),
        ("lbfgs", "max_iter", 0, "optimizer.max_iter=0: must be at least 1."),
        ("lbfgs", "history_size", 0, "optimizer.history_size=0: must be at least 1."),
        ("lbfgs", "line_search_fn", "wolf", "optimizer.line_search_fn=wolf: must be null or strong_wolfe."),
        ("adagrad", "lr", 1, "optimizer.name=adagrad: unknown optimizer. Did you mean adam?"),
    ],
)
def test_invalid_optimizer_value_is_reported_with_its_key(
    name: str, key: str, value: object, message: str
) -> None:
    settings = compose_values(f"optimizer={name if name in OPTIMIZERS else 'adam'}")["optimizer"]
    if name == "sgd":
        settings["nesterov"] = True
    with pytest.raises(ConfigError) as excinfo:
        plan_optimizers({**settings, "name": name, key: value})
    assert str(excinfo.value) == message


def test_optimizer_of_torch_is_found_by_the_name_of_its_class() -> None:
    values = compose_values("optimizer=torch", "optimizer.name=NAdam", "+optimizer.options.momentum_decay=0.01")
    config = plan_optimizers(values["optimizer"]).get_config("any")
    optimizer = build_optimizer(config, Quadratic())
    assert isinstance(optimizer, torch.optim.NAdam)
    assert optimizer.param_groups[0]["momentum_decay"] == 0.01
    assert optimizer.param_groups[0]["lr"] == config.lr


def test_lists_in_options_become_tuples() -> None:
    values = compose_values("optimizer=torch", "optimizer.name=RAdam", "+optimizer.options.betas=[0.5,0.9]")
    optimizer = build_optimizer(plan_optimizers(values["optimizer"]).get_config("any"), Quadratic())
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.9)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.name=NAdm"], "optimizer.name=NAdm: unknown class of torch.optim. Did you mean NAdam?"),
        (["optimizer.name=Optimizer"], "optimizer.name=Optimizer: unknown class of torch.optim."),
        (["optimizer.name=SparseAdam"], "optimizer.name=SparseAdam: requires sparse gradients"),
        (
            ["optimizer=adam", "+optimizer.options.eps=1"],
            "optimizer.options: not a key of optimizer=adam. Use opt",
        ),
        (["+optimizer.options.wd=1"], "optimizer.options.wd=1: unknown option."),
        (["+optimizer.options.weight_decy=1"], "Did you mean weight_decay?"),
        (["+optimizer.options.eps=small"], "optimizer.options.eps=small: must be a value such as 1e-08"),
        (["+optimizer.options.lr=1"], "use optimizer.lr"),
    ],
)
def test_invalid_optimizer_of_torch_is_rejected(overrides: list[str], message: str) -> None:
    choice = [] if overrides[0] == "optimizer=adam" else ["optimizer=torch"]
    values = compose_values(*choice, *overrides)
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_optimizers(values["optimizer"])


def test_options_that_torch_rejects_are_one_line() -> None:
    values = compose_values("optimizer=torch", "+optimizer.options.betas=[2,0.9]")
    config = plan_optimizers(values["optimizer"]).get_config("any")
    with pytest.raises(
        ConfigError, match=r"optimizer.name=AdamW: Invalid beta parameter.* Change optimizer.options"
    ):
        build_optimizer(config, Quadratic())
