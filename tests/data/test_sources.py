"""Built-in data sets: YAML keys, shapes, splits, settings and errors."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any

import pytest
import torch

from genexp.config import find_config_dir
from genexp.data import list_datasets
from genexp.data.registry import find_dataset
from genexp.errors import ConfigError
from tests.support.datasets import count_labels, get_stream, load_dataset_config, load_values

BUILTIN_DATASETS = ("blobs", "circles", "digits", "mnist_5k", "moons")  # need no directory and no network


def test_datasets_and_yaml_files_match() -> None:
    assert list_datasets() == sorted(path.stem for path in (find_config_dir() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("name", list_datasets())
def test_yaml_keys_equal_the_config_fields(name: str) -> None:
    assert sorted(load_dataset_config(name)) == sorted(field.name for field in fields(find_dataset(name)))
    assert load_dataset_config(name)["name"] == name


@pytest.mark.parametrize("name", BUILTIN_DATASETS)
def test_loading_twice_gives_the_same_data(name: str) -> None:
    first, second = load_values(load_dataset_config(name)), load_values(load_dataset_config(name))
    assert first.name == name
    for left, right in ((first.train, second.train), (first.test, second.test)):
        assert left.streams.keys() == right.streams.keys()
        assert all(torch.equal(get_stream(left, key), get_stream(right, key)) for key in left.streams)


@pytest.mark.parametrize("name", BUILTIN_DATASETS)
def test_train_and_test_share_no_sample_and_labels_fit_the_class_names(name: str) -> None:
    dataset = load_values(load_dataset_config(name))
    kind = "image" if "image" in dataset.train.streams else "point"
    train, test = (get_stream(split, kind).flatten(1) for split in (dataset.train, dataset.test))
    assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in test.tolist()}
    for split in (dataset.train, dataset.test):
        assert set(get_stream(split, "label").tolist()) == set(range(len(dataset.class_names)))
        assert get_stream(split, "label").dtype == torch.int64


def test_circles_have_the_default_radii_and_two_classes() -> None:
    dataset = load_values(load_dataset_config("circles", noise=0.0))
    points, labels = get_stream(dataset.train, "point"), get_stream(dataset.train, "label")
    assert points.shape == (500, 2)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.norm(dim=1), torch.where(labels == 0, 1.0, 0.5))
    assert dataset.spec.shapes == {"point": (2,), "label": ()}


def test_moons_and_blobs_follow_their_settings() -> None:
    assert len(load_values(load_dataset_config("moons", n_samples=40)).train) == 40
    blobs = load_values(load_dataset_config("blobs", n_samples=60, centers=3, features=5, cluster_std=0.0))
    assert blobs.spec.get_shape("point") == (5,)
    # With standard deviation 0 all points are centers, which both splits share.
    train, test = (get_stream(split, "point").unique(dim=0) for split in (blobs.train, blobs.test))
    assert len(train) == 3
    torch.testing.assert_close(train, test)


def test_another_data_seed_gives_other_points() -> None:
    first, second = (load_values(load_dataset_config("circles", data_seed=seed)) for seed in (0, 1))
    assert not torch.equal(get_stream(first.train, "point"), get_stream(second.train, "point"))


def test_digits_use_the_full_byte_range_and_split_evenly() -> None:
    dataset = load_values(load_dataset_config("digits"))
    images = get_stream(dataset.train, "image")
    assert images.shape == (1437, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert count_labels(dataset.test) == [36] * 10
    assert dataset.spec.image_shape == (1, 8, 8)


def test_loading_one_source_imports_no_library_of_another() -> None:
    code = (
        "import sys; from genexp.data import bind_dataset, load_dataset;"
        "load_dataset(bind_dataset({'name': 'mnist_5k', 'limit': None, 'resident_gb': 4.0}));"
        "print({'sklearn', 'torchvision'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mnist_5"}, r"dataset.name=mnist_5: unknown data set. Did you mean mnist_5k\?"),
        ({"name": "zzzz"}, "dataset.name=zzzz: unknown data set. Use one of: arrays, blobs, cifar10"),
        ({"limit": 0}, "dataset.limit=0: must be at least 1, or null"),
        ({"limit": "few"}, "dataset.limit=few"),
        ({"resident_gb": -1}, "dataset.resident_gb=-1.0: must be 0 or more"),
        ({"noise": -0.1}, "dataset.noise=-0.1: must be 0 or more"),
        ({"factor": 1}, "dataset.factor=1.0: must be a radius in"),
        ({"n_samples": 1}, "dataset.n_samples=1: must be at least 2"),
        ({"data_seed": -1}, "dataset.data_seed=-1: must be in"),
        ({"nois": 0.1}, r"dataset.nois: unknown key. Did you mean noise\?"),
    ],
)
def test_invalid_value_is_reported_with_its_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_values(load_dataset_config("circles") | values)


@pytest.mark.parametrize(
    ("key", "value"), [("centers", 0), ("centers", 501), ("features", 0), ("cluster_std", -1)]
)
def test_blobs_reject_invalid_settings(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"dataset.{key}={value}"):
        load_values(load_dataset_config("blobs", **{key: value}))


def test_missing_key_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"dataset.noise: missing"):
        load_values({key: value for key, value in load_dataset_config("circles").items() if key != "noise"})
    with pytest.raises(ConfigError, match=r"dataset.name: missing"):
        load_values({"limit": None})
