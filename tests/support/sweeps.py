"""Sweeps over a tiny run."""

from __future__ import annotations

from pathlib import Path

from tests.support.command import status
from tests.support.compose import tiny

SHORT = (*tiny("stacked_autoencoder"), "trainer.epochs=2", "trainer.preview_every=0")


BREAKS = "optimizer.lr=1e-3,1e9"  # the second makes the loss infinite


def sweep(folder: Path, *words: str) -> list[str]:
    """Return the command of a sweep into `folder`."""
    return ["-m", *SHORT, *words, f"hydra.sweep.dir={folder}"]


def states(folder: Path) -> dict[str, str]:
    """Return job → its state."""
    return {path.parent.name: status(path.parent)["state"] for path in sorted(folder.glob("*/status.json"))}
