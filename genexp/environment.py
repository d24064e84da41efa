"""What a run was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from genexp.device import describe_device

PACKAGES = ("genexp", "torch", "torchvision", "hydra-core", "numpy", "scikit-learn")


def describe_environment(device: torch.device) -> dict[str, str]:
    """Return device, versions and commit, for the records."""
    packages = {name: version(name) for name in PACKAGES}
    return {
        "device": describe_device(device),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        **packages,
    }


def _git_commit() -> str:
    """Return the commit of the checkout that the package runs from; "unknown" outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"
