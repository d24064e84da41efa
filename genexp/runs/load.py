"""A run's folder as a technique with the weights that it learned, and the data that it is judged by."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from genexp.config import bind
from genexp.data.dataset import Dataset
from genexp.data.loading import SplitLoader, make_loader
from genexp.data.stream import SplitBatches, select_examples
from genexp.device import DeviceConfig, choose_device
from genexp.errors import CheckpointError
from genexp.run_dir import checkpoint
from genexp.run_dir.paths import format_path
from genexp.runs.build import EVALUATION_BATCH, build_technique
from genexp.seeding import seed_generators
from genexp.technique import Batch, Technique, find_technique
from genexp.training.trainer import evaluating


@dataclass(frozen=True)
class FinishedRun:
    """What a run has left behind, ready to be used."""

    folder: Path
    technique: Technique
    dataset: Dataset
    held_out: SplitLoader  # the test split
    device: torch.device
    seed: int
    checkpoint: Path
    step: int

    def test(self) -> SplitBatches:
        """Return the test split in order."""
        return SplitBatches(self.held_out, EVALUATION_BATCH)

    def examples(self, count: int) -> Batch:
        """Return `count` held-out samples, the classes in turn; fewer where there are fewer."""
        return select_examples(self.held_out, count)

    @contextmanager
    def looking(self, *purpose: int | str, seed: int | None = None) -> Iterator[None]:
        """Evaluate: no gradients, and the generators seeded from `seed` (else the run's) and `purpose`."""
        seed_generators(self.device, self.seed if seed is None else seed, *purpose)
        with evaluating(self.technique):
            yield


def read_config(folder: Path) -> dict[str, Any]:
    """Return the plain, resolved configuration of the run in `folder`. Raises CheckpointError."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise CheckpointError(f"{format_path(folder)} is no run's folder (it has no config.yaml); give one that is")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise CheckpointError(f"{format_path(path)} is damaged ({str(error).splitlines()[0]})") from None
    wanted = {"model", "dataset", "device", "seed"}
    if not isinstance(config, dict) or not wanted <= config.keys():
        raise CheckpointError(f"{format_path(path)} is not the configuration of a run; give a run's folder")
    return {str(key): value for key, value in config.items()}


def technique_of(config: Mapping[str, Any]) -> type[Technique]:
    """Return the class that a run's configuration names. Raises ConfigError."""
    return find_technique(config["model"]["name"])


def open_run(folder: Path, config: Mapping[str, Any], *, which: str, device: str) -> FinishedRun:
    """Return the run in `folder` with the weights of checkpoint `which`. Raises GenexpError."""
    path = find_checkpoint(folder, which)
    content = checkpoint.load(path)
    chosen = choose_device(bind(DeviceConfig, {**config["device"], "name": device, "index": 0}, "device"))
    technique, dataset = build_technique(config, chosen, config["seed"])
    # best.pt holds the weights that were judged; of a checkpoint to resume from these are the averaged ones.
    weights = content.get("average") or content["technique"]
    try:
        technique.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = textwrap.shorten(lines[min(1, len(lines) - 1)], 100, placeholder=" ...")
        raise CheckpointError(
            f"{format_path(path)} does not fit model={technique.name} of {format_path(folder)} ({reason}); "
            f"name a checkpoint of this run, or take the version of genexp that made it"
        ) from None
    held_out = make_loader(dataset.test, chosen, config["dataset"]["resident_gb"])
    return FinishedRun(folder, technique, dataset, held_out, chosen, config["seed"], path, content["step"])


def find_checkpoint(folder: Path, which: str) -> Path:
    """Return the file that "best", "newest" or a file's name means. Raises CheckpointError."""
    kept, shown = folder / checkpoint.CHECKPOINTS_DIR, format_path(folder)
    numbered = checkpoint.list_checkpoints(folder)
    best = kept / checkpoint.BEST_FILE
    if which in ("best", "newest") and not numbered and not best.is_file():
        raise CheckpointError(f"{shown} has no checkpoint: it was stopped before its first; start the run anew")
    if which == "best":
        if not best.is_file():
            raise CheckpointError(f"{shown} has no best.pt: nothing was evaluated; use --checkpoint newest")
        return best
    if which == "newest":
        if not numbered:
            raise CheckpointError(f"{shown} has no checkpoint but best.pt; use --checkpoint best")
        return numbered[0]
    for path in (kept / which, Path(which).expanduser()):
        if path.is_file():
            return path
    names = ", ".join(["best", "newest", *(path.name for path in numbered)])
    raise CheckpointError(f"--checkpoint {which} is no file, and none in {shown}; choose one of: {names}")
