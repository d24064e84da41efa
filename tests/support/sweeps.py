"""Sweeps over tiny runs."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import load_status
from tests.support.compose import make_tiny_overrides

# Overrides of the fastest model, for two epochs and for one step.
SHORT_RUN_OVERRIDES = (*make_tiny_overrides("stacked_autoencoder"), "trainer.epochs=2", "trainer.preview_every=0")
ONE_STEP_RUN_OVERRIDES = (
    *make_tiny_overrides("stacked_autoencoder"),
    "trainer.max_steps=1",
    "trainer.preview_every=0",
    "trainer.evaluate_every=0",
)
DIVERGING_LR_OVERRIDE = "optimizer.lr=1e-3,1e30"  # the second value makes the loss infinite


def make_sweep_arguments(sweep_dir: Path, *overrides: str) -> list[str]:
    """Return the arguments of a sweep of `SHORT_RUN_OVERRIDES` into `sweep_dir`."""
    return ["-m", *SHORT_RUN_OVERRIDES, *overrides, f"hydra.sweep.dir={sweep_dir}"]


def load_job_states(sweep_dir: Path) -> dict[str, str]:
    """Return job → its state."""
    return {
        path.parent.name: load_status(path.parent)["state"] for path in sorted(sweep_dir.glob("*/status.json"))
    }
