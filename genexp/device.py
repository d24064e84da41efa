"""Devices: selection, precision support, determinism, available memory and description."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil
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
MAX_THREADS_PER_CORE = 16  # a run with hundreds of threads per core takes minutes for a step
ModuleT = TypeVar("ModuleT", bound=nn.Module)
# The memory limit of a Linux container, by control groups version 2 and 1.
CONTAINER_LIMIT_FILES = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass
class DeviceConfig:
    """Device settings (conf/device/*.yaml)."""

    name: str  # one of DEVICE_CHOICES
    index: int  # index of the GPU; with several processes, that of the first
    threads: int | None  # CPU threads of each process; None keeps torch's default
    processes: int  # number of processes that share the run, each with its rows of every batch
    memory_gb: float | None = None  # memory that `check_memory` allows, in 10⁹ bytes; None: what is available

    def __post_init__(self) -> None:
        require(self.name in DEVICE_CHOICES, "name", self.name, f"must be one of {', '.join(DEVICE_CHOICES)}")
        require(self.threads is None or self.threads > 0, "threads", self.threads, "must be at least 1, or null")
        max_threads = MAX_THREADS_PER_CORE * (os.cpu_count() or 1)
        is_fast = self.threads is None or self.threads <= max_threads
        require(is_fast, "threads", self.threads, f"must be at most {max_threads}")
        require(self.index >= 0, "index", self.index, "must be 0 or more")
        require(self.processes > 0, "processes", self.processes, "must be at least 1")
        is_valid = self.memory_gb is None or self.memory_gb > 0
        require(is_valid, "memory_gb", self.memory_gb, "must be positive, or null for the available memory")


@contextmanager
def keep_thread_count() -> Iterator[None]:
    """Restore the number of torch's CPU threads after the block: the next job of a sweep may leave it to torch."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(config: DeviceConfig, *, local_rank: int = 0, local_world_size: int = 1) -> torch.device:
    """Return the device that `config` names, and set the number of torch's CPU threads and the allowed memory.

    "auto" is the first available of cuda, mps and cpu. Each of the `local_world_size` processes on this machine
    has its own GPU. Raises ConfigError.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    allow_memory(config.memory_gb)
    name = config.name
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if AVAILABILITY_CHECKS[kind]())
    if not AVAILABILITY_CHECKS[name]():
        raise ConfigError(f"device={name}: not available to torch {torch.__version__}. Use device=cpu.")
    if name == "mps" and local_world_size > 1:
        raise ConfigError(f"device=mps: cannot be shared by {local_world_size} processes. Use one, or device=cpu.")
    if name != "cuda":
        return torch.device(name)
    gpu_count = torch.cuda.device_count()
    if config.index >= gpu_count:
        raise ConfigError(f"device.index={config.index}: must be less than the number of GPUs ({gpu_count}).")
    if config.index + local_world_size > gpu_count:
        raise ConfigError(
            f"device.processes={local_world_size}: too few GPUs ({gpu_count}, from device.index={config.index}). "
            f"Use fewer processes."
        )
    return torch.device("cuda", config.index + local_rank)


_allowed_bytes: float | None = None  # set by `allow_memory`


def allow_memory(gigabytes: float | None) -> None:
    """Set the memory that `check_memory` allows in this process, in 10⁹ bytes. None: what is available."""
    global _allowed_bytes
    _allowed_bytes = None if gigabytes is None else gigabytes * 1e9


def check_memory(needed_bytes: float, setting: str) -> None:
    """Raise ConfigError if `needed_bytes` exceed the available memory, before anything is allocated.

    `setting` names the key and value that cause the need, such as "dataset.n_samples=10". `needed_bytes` should be
    a lower bound, so that no possible run is refused.
    """
    allowed_bytes = measure_available_memory() if _allowed_bytes is None else _allowed_bytes
    if needed_bytes > allowed_bytes:
        raise ConfigError(
            f"{setting}: needs at least {format_bytes(needed_bytes)} of memory, and {format_bytes(allowed_bytes)} "
            f"are available. Use a smaller value, or set device.memory_gb to allow more."
        )


def measure_available_memory() -> int:
    """Return the free memory in bytes, or the limit of the container if that is less."""
    limits = [psutil.virtual_memory().available]
    for path in CONTAINER_LIMIT_FILES:
        try:
            limits.append(int(path.read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or the limit "max"
            continue
    return min(limits)


def format_bytes(count: float) -> str:
    """Return a number of bytes with three digits and a decimal unit, such as "3.14 GB"."""
    units = ("B", "kB", "MB", "GB", "TB", "PB")
    index = min(len(units) - 1, max(0, int(math.log10(max(1.0, count)) // 3)))
    return f"{count / 1000**index:.3g} {units[index]}"


def move_to_device(module: ModuleT, device: torch.device) -> ModuleT:
    """Move `module` to `device`, with convolution filters in the fastest memory format for it.

    On a CPU this is channels last. Each convolution then also outputs channels last, so that the next one need not
    convert its input. Networks with group normalization keep the default format, because torch's group
    normalization is slow in channels last.
    """
    if device.type == "mps":
        replace_float64_buffers(module)
    module.to(device)
    layers = list(module.modules())
    if device.type == "cpu" and not any(isinstance(layer, nn.GroupNorm) for layer in layers):
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                # `Tensor.contiguous` would not change the strides of filters for one channel.
                layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
    return module


def replace_float64_buffers(module: nn.Module) -> None:
    """Convert the float64 buffers of `module` to float32: MPS has no float64."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer.dtype == torch.float64:
                part.register_buffer(name, buffer.float(), name not in part._non_persistent_buffers_set)


def has_bf16_matmul(device: torch.device) -> bool:
    """Return whether `device` is a CPU with instructions for bfloat16 matrix products (AMX)."""
    return _has_cpu_capability("amx_bf16", device)


def has_bf16_arithmetic(device: torch.device) -> bool:
    """Return whether `device` is a CPU with bfloat16 instructions, for matrices (AMX) or vectors (AVX-512)."""
    return has_bf16_matmul(device) or _has_cpu_capability("avx512_bf16", device)


def _has_cpu_capability(capability: str, device: torch.device) -> bool:
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older torch releases lack it
        return False
    return bool(torch.cpu.get_capabilities().get(capability))


@contextmanager
def use_bf16_matmul() -> Iterator[None]:
    """Round the factors of float32 matrix products on the CPU to bfloat16 within the block.

    Products are accumulated in float32. All other operations, and products too small to benefit, stay in float32.
    """
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # a property creates it
    previous, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = previous


def flush_denormals() -> None:
    """Replace denormals (float32 magnitudes below 1.2e-38) by 0, in this thread and those that it starts later.

    Once gradients vanish, Adam's moment estimates decay to denormals. With them a whole step takes several times
    as long on an Intel processor.
    """
    torch.set_flush_denormal(True)


def use_deterministic_algorithms(enabled: bool) -> None:
    """Enable or disable torch's deterministic algorithms, whose results are bit-identical on one machine.

    They are slower on a GPU and cost nothing on a CPU.
    """
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
    # Also disabled explicitly, because the runs of a sweep share one process.
    if enabled != torch.are_deterministic_algorithms_enabled():  # the call imports torch's compiler, about 1 s
        torch.use_deterministic_algorithms(enabled)


def synchronize(device: torch.device) -> None:
    """Wait until all work queued on `device` is done. Does nothing on a CPU."""
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def describe_device(device: torch.device, world_size: int = 1) -> str:
    """Return a description of the device for logs, such as "cpu (8 threads)"; "4 × …" for 4 processes."""
    if world_size > 1:
        return f"{world_size} × {describe_device(device)}"
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device} ({threads} thread{'s' if threads > 1 else ''})" if device.type == "cpu" else str(device)


def promote_to_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` (of any shape) in float32, or unchanged if it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
