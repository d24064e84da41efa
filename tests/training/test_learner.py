"""One training step: phases, clipping, EMA, precision and state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genexp.errors import CheckpointError, ConfigError
from genexp.technique import (
    Batch,
    Clock,
    ClosedFormPhase,
    Metrics,
    Phase,
    Technique,
)
from genexp.training.learner import EMA, Learner, StepSettings, resolve_precision
from genexp.training.optimizers import plan_optimizers
from tests.support.assertions import assert_same
from tests.support.toy_techniques import (
    CPU,
    SCHEDULE,
    STEPS_PER_EPOCH,
    ToyTechnique,
    TwoModuleTechnique,
    clone_tensors,
    make_learner,
)


def run_step(learner: Learner, step: int = 1, *, value: float = 0.0) -> Metrics:
    batch = {"point": torch.full((2, 1), value)}
    return learner.step(batch, [batch, batch], Clock(step, 100, STEPS_PER_EPOCH))


@pytest.mark.parametrize("clip", [0.01, 1.0, 1e6])
def test_clipping_limits_the_gradient_and_reports_the_original_norm(clip: float) -> None:
    toy = ToyTechnique()
    before = toy.point.weight.detach().clone()
    metrics = run_step(make_learner(toy, gradient_clip=clip))
    full_norm = torch.full((3,), 2 * 5.0).norm().item()  # the gradient of Σ(5 - 0)² is 2 · 5 in each dimension
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
    assert resolve_precision("auto", CPU) == "fp32", "float64 was requested"


def test_phases_run_in_order_at_their_intervals() -> None:
    pair = TwoModuleTechnique()
    learner = make_learner(pair)
    metric_names = []
    for step in range(1, 7):
        metric_names.append(set(run_step(learner, step)))
        pair.calls.append("|")
    steps = "".join(call[0] if call != "|" else call for call in pair.calls).split("|")
    assert steps[:6] == ["l", "lr", "lc", "lra", "ll", "lrcl"]
    assert metric_names[0] == {"left_loss"}  # the prefix is the phase, if there are several
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
    with pytest.raises(ConfigError, match=r"optimizer\.middle: unknown phase"):
        make_learner(TwoModuleTechnique(), {"middle": {"lr": 1.0}})


def test_lbfgs_reports_the_metrics_of_its_first_evaluation() -> None:
    toy = ToyTechnique()
    lbfgs = {"name": "lbfgs", "lr": 0.1, "max_iter": 5, "history_size": 10, "line_search_fn": None, **SCHEDULE}
    learner = Learner(toy, plan_optimizers(lbfgs), StepSettings(gradient_clip=1e9), CPU)
    metrics = run_step(learner)
    assert toy.num_loss_calls == 5
    # The metrics of the first call, at the initial point.
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
    with pytest.raises(CheckpointError, match="does not match the model and optimizer") as excinfo:
        make_learner(ToyTechnique(size=3)).load_state_dict(state)
    assert "\n" not in str(excinfo.value)
    with pytest.raises(CheckpointError):
        make_learner(ToyTechnique(size=4), ema=0.5).load_state_dict(state)
