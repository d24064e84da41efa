"""Keys that image data sets share: size, channels, held-out part, and augmentation in streams and runs."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from genexp.data.dataset import Split
from genexp.data.loading import Batch, make_loader
from genexp.data.sources._images import convert_images
from genexp.data.stream import TrainingBatches, stack_batches
from genexp.images.transforms import Augmentation
from genexp.runs.run import run_experiment
from genexp.sharding import Shard
from tests.support.assertions import assert_same, assert_same_run
from tests.support.command import format_run_dir_override, get_error_line, load_newest_state, run_genexp
from tests.support.compose import compose_values, make_tiny_overrides
from tests.support.datasets import count_labels, get_stream, load_dataset_config, load_values
from tests.support.images import write_images

AUGMENTATION = Augmentation(flip=True, crop=2, rotation=20, jitter=0.3)
AUGMENT = "dataset.augment={flip: true, crop: 2, rotation: 20, jitter: 0.3}"


def make_images(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_images_are_resized_like_those_of_a_folder() -> None:
    image = make_images(1, 1, 6, 8).expand(-1, -1, -1, -1)
    smooth = convert_images(image, 1, 24, 32)
    expected = Image.fromarray(smooth[0, 0].numpy()).resize((8, 6), Image.Resampling.BICUBIC)
    found = convert_images(smooth, 1, 6, 8)[0, 0].numpy()
    assert np.abs(found.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_channels_are_luma_or_repeated_and_sides_are_cropped_at_the_center() -> None:
    colors = make_images(3, 3, 4, 4)
    gray = convert_images(colors, 1, 4, 4)[:, 0]
    for image, found in zip(colors, gray, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")).astype(int)
        assert np.abs(found.numpy().astype(int) - expected).max() <= 1
    assert torch.equal(convert_images(gray[:, None], 3, 4, 4), gray[:, None].expand(-1, 3, -1, -1))
    wide = torch.zeros(1, 1, 4, 8, dtype=torch.uint8)
    wide[..., 2:6] = 200
    assert convert_images(wide, 1, 4, 4).unique().tolist() == [200]


def test_keys_change_shape_and_splits_of_a_data_set() -> None:
    dataset = load_values(load_dataset_config("mnist_5k", size=16, channels=3, limit=100, test_fraction=0.2))
    assert dataset.spec.image_shape == (3, 16, 16)
    assert (len(dataset.train), len(dataset.test)) == (100, 25)
    whole = load_values(load_dataset_config("mnist_5k", test_fraction=0.1))
    assert count_labels(whole.test) == [40] * 10
    original = load_values(load_dataset_config("mnist_5k"))
    rows = [
        {tuple(row) for row in get_stream(split, "image").flatten(1).tolist()}
        for split in (whole.train, whole.test)
    ]
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == {tuple(row) for row in get_stream(original.train, "image").flatten(1).tolist()}
    assert load_values(load_dataset_config("mnist_5k", size=28, channels=1)).spec == original.spec


def test_arrays_and_sources_of_derived_sets_take_the_keys(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", make_images(20, 3, 10, 12).numpy())
    arrays = load_values(load_dataset_config("arrays", file=str(tmp_path / "x.npy"), size=8, channels=1))
    assert arrays.spec.image_shape == (1, 8, 8)
    edges = load_values(load_dataset_config("edges", options={"size": 32, "channels": 3}, limit=10))
    assert edges.spec.shapes["target"] == (3, 32, 32)


def make_stream(
    split: Split, shard: Shard | None = None, seed: int = 0, batch_size: int | None = 8
) -> TrainingBatches:
    return TrainingBatches(
        make_loader(split, "cpu"),
        batch_size,
        seed=seed,
        dataset_name="x",
        shard=shard or Shard(),
        augmentation=AUGMENTATION,
    )


def take(stream: TrainingBatches, first_step: int = 1, count: int = 5) -> list[Batch]:
    return list(islice(stream.iter_batches(first_step), count))


IMAGES = Split({"image": make_images(24, 3, 10, 10), "label": torch.arange(24)})


@pytest.mark.parametrize("batch_size", [8, None])
def test_a_batch_is_a_function_of_seed_and_step(batch_size: int | None) -> None:
    stream = make_stream(IMAGES, batch_size=batch_size)
    batches = take(stream)
    assert_same(take(stream, 4, 2), batches[3:])
    assert not torch.equal(
        take(make_stream(IMAGES, seed=1, batch_size=batch_size))[0]["image"], batches[0]["image"]
    )
    plain = TrainingBatches(make_loader(IMAGES, "cpu"), batch_size, seed=0, dataset_name="x")
    for changed, unchanged in zip(batches, take(plain), strict=True):
        assert torch.equal(changed["label"], unchanged["label"])
        assert not torch.equal(changed["image"], unchanged["image"])
        assert 0 <= float(changed["image"].min()) <= float(changed["image"].max()) <= 1
    if batch_size is None:
        assert not torch.equal(batches[0]["image"], batches[1]["image"])


def test_draws_do_not_use_the_global_generator() -> None:
    state = torch.get_rng_state()
    take(make_stream(IMAGES))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("batch_size", [8, None])
def test_shards_and_ensembles_have_the_batches_of_single_runs(batch_size: int | None) -> None:
    whole = take(make_stream(IMAGES, batch_size=batch_size))
    halves = [take(make_stream(IMAGES, Shard(i, 2), batch_size=batch_size)) for i in range(2)]
    for left, right, both in zip(*halves, whole, strict=True):
        assert torch.equal(torch.cat([left["image"], right["image"]]), both["image"])
    seeds = (0, 1, 2)
    stacked = islice(stack_batches([make_stream(IMAGES, seed=s, batch_size=batch_size) for s in seeds], 2), 3)
    singles = [take(make_stream(IMAGES, seed=seed, batch_size=batch_size), 2, 3) for seed in seeds]
    for step, batch in enumerate(stacked):
        for member, single in enumerate(singles):
            torch.testing.assert_close(batch["image"][member], single[step]["image"], rtol=0, atol=1e-6)
            assert torch.equal(batch["label"][member], single[step]["label"])


def test_pairs_are_changed_alike_and_unpaired_images_are_not() -> None:
    images = make_images(16, 3, 10, 10)
    pairs = take(make_stream(Split({"input": images, "target": images})))
    assert all(torch.equal(batch["input"], batch["target"]) for batch in pairs)
    equal = torch.full((16, 1, 10, 10), 255, dtype=torch.uint8)
    unpaired = take(make_stream(Split({"a": equal, "b": equal}, is_aligned=False)))
    assert not any(torch.equal(batch["a"], batch["b"]) for batch in unpaired)


def test_images_that_are_read_one_by_one_are_changed_as_those_in_memory(tmp_path: Path) -> None:
    write_images(tmp_path, 10)
    config = load_dataset_config("image_folder", root=str(tmp_path), size=12)
    batches = []
    for resident_gb in (1.0, 0.0):
        dataset = load_values(config | {"resident_gb": resident_gb})
        loader = make_loader(dataset.train, "cpu", resident_gb, num_workers=0)
        stream = TrainingBatches(loader, 4, seed=0, dataset_name="x", augmentation=AUGMENTATION)
        batches.append(take(stream, count=3))
        stream.close()
    assert_same(*batches)


@pytest.mark.parametrize("name", ["conv_autoencoder", "pix2pix"])
def test_a_resumed_run_equals_an_uninterrupted_one(name: str, tmp_path: Path) -> None:
    overrides = (*make_tiny_overrides(name), "trainer.epochs=2", "trainer.evaluate_every=0", AUGMENT)
    values = compose_values(*overrides)
    run_experiment(values, tmp_path / "whole")
    run_experiment(values, tmp_path / "parts", until_epoch=1)
    run_experiment(values | {"resume": str(tmp_path / "parts")}, tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run_experiment(compose_values(*overrides[:-1]), tmp_path / "plain")
    states = [load_newest_state(tmp_path / name)["technique"] for name in ("whole", "plain")]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("dataset.size=0",), "dataset.size=0: must be at least 1 pixel, or null"),
        (("dataset.size=big",), "dataset.size=big: must be an integer or null"),
        (("dataset.size=1000000",), "dataset.size=1000000: needs at least"),
        (("dataset.channels=2",), "dataset.channels=2: must be 1 (gray), 3 (color), or null"),
        (("dataset.test_fraction=1",), "dataset.test_fraction=1.0: must be between 0 and 1, or null"),
        (("dataset.augment=true",), "dataset.augment=True: must be"),
        (("dataset.augment={flop: true}",), "dataset.augment: unknown key. Did you mean dataset.augment.flip?"),
        (("+dataset.augment.flop=true",), "dataset.augment.flop=True: unknown key. Did you mean flip?"),
        (("dataset.augment.flip=2",), "dataset.augment.flip=2: must be true or false"),
        (("dataset.augment.crop=-1",), "dataset.augment.crop=-1: must be pixels, 0 or more"),
        (("dataset.augment.crop=1.5",), "dataset.augment.crop=1.5: must be pixels"),
        (("dataset.augment.crop=28",), "dataset.augment.crop=28: must be below the 28 pixels of the images"),
        (("dataset.augment.rotation=181",), "dataset.augment.rotation=181: must be degrees in [0, 180]"),
        (("dataset.augment.jitter=true",), "dataset.augment.jitter=True: must be in [0, 1]"),
        (("dataset.augment.jitter=nan",), "dataset.augment.jitter=nan: must be in [0, 1]"),
        (
            ("model=kmeans", "dataset=digits", "dataset.augment.flip=true"),
            "dataset.augment: no effect, because model=kmeans",
        ),
        (
            ("model=pix2pix", "dataset=edges", "dataset.options={augment: {flip: true}}"),
            "dataset.options.augment={'flip': True}: must not be there: use dataset.augment",
        ),
        (("model=conv_autoencoder", "dataset.size=8"), "Use larger images (dataset.size=28)"),
        (("model=dcgan", "dataset.size=4"), "Use dataset.size=28, or model=gan"),
    ],
)
def test_wrong_values_are_one_line(overrides: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = run_genexp(*overrides, "device=cpu", format_run_dir_override(tmp_path / "run"))
    assert message in get_error_line(result, "genexp")


def test_runs_of_earlier_versions_lack_the_keys() -> None:
    values: dict[str, Any] = {"name": "mnist_5k", "limit": 20, "resident_gb": 4.0}
    assert len(load_values(values).train) == 20
