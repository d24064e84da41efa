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
    CanTraverse,
    Translation,
)
from genexp.cli.input_images import find_input_images, read_input_images
from genexp.cli.outputs import (
    MAX_COMPARED_IMAGES,
    make_comparison_grid,
    write_enlarged_image,
    write_image,
    write_latent_walk,
)
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.images.latent_walks import WALK_FRAMES
from genexp.runs.load import LoadedRun
from genexp.technique import Batch, Technique

SAMPLE_BATCH_SIZE = 100
INPUT_BATCH_SIZE = 32
MAX_GRID_SAMPLES, SAMPLE_GRID_COLUMNS = 400, 10  # in the picture of all samples
DEFAULT_EXAMPLES = 10  # held-out samples in a picture of before and after
DEFAULT_PATHS, TRAVERSAL_EXAMPLES = 8, 500  # ways in an interpolation; samples by which units are chosen


@dataclass(frozen=True)
class GenerationRequest:
    """What a user asks for."""

    run: LoadedRun
    output_dir: Path  # where to
    seed: int
    count: int | None = None  # None: as many as suit the product
    input_path: Path | None = None  # the user's own picture or folder of pictures, in place of held-out samples

    def load_batch(self, count: int) -> Batch:
        """Return at most `count` of the user's images, or held-out samples. Raises GenexpError."""
        if self.input_path is None:
            return self.run.get_examples(count)
        files = list(find_input_images(self.input_path))[:count]
        shape = self.run.dataset.spec.image_shape
        parts = [images for _, images in read_input_images(files, shape, INPUT_BATCH_SIZE)]
        return {"image": torch.cat(parts).to(self.run.device)}


@dataclass(frozen=True)
class OutputType:
    """Something that can be made."""

    capability: type
    generate: Callable[
        [GenerationRequest], list[Path]
    ]  # returns the files, and folders of files, that it has written
    can_use_input: bool = False


def generate_samples(request: GenerationRequest) -> list[Path]:
    """Make new images, each a file, and a picture of the first of them.

    Image i is a function of the seed and i: a larger count begins with the same images.
    """
    technique, count = request.run.technique, request.count or SAMPLE_BATCH_SIZE
    assert isinstance(technique, CanSample)
    grid_samples: list[Tensor] = []
    for start in range(0, count, SAMPLE_BATCH_SIZE):
        with request.run.seeded_eval_mode("samples", start, seed=request.seed):
            images = technique.sample(SAMPLE_BATCH_SIZE)[: count - start].cpu()
        if start < MAX_GRID_SAMPLES:
            grid_samples.append(images)
        for index, image in enumerate(images, start):
            write_image(request.output_dir / "samples" / f"seed{request.seed}-{index:05d}.png", image)
    grid = make_grid(torch.cat(grid_samples)[:MAX_GRID_SAMPLES], SAMPLE_GRID_COLUMNS)
    return [write_enlarged_image(request.output_dir / "samples.png", grid), request.output_dir / "samples"]


def generate_reconstructions(request: GenerationRequest) -> list[Path]:
    """Make what comes back of images: of the user's each a file, and a picture of before and after."""
    run = request.run
    technique = run.technique
    assert isinstance(technique, CanReconstruct)
    with run.seeded_eval_mode("reconstructions", seed=request.seed):
        if request.input_path is not None:  # taken as they are: it is the user who knows of their noise
            shape = run.dataset.spec.image_shape
            return _transform_inputs(request, "reconstructions", shape, technique.reconstruct)
        images = run.get_examples(request.count or DEFAULT_EXAMPLES)["image"]
        corrupted = technique.corrupt(images)
        rows = [images, technique.reconstruct(corrupted)]
        if corrupted is not images:
            rows.insert(1, corrupted.clamp(0, 1))
    return [write_enlarged_image(request.output_dir / "reconstructions.png", make_comparison_grid(*rows))]


def generate_interpolation(request: GenerationRequest) -> list[Path]:
    """Make walks on which each image turns into the next, and the last into the first."""
    run, count = request.run, request.count or DEFAULT_PATHS
    assert isinstance(run.technique, CanInterpolate)
    batch = request.load_batch(count)
    if len(next(iter(batch.values()))) < 2:
        raise ConfigError("an interpolation needs two images or more: raise --count, or give a folder as --input")
    with run.seeded_eval_mode("interpolation", seed=request.seed):
        images = run.technique.interpolate(batch, WALK_FRAMES)
    return write_latent_walk(request.output_dir, "interpolation", images)


def generate_traversal(request: GenerationRequest) -> list[Path]:
    """Make walks on which one unit of a code moves and the others stay, begun at the first image."""
    run = request.run
    assert isinstance(run.technique, CanTraverse)
    with run.seeded_eval_mode("traversal", seed=request.seed):
        batch = run.get_examples(TRAVERSAL_EXAMPLES)
        if request.input_path is not None:
            batch = {"image": torch.cat([request.load_batch(1)["image"], batch["image"]])}
        images = run.technique.traverse(batch, WALK_FRAMES)
    return write_latent_walk(request.output_dir, "traversal", images[:, : request.count])


def generate_cluster_table(request: GenerationRequest) -> list[Path]:
    """Make a table of the cluster of each sample of the test split, beside its label where there is one."""
    run = request.run
    technique = run.technique
    assert isinstance(technique, CanCluster)
    has_labels = "label" in run.dataset.test.streams
    assignments: list[Tensor] = []
    labels: list[Tensor] = []
    with run.seeded_eval_mode("clusters", seed=request.seed):
        for batch in run.get_test_batches():
            assignments.append(technique.assign(batch).cpu())
            labels += [batch["label"].cpu()] if has_labels else []
    columns = [torch.cat(parts).tolist()[: request.count] for parts in (assignments, labels) if parts]
    path = request.output_dir / "clusters.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["index", "cluster", "label"][: 1 + len(columns)])
        table.writerows(zip(range(len(columns[0])), *columns, strict=True))
    return [path]


def generate_stylized_image(request: GenerationRequest) -> list[Path]:
    """Make the image that was learned, pixel for pixel."""
    technique = request.run.technique
    assert isinstance(technique, CanStylize)
    with request.run.seeded_eval_mode("stylized", seed=request.seed):
        image = technique.stylize()[0]
    return [write_image(request.output_dir / "stylized.png", image)]


def generate_translations(request: GenerationRequest) -> list[Path]:
    """Make images of one kind out of images of another: each a file, and a picture of before and after."""
    technique = request.run.technique
    assert isinstance(technique, CanTranslate)
    written: list[Path] = []
    with request.run.seeded_eval_mode("translations", seed=request.seed):
        for translation in technique.translations():
            if request.input_path is None:
                written += _translate_examples(request, translation)
            else:
                shape = request.run.dataset.spec.shape(translation.source_stream)
                written += _transform_inputs(request, translation.name, shape, translation.translate)
    return written


def _translate_examples(request: GenerationRequest, translation: Translation) -> list[Path]:
    run, folder = request.run, request.output_dir / translation.name
    batch = run.get_examples(request.count or DEFAULT_EXAMPLES)
    results = torch.cat(
        [translation.translate(part) for part in batch[translation.source_stream].split(INPUT_BATCH_SIZE)]
    )
    for index, image in enumerate(results):
        write_image(folder / f"{index:05d}.png", image)
    truth = (
        [batch[translation.target_stream]]
        if run.dataset.test.is_aligned and translation.target_stream in batch
        else []
    )
    grid = make_comparison_grid(batch[translation.source_stream], results, *truth)
    return [write_enlarged_image(request.output_dir / f"{translation.name}.png", grid), folder]


def _transform_inputs(
    request: GenerationRequest, name: str, shape: Sequence[int], transform: Callable[[Tensor], Tensor]
) -> list[Path]:
    """Write what `change` makes of each of the user's images, and a picture of the first of them."""
    assert request.input_path is not None
    names = find_input_images(request.input_path)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for files, images in read_input_images(list(names)[: request.count], tuple(shape), INPUT_BATCH_SIZE):
        results = transform(images.to(request.run.device)).cpu()
        for file, image in zip(files, results, strict=True):
            write_image(request.output_dir / name / f"{names[file]}.png", image)
        if sum(len(part) for part in inputs) < MAX_COMPARED_IMAGES:
            inputs.append(images)
            outputs.append(results)
    grid = make_comparison_grid(torch.cat(inputs), torch.cat(outputs))
    return [write_enlarged_image(request.output_dir / f"{name}.png", grid), request.output_dir / name]


OUTPUT_TYPES: Mapping[str, OutputType] = {
    "samples": OutputType(CanSample, generate_samples),
    "reconstructions": OutputType(CanReconstruct, generate_reconstructions, can_use_input=True),
    "interpolation": OutputType(CanInterpolate, generate_interpolation, can_use_input=True),
    "traversal": OutputType(CanTraverse, generate_traversal, can_use_input=True),
    "clusters": OutputType(CanCluster, generate_cluster_table),
    "stylized": OutputType(CanStylize, generate_stylized_image),
    "translations": OutputType(CanTranslate, generate_translations, can_use_input=True),
}


def list_output_types(technique: type[Technique]) -> list[str]:
    """Return what can be made with a technique."""
    return [name for name, product in OUTPUT_TYPES.items() if issubclass(technique, product.capability)]
