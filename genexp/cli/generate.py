"""Output types of `genexp-sample`, one for each capability that a technique can declare."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from genexp.cli.image_files import (
    MAX_COMPARED_IMAGES,
    find_input_images,
    make_comparison_grid,
    read_input_images,
    write_enlarged_image,
    write_image,
    write_latent_walk,
)
from genexp.errors import ConfigError
from genexp.images.grid import make_grid
from genexp.images.latent_walks import WALK_FRAMES
from genexp.run_dir.files import create_dir, write_file
from genexp.runs.load import LoadedRun
from genexp.technique import Batch, Technique, get_inputs

SAMPLE_BATCH_SIZE = 100
INPUT_BATCH_SIZE = 32
MAX_GRID_SAMPLES, SAMPLE_GRID_COLUMNS = 400, 10  # images in samples.png, and in each of its rows
NUM_DEFAULT_EXAMPLES = 10  # held-out samples in a comparison of inputs and outputs
NUM_DEFAULT_LATENT_PATHS = 8  # paths of an interpolation
NUM_TRAVERSAL_EXAMPLES = 500  # samples from which the latent units of a traversal are selected


@dataclass(frozen=True)
class GenerationRequest:
    """Arguments for generating an output."""

    run: LoadedRun
    output_dir: Path
    seed: int
    count: int | None = None  # number of outputs; None selects the default of the output type
    animation_formats: Sequence[str] = ("gif",)  # some of VIDEO_FORMATS
    input_path: Path | None = None  # image file or directory of images that replaces held-out samples

    def load_batch(self, count: int) -> Batch:
        """Return at most `count` of the user's images, or else held-out samples.

        The stream "image" is `(batch, channels, height, width)`.
        Raises DataError or ConfigError for unusable images.
        """
        if self.input_path is None:
            return self.run.get_examples(count)
        files = list(find_input_images(self.input_path))[:count]
        shape = self.run.dataset.spec.image_shape
        parts = [images for _, images in read_input_images(files, shape, INPUT_BATCH_SIZE)]
        return {"image": torch.cat(parts).to(self.run.device)}


@dataclass(frozen=True)
class OutputType:
    """An output of `genexp-sample`, and the capability it requires."""

    capability: type  # base class that the technique must inherit
    generate: Callable[[GenerationRequest], list[Path]]  # returns the files and directories it wrote
    can_use_input: bool = False  # True if the user's own images can be the input
    generate_from_points: Callable[[GenerationRequest], list[Path]] | None = None  # replaces `generate` for points


def generate_samples(request: GenerationRequest) -> list[Path]:
    """Write new images as separate files, and a grid of the first ones.

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


def generate_sampled_points(request: GenerationRequest) -> list[Path]:
    """Write new points as rows of a CSV file, in the columns and units of the user's table.

    Row i is a function of the seed and i.
    """
    technique, count = request.run.technique, request.count or SAMPLE_BATCH_SIZE
    assert isinstance(technique, CanSample)
    columns, parts = request.run.dataset.point_columns, []
    for start in range(0, count, SAMPLE_BATCH_SIZE):
        with request.run.seeded_eval_mode("samples", start, seed=request.seed):
            parts.append(technique.sample(SAMPLE_BATCH_SIZE)[: count - start].flatten(1))
    rows = _format_rows(columns.restore(torch.cat(parts)))
    return [_write_csv(request.output_dir / "samples.csv", columns.names, rows)]


def generate_reconstructions(request: GenerationRequest) -> list[Path]:
    """Write a grid of images and their reconstructions. Reconstructions of the user's images are also files."""
    run = request.run
    technique = run.technique
    assert isinstance(technique, CanReconstruct)
    with run.seeded_eval_mode("reconstructions", seed=request.seed):
        if request.input_path is not None:  # not corrupted: they may be noisy already
            shape = run.dataset.spec.image_shape
            return _transform_inputs(request, "reconstructions", shape, technique.reconstruct)
        images = run.get_examples(request.count or NUM_DEFAULT_EXAMPLES)["image"]
        corrupted = technique.corrupt(images)
        rows = [images, technique.reconstruct(corrupted)]
        if corrupted is not images:
            rows.insert(1, corrupted.clamp(0, 1))
    return [write_enlarged_image(request.output_dir / "reconstructions.png", make_comparison_grid(*rows))]


def generate_reconstructed_points(request: GenerationRequest) -> list[Path]:
    """Write each test point and its reconstruction as a row of a CSV file, in the units of the user's table."""
    run = request.run
    technique, columns = run.technique, run.dataset.point_columns
    assert isinstance(technique, CanReconstruct)
    parts: dict[str, list[Tensor]] = {"": [], "noisy_": [], "reconstructed_": []}
    with run.seeded_eval_mode("reconstructions", seed=request.seed):
        for batch in run.get_test_batches():
            points = get_inputs(batch)
            corrupted = technique.corrupt(points)
            parts[""].append(points)
            parts["noisy_"] += [] if corrupted is points else [corrupted]
            parts["reconstructed_"].append(technique.reconstruct(corrupted))
    values = {prefix: columns.restore(torch.cat(part).flatten(1)) for prefix, part in parts.items() if part}
    header = ["index", *(prefix + name for prefix in values for name in columns.names)]
    rows = _format_rows(torch.cat(list(values.values()), dim=1))[: request.count]
    rows = [[str(index), *row] for index, row in enumerate(rows)]
    return [_write_csv(request.output_dir / "reconstructions.csv", header, rows)]


def _format_rows(values: Tensor) -> list[list[str]]:
    """Return values (rows, columns) as strings with seven significant digits, the precision of float32."""
    return [[f"{value:.7g}" for value in row] for row in values.tolist()]


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file and return its path."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    create_dir(path.parent)
    write_file(path, table.getvalue())
    return path


def generate_interpolation(request: GenerationRequest) -> list[Path]:
    """Write interpolations from each image to the next, and from the last to the first, as PNG and GIF.

    Raises ConfigError for fewer than two images.
    """
    run, count = request.run, request.count or NUM_DEFAULT_LATENT_PATHS
    assert isinstance(run.technique, CanInterpolate)
    batch = request.load_batch(count)
    if len(next(iter(batch.values()))) < 2:
        raise ConfigError(
            "interpolation: requires at least two images. Use --count 2 or more, or a directory as --input."
        )
    with run.seeded_eval_mode("interpolation", seed=request.seed):
        images = run.technique.interpolate(batch, WALK_FRAMES)
    return write_latent_walk(request.output_dir, "interpolation", images, request.animation_formats)


def generate_traversal(request: GenerationRequest) -> list[Path]:
    """Write latent traversals of the first image as PNG and GIF. Each path varies one unit of its code."""
    run = request.run
    assert isinstance(run.technique, CanTraverse)
    with run.seeded_eval_mode("traversal", seed=request.seed):
        batch = run.get_examples(NUM_TRAVERSAL_EXAMPLES)
        if request.input_path is not None:
            batch = {"image": torch.cat([request.load_batch(1)["image"], batch["image"]])}
        images = run.technique.traverse(batch, WALK_FRAMES)
    walk = images[:, : request.count]
    return write_latent_walk(request.output_dir, "traversal", walk, request.animation_formats)


def generate_cluster_table(request: GenerationRequest) -> list[Path]:
    """Write a CSV file with the cluster of each test sample, and its label if the data set has labels."""
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
    header, rows = (
        ["index", "cluster", "label"][: 1 + len(columns)],
        zip(range(len(columns[0])), *columns, strict=True),
    )
    return [_write_csv(request.output_dir / "clusters.csv", header, rows)]


def generate_stylized_image(request: GenerationRequest) -> list[Path]:
    """Write the stylized image at its original size."""
    technique = request.run.technique
    assert isinstance(technique, CanStylize)
    with request.run.seeded_eval_mode("stylized", seed=request.seed):
        image = technique.stylize()[0]
    return [write_image(request.output_dir / "stylized.png", image)]


def generate_translations(request: GenerationRequest) -> list[Path]:
    """Write translations of images to another domain as separate files, and a grid of inputs and outputs."""
    technique = request.run.technique
    assert isinstance(technique, CanTranslate)
    written_paths: list[Path] = []
    with request.run.seeded_eval_mode("translations", seed=request.seed):
        for translation in technique.translations():
            if request.input_path is None:
                written_paths += _translate_examples(request, translation)
            else:
                shape = request.run.dataset.spec.get_shape(translation.source_stream)
                written_paths += _transform_inputs(request, translation.name, shape, translation.translate)
    return written_paths


def _translate_examples(request: GenerationRequest, translation: Translation) -> list[Path]:
    run, translation_dir = request.run, request.output_dir / translation.name
    batch = run.get_examples(request.count or NUM_DEFAULT_EXAMPLES)
    results = torch.cat(
        [translation.translate(part) for part in batch[translation.source_stream].split(INPUT_BATCH_SIZE)]
    )
    for index, image in enumerate(results):
        write_image(translation_dir / f"{index:05d}.png", image)
    targets = (
        [batch[translation.target_stream]]
        if run.dataset.test.is_aligned and translation.target_stream in batch
        else []
    )
    grid = make_comparison_grid(batch[translation.source_stream], results, *targets)
    return [write_enlarged_image(request.output_dir / f"{translation.name}.png", grid), translation_dir]


def _transform_inputs(
    request: GenerationRequest, name: str, shape: Sequence[int], transform: Callable[[Tensor], Tensor]
) -> list[Path]:
    """Write the result of `transform` for each of the user's images, and a grid of the first inputs and results.

    `shape` is the (channels, height, width) that `transform` accepts in batches.
    """
    assert request.input_path is not None
    names_by_file = find_input_images(request.input_path)
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    for files, images in read_input_images(list(names_by_file)[: request.count], tuple(shape), INPUT_BATCH_SIZE):
        results = transform(images.to(request.run.device)).cpu()
        for file, image in zip(files, results, strict=True):
            write_image(request.output_dir / name / f"{names_by_file[file]}.png", image)
        if sum(len(part) for part in inputs) < MAX_COMPARED_IMAGES:
            inputs.append(images)
            outputs.append(results)
    grid = make_comparison_grid(torch.cat(inputs), torch.cat(outputs))
    return [write_enlarged_image(request.output_dir / f"{name}.png", grid), request.output_dir / name]


OUTPUT_TYPES: Mapping[str, OutputType] = {
    "samples": OutputType(CanSample, generate_samples, generate_from_points=generate_sampled_points),
    "reconstructions": OutputType(
        CanReconstruct,
        generate_reconstructions,
        can_use_input=True,
        generate_from_points=generate_reconstructed_points,
    ),
    "interpolation": OutputType(CanInterpolate, generate_interpolation, can_use_input=True),
    "traversal": OutputType(CanTraverse, generate_traversal, can_use_input=True),
    "clusters": OutputType(CanCluster, generate_cluster_table, generate_from_points=generate_cluster_table),
    "stylized": OutputType(CanStylize, generate_stylized_image),
    "translations": OutputType(CanTranslate, generate_translations, can_use_input=True),
}


def list_output_types(technique_class: type[Technique]) -> list[str]:
    """Return the names of the output types that the capabilities of `technique_class` allow."""
    return [
        name for name, output_type in OUTPUT_TYPES.items() if issubclass(technique_class, output_type.capability)
    ]
