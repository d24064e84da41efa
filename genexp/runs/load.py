"""Loading of a finished or stopped run: its technique with trained weights, and its test data."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genexp.config import bind
from genexp.data import bind_dataset, load_dataset
from genexp.data.dataset import Dataset
from genexp.data.loading import SplitLoader, make_loader
from genexp.data.stream import SplitBatches, select_examples
from genexp.device import DeviceConfig, choose_device
from genexp.errors import CheckpointError, ConfigError
from genexp.registry import get_plugins
from genexp.run_dir import checkpoint
from genexp.run_dir.config_file import read_run_config
from genexp.run_dir.environment import check_plugins
from genexp.run_dir.files import check_no_links
from genexp.run_dir.paths import BEST_FILE, CHECKPOINTS_DIR, CONFIG_FILE, format_path, is_run_name
from genexp.runs.build import EVALUATION_BATCH_SIZE, build_technique
from genexp.runs.config import bind_model
from genexp.runs.resume import load_progress
from genexp.seeding import seed_generators
from genexp.technique import Batch, Technique, find_technique
from genexp.training.learner import Learner
from genexp.training.trainer import eval_mode

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedRun:
    """The trained technique of a run, with its data set and the loader of its test split."""

    run_dir: Path
    technique: Technique
    dataset: Dataset
    test_loader: SplitLoader
    device: torch.device
    seed: int  # of the run
    checkpoint_path: Path
    step: int  # of the checkpoint

    def get_test_batches(self) -> SplitBatches:
        """Return the test split in order, in batches of EVALUATION_BATCH_SIZE."""
        return SplitBatches(self.test_loader, EVALUATION_BATCH_SIZE)

    def get_examples(self, count: int) -> Batch:
        """Return the first `count` test samples, or all if there are fewer. The classes alternate if labels exist.

        Shapes: (count, *shape of the stream).
        """
        return select_examples(self.test_loader, count)

    @contextmanager
    def seeded_eval_mode(self, *purpose: int | str, seed: int | None = None) -> Iterator[None]:
        """Set evaluation mode without gradients within the block, and seed the random generators.

        The seed is derived from `purpose` and `seed`, which is by default the seed of the run.
        """
        seed_generators(self.device, self.seed if seed is None else seed, *purpose)
        with eval_mode(self.technique):
            yield


def read_config(run_dir: Path) -> dict[str, Any]:
    """Return the plain, resolved configuration of the run in `run_dir`. Log a warning for each changed plugin.

    Raises CheckpointError, also where a plugin of the run is not in use, or the directory contains links.
    """
    if run_dir.is_dir():
        check_no_links(run_dir, is_run_name)  # commands write into it
    config = read_run_config(run_dir)
    if not {"model", "dataset", "device", "seed"} <= config.keys():
        raise CheckpointError(
            f"{format_path(run_dir / CONFIG_FILE)}: not the configuration of a run. Use the directory of a run."
        )
    for warning in check_plugins(run_dir, get_plugins()):
        log.warning(warning)
    return config


def get_technique_class(config: Mapping[str, Any]) -> type[Technique]:
    """Return the technique class that a run's configuration names. Raises ConfigError."""
    return find_technique(config["model"]["name"])


def load_run(run_dir: Path, config: Mapping[str, Any], *, checkpoint_name: str, device_name: str) -> LoadedRun:
    """Return the run in `run_dir` with the weights of a checkpoint. Raises GenexpError.

    `config` is the run's configuration from `read_config`. `checkpoint_name` is an argument of `find_checkpoint`.
    `device_name` is one of DEVICE_CHOICES, and replaces the device of `config`.
    """
    path, content = _load_checkpoint(run_dir, checkpoint_name)
    torch_device = choose_device(
        bind(DeviceConfig, {**config["device"], "name": device_name, "index": 0}, "device")
    )
    dataset_config = bind_dataset(config["dataset"])
    technique_class, model_config = bind_model(config["model"])
    dataset = load_dataset(dataset_config)
    technique = build_technique(technique_class, model_config, dataset, torch_device, config["seed"])
    _load_weights(technique, content, path, format_path(run_dir))
    test_loader = make_loader(dataset.test, torch_device, dataset_config.resident_gb)
    return LoadedRun(run_dir, technique, dataset, test_loader, torch_device, config["seed"], path, content["step"])


def load_initial_weights(learner: Learner, source_dir: Path) -> None:
    """Set the weights of a new run to the best ones of the run in `source_dir`, or else the newest.

    Raises CheckpointError, and ConfigError for a technique that is fitted in closed form.
    """
    if not learner.optimizers:
        raise ConfigError(
            f"trainer.init_from={source_dir}: model={learner.technique.name} has no gradient phase. Remove it."
        )
    if not source_dir.is_dir():
        raise CheckpointError(f"trainer.init_from={source_dir}: not a directory. Use the directory of a run.")
    check_no_links(source_dir, is_run_name)
    if not (source_dir / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"trainer.init_from={source_dir}: not a run directory (no config.yaml). Use the directory of a run."
        )
    path, content = _load_checkpoint(source_dir, "best")
    _load_weights(learner.technique, content, path, f"trainer.init_from={format_path(source_dir)}")
    learner.has_loaded_weights = True
    log.info(f"initial weights: {format_path(path)}, step {content['step']:,}")


def _load_checkpoint(run_dir: Path, checkpoint_name: str) -> tuple[Path, dict[str, Any]]:
    """Return the path of a checkpoint from `find_checkpoint`, and its content.

    Raises CheckpointError, also where "best" is a checkpoint without the best weights.
    """
    path = find_checkpoint(run_dir, checkpoint_name)
    content = checkpoint.load_checkpoint(path)
    if (
        checkpoint_name == "best"
        and path.name != BEST_FILE
        and load_progress(content).best_step != content["step"]
    ):
        raise CheckpointError(
            f"{format_path(run_dir)}: no best.pt, because nothing was evaluated. Use --checkpoint newest."
        )
    return path, content


def _load_weights(technique: Technique, content: Mapping[str, Any], path: Path, source: str) -> None:
    """Set the weights of `technique` to those in the content of a checkpoint. Raises CheckpointError."""
    # best.pt contains only the weights that were evaluated. A step checkpoint of a run with EMA also contains the
    # averaged weights, which an evaluation uses.
    weights = content.get("average") or content["technique"]
    try:
        technique.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = textwrap.shorten(lines[min(1, len(lines) - 1)], 100, placeholder=" ...")
        raise CheckpointError(
            f"{format_path(path)}: does not match model={technique.name} of {source} ({reason}). "
            f"Use a checkpoint of the same model and data shape."
        ) from None
    _check_finite(technique, path)


def _check_finite(technique: Technique, path: Path) -> None:
    """Raise CheckpointError where a parameter is NaN or infinite. `path` is the checkpoint."""
    for name, weight in technique.named_parameters():
        if not weight.isfinite().all():
            raise CheckpointError(f"{format_path(path)}: {name} is NaN or infinite. Use another checkpoint.")


def find_checkpoint(run_dir: Path, checkpoint_name: str) -> Path:
    """Return the checkpoint for "best", "newest", a file name in the run, or a path.

    Without best.pt, "best" is the newest checkpoint, which may have other weights. Raises CheckpointError.
    """
    checkpoint_dir, run_path = run_dir / CHECKPOINTS_DIR, format_path(run_dir)
    checkpoints = checkpoint.list_checkpoints(run_dir)
    best = checkpoint_dir / BEST_FILE
    if checkpoint_name in ("best", "newest") and not checkpoints and not best.is_file():
        raise CheckpointError(f"{run_path}: stopped before its first checkpoint. Start a new run.")
    if checkpoint_name == "best":
        # A finished run stores its best weights only once: see CheckpointRecorder.
        return best if best.is_file() else checkpoints[0]
    if checkpoint_name == "newest":
        if not checkpoints:
            raise CheckpointError(f"{run_path}: no checkpoint except best.pt. Use --checkpoint best.")
        return checkpoints[0]
    for path in (checkpoint_dir / checkpoint_name, Path(checkpoint_name).expanduser()):
        if path.is_file():
            return path
    names = ", ".join(["best", "newest", *(path.name for path in checkpoints)])
    raise CheckpointError(
        f"--checkpoint {checkpoint_name}: not found, also not in {run_path}. Use one of: {names}."
    )
