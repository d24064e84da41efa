"""How time and memory grow: with the images, their size, the batch and the steps, each in a process of its own."""

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

from benchmark.compose import configuration
from benchmark.isolated_process import apart
from benchmark.paired_rounds import Comparison, compare
from benchmark.step_timer import watched

FILES = 2500  # pictures on disk, of which nine in ten are learned from
FASHION = ("model=conv_autoencoder", "dataset=fashion_mnist", "trainer.max_steps=60")
PICTURES = ("model=conv_autoencoder", "dataset=image_folder", "dataset.channels=1", "trainer.max_steps=30")
ALWAYS = ("device=cpu", "trainer.evaluate_every=0", "trainer.preview_every=0", "trainer.epochs=1000000")


@dataclass(frozen=True)
class Axis:
    """What grows, and the words of the command line for each place."""

    name: str
    places: tuple[int, ...]
    words: Callable[[int], tuple[str, ...]]


AXES = (
    Axis("images in memory", (1000, 4000, 15_000, 60_000), lambda count: (*FASHION, f"dataset.limit={count}")),
    Axis(
        "images streamed",
        (1000, 4000, 15_000, 60_000),
        lambda count: (*FASHION, f"dataset.limit={count}", "dataset.resident_gb=0"),
    ),
    Axis(
        "picture files streamed",
        (500, 2000),
        lambda count: (*PICTURES, "dataset.size=28", f"dataset.limit={count}", "dataset.resident_gb=0"),
    ),
    Axis("pixels a side", (16, 32, 64), lambda side: (*PICTURES, f"dataset.size={side}")),
    Axis("images in a batch", (10, 50, 200, 500), lambda size: (*FASHION, f"trainer.batch_size={size}")),
    Axis("steps", (500, 2000, 4000), lambda steps: ("model=stacked_autoencoder", f"trainer.max_steps={steps}")),
)


def run(rounds: int, axes: tuple[Axis, ...] = AXES) -> list[Comparison]:
    """Measure milliseconds a step and the most memory held, each place beside the first of its axis."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        _draw_pictures(Path(name))
        for axis in axes:
            measured = [[_measured(axis.words(place), name) for place in axis.places] for _ in range(rounds)]
            for number, unit in enumerate(("ms/step", "MB")):
                first = [each[0][number] for each in measured]
                for index, place in enumerate(axis.places):
                    figures = [each[index][number] for each in measured]
                    rows.append(
                        compare(f"{place:,} {axis.name}", f"{axis.places[0]:,}", figures, first, unit=unit)
                    )
    return rows


def _draw_pictures(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for number in range(FILES):
        pixels = generator.integers(256, size=(128, 128), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.png", compress_level=1)


def _measured(words: tuple[str, ...], pictures: str) -> tuple[float, float]:
    """Return milliseconds a step and megabytes, of a run in a new process."""
    root = (f"dataset.root='{pictures}'",) if "dataset=image_folder" in words else ()
    return apart(_run, (*words, *root, *ALWAYS))


def _run(words: tuple[str, ...]) -> tuple[float, float]:
    config = configuration(*words)
    with redirect_stdout(io.StringIO()):
        watch = watched(config)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1e3 * watch.seconds / config["trainer"]["max_steps"], kilobytes / 1e3
