"""Numerical modes and the choice of devices."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from genexp.device import (
    AVAILABILITY_CHECKS,
    DeviceConfig,
    choose_device,
    flush_denormals,
    has_bf16_matmul,
    replace_float64_buffers,
    use_bf16_matmul,
    use_deterministic_algorithms,
)
from genexp.errors import ConfigError
from tests.support.command import (
    format_run_dir_override,
    read_metrics_log,
    run_genexp,
)
from tests.support.compose import make_tiny_overrides


@pytest.mark.skipif(not has_bf16_matmul(torch.device("cpu")), reason="needs CPU instructions for bf16 matrices")
def test_bf16_matmul_accumulates_in_fp32() -> None:
    left, right = torch.randn(400, 300), torch.randn(300, 400)  # torch 2.11 multiplies smaller matrices in fp32
    exact = left.double() @ right.double()
    with use_bf16_matmul():
        found = left @ right
    rounded = left.bfloat16().double() @ right.bfloat16().double()
    assert (found - rounded).abs().max() < 1e-4 < (found - exact).abs().max()


def test_deterministic_algorithms_are_enabled_and_disabled() -> None:
    try:
        use_deterministic_algorithms(True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_mode_does_not_change_cpu_runs(tmp_path: Path) -> None:
    short = (
        *make_tiny_overrides("conv_autoencoder"),
        "trainer.max_steps=2",
        "trainer.evaluate_every=0",
        "trainer.preview_every=0",
    )
    for choice in ("true", "false"):
        result = run_genexp(*short, f"trainer.deterministic={choice}", format_run_dir_override(tmp_path / choice))
        assert result.exit_code == 0, result.stderr
        assert not torch.are_deterministic_algorithms_enabled() or choice == "true"
    assert read_metrics_log(tmp_path / "true") == read_metrics_log(tmp_path / "false")


def test_thread_count_of_one_run_does_not_stay_for_the_next(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        result = run_genexp(
            *make_tiny_overrides("kmeans"),
            "device.threads=1",
            "trainer.max_steps=1",
            format_run_dir_override(tmp_path),
        )
        assert result.exit_code == 0, result.stderr
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_flush_denormals_rounds_denormals_to_zero() -> None:
    torch.set_flush_denormal(False)  # another test may have changed the mode
    tiny = torch.full((3,), 1e-39)
    try:
        flush_denormals()
        assert (tiny * 0.5 == 0).all()
    finally:
        torch.set_flush_denormal(False)
    assert (tiny * 0.5 > 0).all()


def test_each_rank_gets_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cuda", "mps"):
        monkeypatch.setitem(AVAILABILITY_CHECKS, name, lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    later = DeviceConfig("cuda", index=1, threads=None, processes=2)
    assert [choose_device(later, local_rank=rank, local_world_size=2).index for rank in (0, 1)] == [1, 2]
    with pytest.raises(ConfigError, match=r"device\.processes=3: too few GPUs \(3, from device\.index=1\)"):
        choose_device(later, local_world_size=3)
    with pytest.raises(ConfigError, match="device=mps: cannot be shared by 2 processes"):
        choose_device(DeviceConfig("mps", index=0, threads=None, processes=2), local_world_size=2)


def test_float64_buffers_are_replaced_for_devices_without_float64() -> None:
    module = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    module[0].register_buffer("sums", torch.ones(2, dtype=torch.float64), persistent=False)
    replace_float64_buffers(module)
    assert module[0].sums.dtype == torch.float32
    assert "0.sums" not in module.state_dict()
    assert module[0].num_batches_tracked.dtype == torch.int64
