"""Frozen dataclasses that recorders receive: facts about the run, its progress, snapshots, and the outcome."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from torch import Tensor

from genexp.technique import Clock, PictureLabels

CellT = TypeVar("CellT")


@dataclass(frozen=True)
class RunProgress:
    """Scores, epoch means and warnings of a run up to a step. A checkpoint contains them."""

    test_metrics: Mapping[str, float] = field(default_factory=dict)  # of the latest evaluation
    best_value: float | None = None  # best value of the objective
    best_step: int | None = None
    reference_value: float | None = None  # latest value that improved by more than trainer.min_improvement
    reference_step: int | None = None
    plateau_reductions: Mapping[str, int] = field(default_factory=dict)  # phase → reductions of its learning rate
    plateau_steps: Mapping[str, int] = field(default_factory=dict)  # phase → step of the last reduction
    train_sums: Mapping[str, float] = field(default_factory=dict)  # metric → sum over the latest epoch so far
    train_counts: Mapping[str, int] = field(default_factory=dict)  # metric → number of values in the sum
    warnings: tuple[str, ...] = ()  # each once

    @property
    def train_means(self) -> dict[str, float]:
        """Mean of each training metric over the latest epoch so far."""
        return {name: total / self.train_counts[name] for name, total in self.train_sums.items()}


@dataclass(frozen=True)
class RunInfo:
    """Facts about a run that are known before its first step."""

    run_dir: Path
    model_name: str
    dataset_name: str
    config: Mapping[str, Any]  # plain containers, interpolations resolved, as in config.yaml
    total_steps: int
    steps_per_epoch: int
    batch_size: int
    num_parameters: int  # scalar parameters of the technique with requires_grad
    objective: str  # test metric that selects the best checkpoint, without the prefix "test/"
    direction: Literal["min", "max"]  # direction in which the objective improves
    class_names: tuple[str, ...] = ()  # by label; empty if the data set has none
    picture_labels: Mapping[str, PictureLabels] = field(default_factory=dict)  # picture → its labels
    environment: Mapping[str, str] = field(default_factory=dict)  # device, precision, versions, commit
    data_fingerprints: Mapping[str, str] = field(default_factory=dict)  # split → size and checksum
    completed_steps: int = 0  # step of the checkpoint that the run resumes from; 0 for a fresh run
    progress: RunProgress = field(default_factory=RunProgress)  # after `completed_steps`

    def is_recorded(self, step: int) -> bool:
        """Return whether `step` was already recorded before the run was resumed."""
        return self.completed_steps > 0 and step <= self.completed_steps


@dataclass(frozen=True)
class Curve:
    """Values of one training metric, in increasing order of steps. Steps of an inactive phase are absent."""

    steps: np.ndarray  # int64 (points,)
    values: np.ndarray  # float32 (points,)


def iter_step_rows(
    curves: Mapping[str, Curve], columns: Mapping[str, Sequence[CellT]]
) -> Iterator[tuple[int, tuple[str, ...], tuple[CellT, ...]]]:
    """Yield (step, metric names, cells) in order of steps.

    `columns` has the keys of `curves`, and one cell for each point of the curve.
    A metric that is absent at a step is absent from its row.
    """
    if not curves:
        return
    first, *others = (curve.steps for curve in curves.values())
    if all(np.array_equal(first, other) for other in others):
        names = tuple(curves)
        for step, cells in zip(first.tolist(), zip(*columns.values(), strict=True), strict=True):
            yield step, names, cells
        return
    merged: dict[int, dict[str, CellT]] = {}
    for name, curve in curves.items():
        for step, cell in zip(curve.steps.tolist(), columns[name], strict=True):
            merged.setdefault(step, {})[name] = cell
    for step in sorted(merged):
        yield step, tuple(merged[step]), tuple(merged[step].values())


@dataclass(frozen=True)
class FinalArtifacts:
    """Images and latent codes produced once, when a run ends."""

    gallery: Mapping[str, Tensor]  # uint8 (channels, height, width), or (frames, …) for an animation
    codes: Tensor | None = None  # float32 (samples, features): latent codes of held-out samples
    labels: Tensor | None = None  # (samples,): class labels of the same samples
    images: Tensor | None = None  # uint8 (samples, channels, height, width): the same samples


@dataclass(frozen=True)
class Snapshot:
    """State of a run at one step, with the metrics since the previous snapshot."""

    clock: Clock
    train_curves: Mapping[str, Curve] = field(default_factory=dict)  # metrics since the previous snapshot
    test_metrics: Mapping[str, float] = field(default_factory=dict)  # test metrics; empty if no evaluation was due
    preview_images: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # previews: uint8 (channels, height, width), CPU
    progress: RunProgress = field(default_factory=RunProgress)  # up to this step
    epoch_means: Mapping[str, float] = field(default_factory=dict)  # of the last epoch that ended in this block
    checkpoint_state: Mapping[str, Any] | None = None  # full training state, if a checkpoint is due
    technique_state: Mapping[str, Tensor] | None = None  # state dict of the evaluated technique
    gradients: Mapping[str, Tensor] = field(default_factory=dict)  # of the last step, at evaluations
    final_artifacts: FinalArtifacts | None = None  # in the last snapshot only
    is_complete: bool = False  # the run ends here and is complete, not interrupted


@dataclass(frozen=True)
class RunOutcome:
    """State in which a run ended."""

    state: Literal["finished", "stopped", "failed"]  # stopped: incomplete, can be resumed
    step: int  # last recorded step
    error: str | None = None  # message of the error that ended a failed run
    resume_command: str | None = None  # command line that continues a stopped run
