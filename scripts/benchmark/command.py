"""Whole commands against the scripts that a user of other libraries would write, each in its own process.

Both sides read the same files and do the same work. Start, evaluation, pictures and report are included.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmark.clock import get_selected_clock
from benchmark.compose import compose_config, load_composed_dataset
from benchmark.paired_rounds import PairedComparison, compare
from benchmark.process_usage import ProcessUsage, run_process
from genexp.run_dir.metrics import read_metrics

EPOCHS = 5  # of the techniques with gradients
DCGAN_EPOCHS = 1  # on two cores, five epochs of both sides take 45 minutes
ITERATIONS = 25  # of k-means from given centers
CLUSTERS = (10, 100, 1000)
SEEDS, SEEDED_POINTS = 64, 20_000
# Largest relative difference of the losses of the last epoch: the seeds differ. Of the ten ReLU units of the
# convolutional autoencoder's latent some are 0 for all images, and their number depends on the seed.
LOSS_TOLERANCES = {"stacked_autoencoder": 0.15, "vae": 0.15, "conv_autoencoder": 0.5}
MIN_EQUAL_LABELS = 0.99  # smallest fraction of points with equal labels; rounding grows over the iterations
INERTIA_TOLERANCE = 1e-4  # largest relative difference of inertias from the same centers
MEAN_INERTIA_TOLERANCE = 0.01  # the same for means over seeds, whose centers differ
RIVALS = Path(__file__).parent / "rivals"
GENEXP_COMMAND = (sys.executable, "-m", "genexp.train")
TORCHVISION_NAMES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}  # data set → directory of its files


@dataclass(frozen=True)
class CommandTask:
    """A command of genexp, and the scripts that do the same work."""

    name: str
    arguments: tuple[str, ...]  # of genexp
    rivals: Mapping[str, tuple[str, ...]]  # name → script in rivals/ and its arguments
    check: Callable[[Path, Path], None]  # directories of genexp and of a rival; raises AssertionError
    has_fit_time: bool = False  # the scripts report the seconds of the fit alone
    is_sweep: bool = False


def run(rounds: int, parts: Sequence[str] = ()) -> dict[str, list[PairedComparison]]:
    """Measure whole processes. Return part → rows. `parts` are keys of `PARTS`; none means all.

    Raises AssertionError if a process fails, or if both sides computed different things.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        return {
            part: [row for task in PARTS[part](scratch) for row in _compare_task(task, rounds, scratch)]
            for part in parts or PARTS
        }


def _compare_task(task: CommandTask, rounds: int, scratch: Path) -> list[PairedComparison]:
    usages: dict[str, list[ProcessUsage]] = {name: [] for name in ("", *task.rivals)}
    fits: dict[str, list[dict[str, float]]] = {name: [] for name in task.rivals}
    for _ in range(rounds):
        directories = {name: scratch / f"contender-{index}" for index, name in enumerate(usages)}
        for name, directory in directories.items():
            directory.mkdir()
            usages[name].append(_run_contender(task, name, directory))
        for name in task.rivals:
            task.check(directories[""], directories[name])
            fits[name].append(json.loads((directories[name] / "result.json").read_text()))
        for directory in directories.values():
            shutil.rmtree(directory)
    rows = []
    for name in task.rivals:
        ours, theirs = usages[""], usages[name]
        for measure, unit in (("wall", "s"), ("processor", "s"), ("peak_mb", "MB"), ("disk_mb", "MB")):
            values = [[getattr(usage, measure) for usage in side] for side in (ours, theirs)]
            rows.append(compare(task.name, name, *values, unit=unit, measure=MEASURES[measure]))
        if task.has_fit_time:
            rows += _compare_fits(task.name, name, ours, fits[name])
    return rows


MEASURES = {
    "wall": "wall time",
    "processor": "processor time",
    "peak_mb": "peak memory",
    "disk_mb": "files left",
}


def _compare_fits(
    task: str, rival: str, ours: Sequence[ProcessUsage], fits: Sequence[Mapping[str, float]]
) -> list[PairedComparison]:
    """Compare all that the run does after its start with the fit of the rival alone."""
    rows = []
    for measure, key, name in (
        ("wall_after_start", "fit_seconds", "after the start, against the fit alone"),
        ("processor_after_start", "fit_processor_seconds", "the same, processor time"),
    ):
        values = [value for usage in ours if (value := getattr(usage, measure)) is not None]
        if len(values) == len(ours):
            rows.append(compare(task, rival, values, [fit[key] for fit in fits], unit="s", measure=name))
    return rows


def _run_contender(task: CommandTask, name: str, directory: Path) -> ProcessUsage:
    threads = {"OMP_NUM_THREADS": "1"} if get_selected_clock() == "processor" else {}
    os.environ.update(threads)
    if name:
        script, *arguments = task.rivals[name]
        return run_process([sys.executable, str(RIVALS / script), *arguments], directory)
    key = "sweep" if task.is_sweep else "run"
    arguments = [*task.arguments, f"hydra.{key}.dir={directory / 'run'}"]
    log = None if task.is_sweep else directory / "run" / "train.log"
    return run_process([*GENEXP_COMMAND, *arguments], directory, log)


def _write_images(name: str, scratch: Path) -> Path:
    """Write a data set as uncompressed IDX files, where genexp and torchvision find it. Return its directory."""
    directory = scratch / "data" / TORCHVISION_NAMES[name] / "raw"
    if not directory.is_dir():
        directory.mkdir(parents=True)
        dataset = load_composed_dataset(compose_config(f"dataset={name}"))
        for split, prefix in ((dataset.train, "train"), (dataset.test, "t10k")):
            for stream, kind in (("image", "images-idx3"), ("label", "labels-idx1")):
                array = np.asarray(split.streams[stream])
                write_idx(directory / f"{prefix}-{kind}-ubyte", array[:, 0] if stream == "image" else array)
    return directory


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write an array (of any shape) of values below 256 in the IDX format of MNIST."""
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.astype(np.uint8).tobytes())


def _build_kmeans_task(scratch: Path, clusters: int) -> CommandTask:
    images = _write_images("fashion_mnist", scratch) / "train-images-idx3-ubyte"
    points = np.fromfile(images, np.uint8, offset=16).reshape(-1, 784)
    centers = scratch / f"centers-{clusters}.npy"
    np.save(centers, points[np.random.default_rng(1).permutation(len(points))[:clusters]] / np.float32(255))
    arguments = (
        *("model=kmeans", "dataset=fashion_mnist", f"dataset.root={images.parent}", "device=cpu"),
        *(f"model.clusters={clusters}", f"model.init={centers}", "model.tolerance=0"),
        f"trainer.epochs={ITERATIONS}",
    )
    script = (
        *("sklearn_kmeans.py", str(images), f"--clusters={clusters}", f"--init={centers}"),
        *(f"--iterations={ITERATIONS}", "--tolerance=0"),
    )
    return CommandTask(
        f"k-means, {len(points):,}×784, k={clusters}, {ITERATIONS} iterations",
        arguments,
        {
            f"scikit-learn, {algorithm.capitalize()}": (*script, f"--algorithm={algorithm}")
            for algorithm in ("lloyd", "elkan")
        },
        partial(_check_fit, points),
        has_fit_time=True,
    )


def _check_fit(points: np.ndarray, ours: Path, theirs: Path) -> None:
    state = _load_newest_checkpoint(ours / "run")["technique"]
    result = np.load(theirs / "result.npz")
    labels = state["labels"][0].numpy()
    equal = float((labels == result["labels"]).mean())
    assert equal >= MIN_EQUAL_LABELS, f"not the same clusters: {equal:.2%} of the labels are equal"
    inertia, their_inertia = (
        sum(
            float(((part / np.float32(255) - centers[part_labels]) ** 2).sum(dtype=np.float64))
            for part, part_labels in zip(np.array_split(points, 100), np.array_split(assigned, 100), strict=True)
        )
        for centers, assigned in ((state["centers"][0].numpy(), labels), (result["centers"], result["labels"]))
    )
    assert abs(inertia - their_inertia) <= INERTIA_TOLERANCE * their_inertia, (
        f"not the same clusters: inertia {inertia} and {their_inertia}"
    )


def _build_kmeans_seeds_task(scratch: Path) -> CommandTask:
    images = _write_images("fashion_mnist", scratch) / "train-images-idx3-ubyte"
    arguments = (
        *("-m", "model=kmeans", "dataset=fashion_mnist", f"dataset.root={images.parent}", "device=cpu"),
        *(f"dataset.limit={SEEDED_POINTS}", "model.clusters=10", "model.n_init=1", f"seed=range({SEEDS})"),
        "hydra/launcher=vectorized",
    )
    script = ("sklearn_kmeans.py", str(images), f"--limit={SEEDED_POINTS}", f"--seeds={SEEDS}")
    return CommandTask(
        f"k-means, {SEEDED_POINTS:,}×784, k=10, {SEEDS} seeds",
        arguments,
        {"scikit-learn, one fit after the other": script},
        _check_mean_inertia,
        is_sweep=True,
    )


def _check_mean_inertia(ours: Path, theirs: Path) -> None:
    finals = [
        read_metrics(path.parent)["train"]["inertia_per_point"].values[-1]
        for path in (ours / "run").glob("*/metrics.jsonl")
    ]
    assert len(finals) == SEEDS, f"{len(finals)} of {SEEDS} jobs ended"
    mean, their_mean = float(np.mean(finals)), _read_result(theirs)["inertia_per_point"]
    assert abs(mean - their_mean) <= MEAN_INERTIA_TOLERANCE * their_mean, (
        f"not the same work: mean inertia per point {mean} and {their_mean}"
    )


def _build_training_task(
    name: str, technique: str, dataset: str, scratch: Path, epochs: int | None = None
) -> CommandTask:
    """Return the training of a reference preset over `epochs` epochs, EPOCHS if None."""
    directory, epochs = _write_images(dataset, scratch), epochs or EPOCHS
    return CommandTask(
        f"{name}, {epochs} epoch{'s' if epochs > 1 else ''}",
        (
            *(f"experiment={technique}_reference", f"dataset.root={directory}", "device=cpu"),
            f"trainer.epochs={epochs}",
        ),
        {"tutorials' loop": ("source_loops.py", technique, str(scratch / "data"), f"--epochs={epochs}")},
        partial(_check_training, loss_tolerance=LOSS_TOLERANCES.get(technique)),
    )


def _check_training(ours: Path, theirs: Path, *, loss_tolerance: float | None) -> None:
    """Compare steps and numbers of weights. Compare the losses of the last epoch, unless the tolerance is None.

    In GANs these losses depend much on the seed.
    """
    state, result = _load_newest_checkpoint(ours / "run"), _read_result(theirs)
    assert state["step"] == result["steps"], f"not the same work: {state['step']} and {result['steps']} steps"
    weights = sum(
        value.numel()
        for name, value in state["technique"].items()
        if name.endswith(("weight", "bias")) and value.is_floating_point()
    )
    assert weights == result["parameters"], f"not the same network: {weights} and {result['parameters']} weights"
    if loss_tolerance is not None:
        curve = read_metrics(ours / "run")["train"]["loss"]
        loss = float(curve.values[curve.epochs == curve.epochs[-1]].mean())
        assert abs(loss - result["loss"]) <= loss_tolerance * result["loss"], (
            f"not the same work: losses {loss} and {result['loss']}"
        )


def _load_newest_checkpoint(run_dir: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(max((run_dir / "checkpoints").glob("step-*.pt")), weights_only=True)
    return state


def _read_result(directory: Path) -> dict[str, float]:
    result: dict[str, float] = json.loads((directory / "result.json").read_text())
    return result


PARTS: dict[str, Callable[[Path], list[CommandTask]]] = {
    "kmeans": lambda scratch: [_build_kmeans_task(scratch, clusters) for clusters in CLUSTERS],
    "kmeans_seeds": lambda scratch: [_build_kmeans_seeds_task(scratch)],
    "stacked_autoencoder": lambda scratch: [
        _build_training_task("stacked autoencoder", "stacked_autoencoder", "mnist", scratch)
    ],
    "vae": lambda scratch: [_build_training_task("VAE", "vae", "mnist", scratch)],
    "conv_autoencoder": lambda scratch: [
        _build_training_task("convolutional autoencoder", "conv_autoencoder", "mnist", scratch)
    ],
    "gan": lambda scratch: [_build_training_task("GAN", "gan", "fashion_mnist", scratch)],
    "dcgan": lambda scratch: [_build_training_task("DCGAN", "dcgan", "fashion_mnist", scratch, DCGAN_EPOCHS)],
}
