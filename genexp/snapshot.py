"""What the trainer tells the recorders: frozen facts, never the trainer itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from genexp.technique import Clock


@dataclass(frozen=True)
class RunInfo:
    """What is known before the first step."""

    run_dir: Path
    model: str
    dataset: str
    config: Mapping[str, Any]  # plain and resolved, as in config.yaml
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    num_parameters: int  # learnable numbers in the technique
    objective: str  # the test metric that names the best checkpoint
    direction: Literal["min", "max"]
    class_names: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    data_fingerprints: Mapping[str, str] = field(default_factory=dict)  # split → size and checksum
    start_step: int = 0  # the last step that is already recorded; 0 for a fresh run

    def has_recorded(self, step: int) -> bool:
        """Return whether what happened up to `step` was written down before the run was resumed."""
        return self.start_step > 0 and step <= self.start_step


@dataclass(frozen=True)
class Curve:
    """One training metric over consecutive steps; a phase that rests leaves steps out."""

    steps: np.ndarray  # int64 (points,)
    values: np.ndarray  # float32 (points,)


@dataclass(frozen=True)
class FinalArtifacts:
    """What is looked at once, when a run ends."""

    gallery: Mapping[str, Tensor]  # uint8 (channels, height, width), or (frames, channels, height, width)
    codes: Tensor | None = None  # (samples, features) latent codes of held-out samples
    labels: Tensor | None = None  # (samples,) their classes
    thumbnails: Tensor | None = None  # uint8 (samples, channels, height, width)


@dataclass(frozen=True)
class Snapshot:
    """A run at one step, and what happened since the snapshot before."""

    clock: Clock
    train: Mapping[str, Curve] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)  # empty where nothing was evaluated
    images: Mapping[str, Tensor] = field(default_factory=dict)  # uint8 (channels, height, width) on the CPU
    warnings: tuple[str, ...] = ()
    checkpoint: Mapping[str, Any] | None = None  # a full training state, when one is due
    weights: Mapping[str, Tensor] | None = None  # the technique's state, when it was evaluated
    final_artifacts: FinalArtifacts | None = None


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended."""

    state: Literal["finished", "stopped", "failed"]
    step: int
    error: str | None = None
    resume_command: str | None = None
