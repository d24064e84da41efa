"""Training steps captured as CUDA graphs, and losses compiled by torch.

A replayed graph launches all kernels of a step at once. It saves time where kernel launches dominate a step.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from genexp.technique import Batch, Clock, Metrics

WARMUP_STEPS = 3  # eager steps before the capture, in which torch allocates memory and tunes kernels
StepFunction = Callable[[Batch, Clock], Metrics]
LossFunction = Callable[[Batch, Clock], tuple[Tensor, Metrics]]

log = logging.getLogger(__name__)


class StepGraph(Protocol):
    """A function captured once and replayed with a single launch, on the same memory."""

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run `function` eagerly, in the environment of the later capture."""
        ...

    def capture(self, function: Callable[[], None]) -> None:
        """Record the kernels that `function` launches, without running them."""
        ...

    def replay(self) -> None:
        """Run the recorded kernels."""
        ...


class CudaGraph:
    """A CUDA graph on one device. Each replay draws from the current state of the CUDA random generator."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._graph = device, torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, function: Callable[[], None]) -> None:
        """Run `function` eagerly on the stream of the graph."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> None:
        """Capture `function`. Raises RuntimeError where CUDA cannot record an operation."""
        with torch.cuda.device(self._device), torch.cuda.graph(self._graph, stream=self._stream):
            function()

    def replay(self) -> None:
        """Launch the graph."""
        with torch.cuda.device(self._device):
            self._graph.replay()


def get_graph_factory(device: torch.device) -> Callable[[], StepGraph] | None:
    """Return a function that creates graphs on `device`, or None unless it is a CUDA device."""
    return (lambda: CudaGraph(device)) if device.type == "cuda" else None


def find_compile_obstacle(device: torch.device) -> str | None:
    """Return why torch cannot compile for `device`, or None. A CPU needs a compiler of C++."""
    if device.type == "cpu" and not any(map(shutil.which, [os.environ.get("CXX", "g++"), "g++", "clang++"])):
        return "no C++ compiler was found. Install g++, or set $CXX"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed. Run `pip install triton`"
    return None


class CompiledLoss:
    """A loss compiled by torch.compile. If that fails, the loss runs as it is, with a warning.

    Random numbers are those of the loss without compilation. Results differ by rounding.
    """

    def __init__(self, loss: LossFunction) -> None:
        self._loss = loss
        self._compiled: LossFunction | None = None

    def __call__(self, batch: Batch, clock: Clock) -> tuple[Tensor, Metrics]:
        """Return the loss and the metrics of a batch. The first calls compile."""
        import torch._dynamo
        import torch._inductor.config

        if self._compiled is None:
            self._compiled = torch.compile(self._loss)
        if self._compiled is self._loss:
            return self._loss(batch, clock)
        try:
            with torch._inductor.config.patch(fallback_random=True):
                return self._compiled(batch, clock)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            log.warning("trainer.compile=true: the loss runs without compilation (%s)", reason)
            self._compiled = self._loss
            return self._loss(batch, clock)


class _TrackingClock(Clock):
    """Clock that records whether its step was read, directly or through a property."""

    is_step_read: bool

    def __getattribute__(self, name: str) -> Any:
        if name == "step":
            object.__setattr__(self, "is_step_read", True)
        return super().__getattribute__(name)


class CapturedStep:
    """A training step that runs eagerly `WARMUP_STEPS` times, is then captured, and is replayed from then on.

    A replay repeats the constants of the capture. A value that is read from the clock or drawn on the CPU would
    therefore never change. A step that reads the clock or draws on the CPU is never captured. The same holds for a
    step that CUDA cannot capture, because it reads the value of a tensor on the CPU or copies data from the CPU.
    """

    def __init__(self, step_function: StepFunction, graph: StepGraph) -> None:
        self._step_function, self._graph = step_function, graph
        self._warmup_count = 0
        self._static_batch: Batch | None = None  # input tensors of the graph
        self._static_metrics: Metrics = {}  # output tensors of the graph, overwritten by each replay
        self._is_eager = False

    def __call__(self, batch: Batch, clock: Clock) -> Metrics:
        """Run the step at `clock` and return its metrics."""
        if self._is_eager:
            return self._step_function(batch, clock)
        if self._warmup_count < WARMUP_STEPS:
            return self._warm_up(batch, clock)
        if self._static_batch is None:
            self._static_batch = self._capture(batch, clock)
        if self._static_batch is None:
            return self._step_function(batch, clock)
        for name, rows in batch.items():
            self._static_batch[name].copy_(rows)
        self._graph.replay()
        # Copies, because the next replay overwrites the output tensors.
        return {name: value.clone() for name, value in self._static_metrics.items()}

    def _warm_up(self, batch: Batch, clock: Clock) -> Metrics:
        tracking_clock = _TrackingClock(clock.step, clock.total_steps, clock.steps_per_epoch)
        rng_state = torch.default_generator.get_state()
        metrics: Metrics = {}
        self._graph.warm_up(lambda: metrics.update(self._step_function(batch, tracking_clock)))
        self._warmup_count += 1
        if vars(tracking_clock).get("is_step_read"):
            self._fall_back_to_eager("the loss depends on the step number")
        elif not torch.equal(rng_state, torch.default_generator.get_state()):
            self._fall_back_to_eager("a step draws random numbers on the CPU")
        return metrics

    def _capture(self, batch: Batch, clock: Clock) -> Batch | None:
        """Capture the step on copies of `batch` and return them, or return None if the capture fails."""
        static_batch = {name: rows.clone() for name, rows in batch.items()}
        try:
            self._graph.capture(lambda: self._static_metrics.update(self._step_function(static_batch, clock)))
        except RuntimeError as error:
            self._fall_back_to_eager(
                f"CUDA cannot capture it ({next(iter(str(error).splitlines()), type(error).__name__)})"
            )
            return None
        return static_batch

    def _fall_back_to_eager(self, reason: str) -> None:
        self._is_eager = True
        log.warning("trainer.capture=true: steps run without a CUDA graph, because %s", reason)
