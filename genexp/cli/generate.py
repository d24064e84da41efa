"""What can be made with a run's technique, each from an ability that the technique declares."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from genexp.capabilities import (
    CanCluster,
    CanInterpolate,
    CanReconstruct,
    CanSample,
    CanStylize,
    CanTranslate,
    Translation,
    CanTraverse,
)
from genexp.cli.input_images import find_inputs, read_inputs
from genexp.cli.outputs import SHOWN_CHANGES, changes, write_image, write_picture, write_walk
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.images.latent_walks import WALK_FRAMES
from genexp.runs.load import FinishedRun
from genexp.technique import Batch, Technique

SAMPLED_AT_ONCE = 100
READ_AT_ONCE = 32
SHOWN_SAMPLES, SAMPLE_COLUMNS = 400, 10  # in the picture of all samples
CHANGED = 10  # held-out samples in a picture of before and after
PATHS, DIRECTION_EXAMPLES = 8, 500  # ways in an interpolation; samples by which units are chosen


@dataclass(frozen=True)
class Order:
    """What a user asks for."""

    run: FinishedRun
    folder: Path  # where to
    seed: int
    count: int | None = None  # None: as many as suit the product
    input: Path | None = None  # the user's own picture or folder of pictures, in place of held-out samples

    def batch(self, count: int) -> Batch:
        """Return at most `count` of the user's images, or held-out samples. Raises GenexpError."""
        if self.input is None:
            return self.run.examples(count)
        files = list(find_inputs(self.input))[:count]
        shape = self.run.dataset.spec.image_shape
        parts = [images for _, images in read_inputs(files, shape, READ_AT_ONCE)]
        return {"image": torch.cat(parts).to(self.run.device)}


@dataclass(frozen=True)
class Product:
    """Something that can be made."""

    ability: type
    make: Callable[[Order], list[Path]]  # returns the files, and folders of files, that it has written
    takes_input: bool = False


def samples(order: Order) -> list[Path]:
    """Make new images, each a file, and a picture of the first of them.

    Image i is a function of the seed and i: a larger count begins with the same images.
    """
    technique, count = order.run.technique, order.count or SAMPLED_AT_ONCE
    assert isinstance(technique, CanSample)
    shown: list[Tensor] = []
    for start in range(0, count, SAMPLED_AT_ONCE):
        with order.run.looking("samples", start, seed=order.seed):
            images = technique.sample(SAMPLED_AT_ONCE)[: count - start].cpu()
        if start < SHOWN_SAMPLES:
            shown.append(images)
        for index, image in enumerate(images, start):
            write_image(order.folder / "samples" / f"seed{order.seed}-{index:05d}.png", image)
    picture = make_grid(torch.cat(shown)[:SHOWN_SAMPLES], SAMPLE_COLUMNS)
    return [write_picture(order.folder / "samples.png", picture), order.folder / "samples"]


def reconstructions(order: Order) -> list[Path]:
    """Make what comes back of images: of the user's each a file, and a picture of before and after."""
    run = order.run
    technique = run.technique
    assert isinstance(technique, CanReconstruct)
    with run.looking("reconstructions", seed=order.seed):
        if order.input is not None:  # taken as they are: it is the user who knows of their noise
            shape = run.dataset.spec.image_shape
            return _changed_inputs(order, "reconstructions", shape, technique.reconstruct)
        images = run.examples(order.count or CHANGED)["image"]
        seen = technique.corrupt(images)
        shown = [images, technique.reconstruct(seen)]
        if seen is not images:
            shown.insert(1, seen.clamp(0, 1))
    return [write_picture(order.folder / "reconstructions.png", changes(*shown))]


def interpolation(order: Order) -> list[Path]:
    """Make walks on which each image turns into the next, and the last into the first."""
    run, count = order.run, order.count or PATHS
    assert isinstance(run.technique, CanInterpolate)
    batch = order.batch(count)
    if len(next(iter(batch.values()))) < 2:
        raise ConfigError("an interpolation needs two images or more: raise --count, or give a folder as --input")
    with run.looking("interpolation", seed=order.seed):
        images = run.technique.interpolate(batch, WALK_FRAMES)
    return write_walk(order.folder, "interpolation", images)


def traversal(order: Order) -> list[Path]:
    """Make walks on which one unit of a code moves and the others stay, begun at the first image."""
    run = order.run
    assert isinstance(run.technique, CanTraverse)
    with run.looking("traversal", seed=order.seed):
        batch = run.examples(DIRECTION_EXAMPLES)
        if order.input is not None:
            batch = {"image": torch.cat([order.batch(1)["image"], batch["image"]])}
        images = run.technique.traverse(batch, WALK_FRAMES)
    return write_walk(order.folder, "traversal", images[:, : order.count])


def clusters(order: Order) -> list[Path]:
    """Make a table of the cluster of each sample of the test split, beside its label where there is one."""
    run = order.run
    technique = run.technique
    assert isinstance(technique, CanCluster)
    labelled = "label" in run.dataset.test.streams
    found: list[Tensor] = []
    labels: list[Tensor] = []
    with run.looking("clusters", seed=order.seed):
        for batch in run.test():
            found.append(technique.assign(batch).cpu())
            labels += [batch["label"].cpu()] if labelled else []
    columns = [torch.cat(parts).tolist()[: order.count] for parts in (found, labels) if parts]
    path = order.folder / "clusters.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "cluster", "label"][: 1 + len(columns)])
        table.writerows(zip(range(len(columns[0])), *columns, strict=True))
    return [path]


def stylised(order: Order) -> list[Path]:
    """Make the image that was learned, pixel for pixel."""
    technique = order.run.technique
    assert isinstance(technique, CanStylize)
    with order.run.looking("stylised", seed=order.seed):
        image = technique.stylize()[0]
    return [write_image(order.folder / "stylised.png", image)]


def translations(order: Order) -> list[Path]:
    """Make images of one kind out of images of another: each a file, and a picture of before and after."""
    technique = order.run.technique
    assert isinstance(technique, CanTranslate)
    written: list[Path] = []
    with order.run.looking("translations", seed=order.seed):
        for way in technique.translations():
            if order.input is None:
                written += _translated_examples(order, way)
            else:
                shape = order.run.dataset.spec.shape(way.source_stream)
                written += _changed_inputs(order, way.name, shape, way.translate)
    return written


def _translated_examples(order: Order, way: Translation) -> list[Path]:
    run, folder = order.run, order.folder / way.name
    batch = run.examples(order.count or CHANGED)
    results = torch.cat([way.translate(part) for part in batch[way.source_stream].split(READ_AT_ONCE)])
    for index, image in enumerate(results):
        write_image(folder / f"{index:05d}.png", image)
    truth = [batch[way.target_stream]] if run.dataset.test.is_aligned and way.target_stream in batch else []
    picture = changes(batch[way.source_stream], results, *truth)
    return [write_picture(order.folder / f"{way.name}.png", picture), folder]


def _changed_inputs(
    order: Order, name: str, shape: Sequence[int], change: Callable[[Tensor], Tensor]
) -> list[Path]:
    """Write what `change` makes of each of the user's images, and a picture of the first of them."""
    assert order.input is not None
    names = find_inputs(order.input)
    before: list[Tensor] = []
    after: list[Tensor] = []
    for files, images in read_inputs(list(names)[: order.count], tuple(shape), READ_AT_ONCE):
        results = change(images.to(order.run.device)).cpu()
        for file, image in zip(files, results, strict=True):
            write_image(order.folder / name / f"{names[file]}.png", image)
        if sum(len(part) for part in before) < SHOWN_CHANGES:
            before.append(images)
            after.append(results)
    picture = changes(torch.cat(before), torch.cat(after))
    return [write_picture(order.folder / f"{name}.png", picture), order.folder / name]


PRODUCTS: Mapping[str, Product] = {
    "samples": Product(CanSample, samples),
    "reconstructions": Product(CanReconstruct, reconstructions, takes_input=True),
    "interpolation": Product(CanInterpolate, interpolation, takes_input=True),
    "traversal": Product(CanTraverse, traversal, takes_input=True),
    "clusters": Product(CanCluster, clusters),
    "stylised": Product(CanStylize, stylised),
    "translations": Product(CanTranslate, translations, takes_input=True),
}


def products_of(technique: type[Technique]) -> list[str]:
    """Return what can be made with a technique."""
    return [name for name, product in PRODUCTS.items() if issubclass(technique, product.ability)]
