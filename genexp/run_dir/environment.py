"""Software and hardware environment of a run."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from genexp.device import describe_device

RECORDED_PACKAGES = ("genexp", "torchvision", "hydra-core", "numpy", "scikit-learn")


def describe_environment(device: torch.device, world_size: int = 1) -> dict[str, str]:
    """Return the device, the Python and package versions, the platform and the git commit.

    The keys are "device", "python", "platform", "git_commit", "torch" and those of `RECORDED_PACKAGES`.
    """
    packages = {name: version(name) for name in RECORDED_PACKAGES}
    return {
        "device": describe_device(device, world_size),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": read_git_commit(Path(__file__).resolve().parents[2]),
        "torch": torch.__version__,  # unlike the package metadata, it includes the CUDA version of the build
        **packages,
    }


def read_git_commit(repo_dir: Path) -> str:
    """Return the commit of a checkout, with suffix "-dirty" if files changed; "unknown" outside a checkout."""
    if not (repo_dir / ".git").exists():
        return "unknown"  # an installed package; a parent folder may be a checkout of another project
    # No tag matches, so that the commit itself is printed and not the nearest tag.
    options = ["--always", "--dirty", "--abbrev=40", "--exclude=*"]
    command = ["git", "-C", str(repo_dir), "describe", *options]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return result.stdout.strip() or "unknown"
