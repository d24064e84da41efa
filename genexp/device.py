"""Where a run computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from genexp.config import require
from genexp.errors import ConfigError

AVAILABILITY_CHECKS: dict[str, Callable[[], bool]] = {
    "cpu": lambda: True,
    "cuda": torch.cuda.is_available,
    "mps": torch.backends.mps.is_available,
}
DEVICE_CHOICES = ("auto", *AVAILABILITY_CHECKS)
ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass
class DeviceConfig:
    """conf/device/*.yaml."""

    name: str
    index: int  # which GPU, where there are several
    threads: int | None  # CPU threads of each process; null leaves torch's choice
    processes: int  # how many share the run, each with some rows of every batch

    def __post_init__(self) -> None:
        require(self.name in DEVICE_CHOICES, "name", self.name, f"choose one of {', '.join(DEVICE_CHOICES)}")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "use at least 1, or null")
        require(self.index >= 0, "index", self.index, "use 0 or more")
        require(self.processes > 0, "processes", self.processes, "use at least 1")


def choose_device(config: DeviceConfig, *, local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """Return the device that `config` names; "auto" is the first of cuda, mps, cpu that is there.

    Of several `processes` on this machine each has a GPU of its own. Raises ConfigError.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    name = config.name
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if AVAILABILITY_CHECKS[kind]())
    if not AVAILABILITY_CHECKS[name]():
        raise ConfigError(f"device={name}: torch {torch.__version__} finds no such device here; use device=cpu")
    if name == "mps" and local_world_size > 1:
        raise ConfigError(f"device=mps cannot be shared by {local_world_size} processes; use one, or device=cpu")
    if name != "cuda":
        return torch.device(name)
    gpu_count = torch.cuda.device_count()
    if config.index >= gpu_count:
        raise ConfigError(f"device.index={config.index}: there are {gpu_count} GPUs, counted from 0; lower it")
    if config.index + local_world_size > gpu_count:
        raise ConfigError(
            f"{local_world_size} processes from device.index={config.index} on want a GPU each, "
            f"and there are {gpu_count}; use fewer processes"
        )
    return torch.device("cuda", config.index + local_rank)


def move_to_device(module: ModuleT, device: torch.device) -> ModuleT:
    """Bring a module to `device`, its filters in the layout in which convolutions are fastest there.

    On a processor that is channels last: it spares each convolution the bringing of its input into that order.
    """
    module.to(device)
    if device.type == "cpu":
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)
    return module


def has_bf16_matmul(device: torch.device) -> bool:
    """Return whether `device` is a processor with instructions for matrices of bfloat16 (AMX)."""
    return _has_cpu_capability("amx_bf16", device)


def has_bf16_arithmetic(device: torch.device) -> bool:
    """Return whether `device` is a processor with instructions for bfloat16: for matrices, or for vectors."""
    return has_bf16_matmul(device) or _has_cpu_capability("avx512_bf16", device)


def _has_cpu_capability(capability: str, device: torch.device) -> bool:
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # which older releases lack
        return False
    return bool(torch.cpu.get_capabilities().get(capability))


@contextmanager
def use_bf16_matmul() -> Iterator[None]:
    """Multiply float32 matrices on a processor as they are rounded to bfloat16, while the block runs.

    The products are added in float32, and everything else is computed in it. So are products too small to gain.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made by a property of the module
    previous, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = previous


def flush_denormals() -> None:
    """Let this thread, and those that it begins from now on, compute with 0 in the place of numbers below 1e-38.

    The averages that Adam keeps of gradients which have ceased sink there, and an Intel processor needs several
    times as long for a whole step with them.
    """
    torch.set_flush_denormal(True)


def use_deterministic_algorithms(enabled: bool) -> None:
    """Make every operation repeat bit for bit on one machine, or not; slower on a GPU, free on a CPU."""
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    # Said in either case: the runs of a sweep share one process.
    if enabled != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler: a second
        torch.use_deterministic_algorithms(enabled)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done what it was asked for."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def describe_device(device: torch.device, world_size: int = 1) -> str:
    """Return the device in words, for logs, and how many processes have one of its kind."""
    if world_size > 1:
        return f"{world_size} × {describe_device(device)}"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)


def promote_to_float32(tensor: Tensor) -> Tensor:
    """Return a floating tensor in float32, or in float64 where that is the precision of all computation."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
