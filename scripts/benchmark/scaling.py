"""Growth of time and memory with the number and size of images, the batch size and the steps."""

from __future__ import annotations

import io
import resource
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmark.compose import compose_config
from benchmark.isolated_process import run_in_new_process
from benchmark.paired_rounds import PairedComparison, compare
from benchmark.step_timer import time_run

IMAGE_COUNT = 2500  # image files on disk; nine in ten are in the training split
FASHION_OVERRIDES = ("model=conv_autoencoder", "dataset=fashion_mnist", "trainer.max_steps=60")
IMAGE_FOLDER_OVERRIDES = (
    "model=conv_autoencoder",
    "dataset=image_folder",
    "dataset.channels=1",
    "trainer.max_steps=30",
)
COMMON_OVERRIDES = ("device=cpu", "trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.epochs=1000000")


@dataclass(frozen=True)
class ScalingAxis:
    """A quantity that grows, and the command-line overrides for each of its values."""

    name: str
    values: tuple[int, ...]
    make_overrides: Callable[[int], tuple[str, ...]]


AXES = (
    ScalingAxis(
        "images in memory",
        (1000, 4000, 15_000, 60_000),
        lambda count: (*FASHION_OVERRIDES, f"dataset.limit={count}"),
    ),
    ScalingAxis(
        "images streamed",
        (1000, 4000, 15_000, 60_000),
        lambda count: (*FASHION_OVERRIDES, f"dataset.limit={count}", "dataset.resident_gb=0"),
    ),
    ScalingAxis(
        "picture files streamed",
        (500, 2000),
        lambda count: (
            *IMAGE_FOLDER_OVERRIDES,
            "dataset.size=28",
            f"dataset.limit={count}",
            "dataset.resident_gb=0",
        ),
    ),
    ScalingAxis("pixels a side", (16, 32, 64), lambda side: (*IMAGE_FOLDER_OVERRIDES, f"dataset.size={side}")),
    ScalingAxis(
        "images in a batch", (10, 50, 200, 500), lambda size: (*FASHION_OVERRIDES, f"trainer.batch_size={size}")
    ),
    ScalingAxis(
        "steps", (500, 2000, 4000), lambda steps: ("model=stacked_autoencoder", f"trainer.max_steps={steps}")
    ),
)


def run(rounds: int, axes: tuple[ScalingAxis, ...] = AXES) -> list[PairedComparison]:
    """Measure ms/step and peak memory of each value of an axis against the axis' first value."""
    rows = []
    with tempfile.TemporaryDirectory() as image_dir:
        _write_images(Path(image_dir))
        for axis in axes:
            measurements = [
                [_measure_in_new_process(axis.make_overrides(value), image_dir) for value in axis.values]
                for _ in range(rounds)
            ]
            for unit_index, unit in enumerate(("ms/step", "MB")):
                first = [measurement[0][unit_index] for measurement in measurements]
                for index, value in enumerate(axis.values):
                    values = [each[index][unit_index] for each in measurements]
                    rows.append(compare(f"{value:,} {axis.name}", f"{axis.values[0]:,}", values, first, unit=unit))
    return rows


def _write_images(image_dir: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(IMAGE_COUNT):
        pixels = generator.integers(256, size=(128, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(image_dir / f"{number:05d}.png", compress_level=1)


def _measure_in_new_process(overrides: tuple[str, ...], image_dir: str) -> tuple[float, float]:
    """Return the ms/step and the peak memory in MB of a run in a new process."""
    root = (f"dataset.root='{image_dir}'",) if "dataset=image_folder" in overrides else ()
    return run_in_new_process(_measure_run, (*overrides, *root, *COMMON_OVERRIDES))


def _measure_run(overrides: tuple[str, ...]) -> tuple[float, float]:
    config = compose_config(*overrides)
    with redirect_stdout(io.StringIO()):
        timer = time_run(config)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1e3 * timer.seconds / config["trainer"]["max_steps"], kilobytes / 1e3
