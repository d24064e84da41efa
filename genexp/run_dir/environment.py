"""Software and hardware of a run, and its plugins in plugins.json. genexp never loads code named by this file."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from genexp.device import describe_device
from genexp.errors import CheckpointError
from genexp.registry import Plugin, get_plugins, list_plugin_sources
from genexp.run_dir.files import open_regular_file, write_file
from genexp.run_dir.paths import PLUGINS_FILE, format_path

RECORDED_PACKAGES = ("genexp", "torchvision", "hydra-core", "numpy", "scikit-learn")
MAX_PLUGINS_BYTES = 2**16
SHOWN_DIGITS = 12  # of a checksum in messages


def describe_environment(device: torch.device, world_size: int = 1) -> dict[str, str]:
    """Return the device, the Python and package versions, the platform and the git commit.

    The keys are "device", "python", "platform", "git_commit", "torch", those of `RECORDED_PACKAGES`, and "plugins"
    if there are any in use.
    """
    packages = {name: version(name) for name in RECORDED_PACKAGES}
    plugins = ", ".join(f"{plugin.name} (SHA-256 {plugin.sha256[:SHOWN_DIGITS]}…)" for plugin in get_plugins())
    return {
        "device": describe_device(device, world_size),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git_commit": read_git_commit(Path(__file__).resolve().parents[2]),
        "torch": torch.__version__,  # unlike the package metadata, it includes the CUDA version of the build
        **packages,
        **({"plugins": plugins} if plugins else {}),
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


@dataclass(frozen=True)
class PluginRecord:
    """A plugin that a run used."""

    name: str
    file: str
    sha256: tuple[str, ...]  # of each version that trained the run, in order


def list_plugin_options() -> list[str]:
    """Return the options `--plugin` of the plugins in use, for a command line."""
    return [word for source in list_plugin_sources() for word in ("--plugin", format_path(Path(source)))]


def check_plugins(run_dir: Path, plugins: Sequence[Plugin]) -> list[str]:
    """Return a warning for each plugin of a run that has changed. Raises CheckpointError if one is not in use."""
    warnings = []
    versions = {plugin.name: plugin.sha256 for plugin in plugins}
    for record in _read_records(run_dir):
        if record.name not in versions:
            raise CheckpointError(
                f"{format_path(run_dir)}: requires the plugin {record.name}. "
                f"Add --plugin {record.file} if you trust it."
            )
        old, new = record.sha256[-1], versions[record.name]
        if new != old:
            warnings.append(
                f"the plugin {record.name} has changed since it made {format_path(run_dir)}: "
                f"SHA-256 {old[:SHOWN_DIGITS]}…, now {new[:SHOWN_DIGITS]}…"
            )
    return warnings


def write_plugins(run_dir: Path, plugins: Sequence[Plugin]) -> None:
    """Write the plugins of a run. Earlier versions of a plugin are kept. Without plugins, no file is written."""
    earlier = {record.name: record.sha256 for record in _read_records(run_dir)}
    content = []
    for plugin in plugins:
        versions = earlier.get(plugin.name, ())
        if versions[-1:] != (plugin.sha256,):
            versions = (*versions, plugin.sha256)
        content.append({"name": plugin.name, "file": format_path(plugin.path), "sha256": list(versions)})
    if content:
        write_file(run_dir / PLUGINS_FILE, json.dumps(content, indent=1) + "\n", should_sync=True)


def _read_records(run_dir: Path) -> list[PluginRecord]:
    """Return the plugins of a run. Raises CheckpointError for a file that this module did not write."""
    path = run_dir / PLUGINS_FILE
    if not path.exists():
        return []
    try:
        with open_regular_file(path) as file:
            entries: Any = json.loads(file.read(MAX_PLUGINS_BYTES))
        records = [
            PluginRecord(
                _read_word(entry["name"]), _read_word(entry["file"]), tuple(map(_read_word, entry["sha256"]))
            )
            for entry in entries
        ]
        if not all(record.sha256 for record in records):
            raise ValueError
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise CheckpointError(f"{format_path(path)}: not a list of plugins. Restore the file.") from None
    return records


def _read_word(value: Any) -> str:
    """Return a string that can be printed in one line. Raises ValueError."""
    if not (isinstance(value, str) and value and value.isprintable()):
        raise ValueError
    return value
