"""Data sets for image translation: edges, domains, pairs and unpaired folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from genexp.data.dataset import Dataset, LazyStream
from genexp.data.sources.domains import TRANSFORMS
from genexp.data.sources.edges import sobel_edges
from genexp.errors import ConfigError, DataError
from tests.support.datasets import load_values
from tests.support.images import write_images


def load_translation_dataset(name: str, **values: Any) -> Dataset:
    derived: dict[str, Any] = {"source": "digits", "options": {}}
    folders: dict[str, Any] = {"size": 8, "channels": 3, "test_fraction": 0.25}
    defaults: dict[str, dict[str, Any]] = {
        "edges": derived,
        "domains": {**derived, "change": "invert"},
        "pairs": {**folders, "root": None, "input_side": "left", "input": None, "target": None},
        "unpaired": {**folders, "a": None, "b": None},
    }
    return load_values({"name": name, "limit": None, "resident_gb": 4.0, **defaults[name], **values})


def get_stream(dataset: Dataset, stream: str, split: str = "train") -> Tensor:
    found = getattr(dataset, split).streams[stream]
    assert isinstance(found, Tensor)
    return found


def count_distinct_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct images in sorted order and their counts."""
    return torch.unique(images.flatten(1), dim=0, return_counts=True)


def test_sobel_edges_mark_brightness_changes() -> None:
    images = torch.zeros(1, 3, 6, 8, dtype=torch.uint8)
    images[..., 4:] = 255
    edges = sobel_edges(images)
    assert edges.shape == (1, 1, 6, 8)
    assert edges[0, 0, 2].tolist() == [0, 0, 0, 255, 255, 0, 0, 0]
    assert sobel_edges(torch.full((2, 1, 5, 5), 99, dtype=torch.uint8)).max() == 0


def test_edges_dataset_aligns_edges_and_images() -> None:
    dataset = load_translation_dataset("edges")
    torch.testing.assert_close(get_stream(dataset, "input"), sobel_edges(get_stream(dataset, "target")))
    assert len(dataset.train) == 1437
    assert dataset.class_names == tuple("0123456789")
    assert len(load_translation_dataset("edges", limit=30).train) == 30


@pytest.mark.parametrize("change", TRANSFORMS)
def test_domains_are_disjoint_and_the_test_split_has_ground_truth(change: str) -> None:
    dataset = load_translation_dataset("domains", change=change)
    assert not dataset.train.is_aligned
    in_a, in_b = TRANSFORMS[change]
    originals = get_stream(load_translation_dataset("edges"), "target")
    a, b = get_stream(dataset, "a"), get_stream(dataset, "b")
    assert len(a) + len(b) == len(originals)
    together = torch.cat([in_b(a[:, :1]), b])
    for found, expected in zip(
        count_distinct_images(together), count_distinct_images(in_b(originals)), strict=True
    ):
        assert torch.equal(found, expected)  # each original is in one domain or the other
    assert dataset.test.is_aligned
    held_out = load_translation_dataset("edges").test.streams["target"]
    assert isinstance(held_out, Tensor)
    assert torch.equal(get_stream(dataset, "a_as_b", "test"), in_b(held_out))
    assert torch.equal(get_stream(dataset, "b_as_a", "test"), in_a(held_out))
    assert "a_as_b" not in dataset.train.streams


def test_derived_datasets_stay_lazy_for_lazy_sources(tmp_path: Path) -> None:
    options = {"root": str(write_images(tmp_path)), "size": 8}
    eager = load_translation_dataset("edges", source="image_folder", options=options)
    lazy = load_translation_dataset("edges", source="image_folder", options=options, resident_gb=0.0)
    stream = lazy.train.streams["input"]
    assert isinstance(stream, LazyStream)
    assert torch.equal(torch.stack([stream[index] for index in range(len(stream))]), get_stream(eager, "input"))


def test_invalid_sources_fail_with_one_line() -> None:
    for source, message in (("digit", "Did you mean digits"), ("circles", "has no images")):
        with pytest.raises(ConfigError, match=f"dataset.source={source}.*{message}"):
            load_translation_dataset("edges", source=source)
    with pytest.raises(ConfigError, match=r"dataset\.options\.root=None|dataset\.options\.root=null"):
        load_translation_dataset("domains", source="image_folder")
    with pytest.raises(ConfigError, match=r"dataset\.options\.sise: unknown key"):
        load_translation_dataset("domains", source="image_folder", options={"sise": 3})


def test_pairs_are_matched_by_file_name(tmp_path: Path) -> None:
    inputs, targets = (
        write_images(tmp_path / "in"),
        write_images(tmp_path / "out", first_number=2, suffix=".jpg", gray_step=9),
    )
    (inputs / "03.png").write_bytes(b"broken")
    dataset = load_translation_dataset("pairs", input=str(inputs), target=str(targets))
    assert len(dataset.train) + len(dataset.test) == 5  # 2 to 7 without the broken one
    for split in ("train", "test"):
        input_levels, target_levels = (
            get_stream(dataset, name, split)[:, 0, 4, 4].float() for name in ("input", "target")
        )
        torch.testing.assert_close(input_levels * 9 / 10, target_levels, atol=1.5, rtol=0)
    assert any("not readable" in warning for warning in dataset.warnings)
    assert any("no file of this name" in warning for warning in dataset.warnings)


def test_pairs_can_be_halves_of_one_image(tmp_path: Path) -> None:
    for number in range(4):
        image = Image.new("RGB", (20, 10), (10 * number, 0, 0))
        image.paste((0, 10 * number, 0), (10, 0, 20, 10))
        image.save(tmp_path / f"{number}.png")
    dataset = load_translation_dataset("pairs", root=str(tmp_path))
    assert torch.equal(get_stream(dataset, "input")[:, 0], get_stream(dataset, "target")[:, 1])
    assert get_stream(dataset, "input")[:, 1].max() == 0
    swapped = load_translation_dataset("pairs", root=str(tmp_path), input_side="right")
    assert torch.equal(get_stream(swapped, "input"), get_stream(dataset, "target"))
    lazy = load_translation_dataset("pairs", root=str(tmp_path), resident_gb=0.0).train.streams["target"]
    assert isinstance(lazy, LazyStream)
    assert torch.equal(lazy[0], get_stream(dataset, "target")[0])


def test_broken_image_removes_its_pair(tmp_path: Path) -> None:
    inputs, targets = write_images(tmp_path / "in", suffix=".bmp"), write_images(tmp_path / "out", suffix=".bmp")
    file = targets / "05.bmp"
    file.write_bytes(file.read_bytes()[:100])  # a valid header without pixels
    dataset = load_translation_dataset("pairs", input=str(inputs), target=str(targets))
    assert len(dataset.train) + len(dataset.test) == 7
    assert torch.equal(get_stream(dataset, "input"), get_stream(dataset, "target"))
    assert "05.bmp" in dataset.warnings[-1]


def test_unpaired_folders_keep_their_own_lengths(tmp_path: Path) -> None:
    a, b = write_images(tmp_path / "a", 8), write_images(tmp_path / "b", 5)
    dataset = load_translation_dataset("unpaired", a=str(a), b=str(b))
    assert not dataset.train.is_aligned
    assert [len(get_stream(dataset, name)) for name in "ab"] == [6, 4]
    assert [len(get_stream(dataset, name, "test")) for name in "ab"] == [2, 1]
    more = load_translation_dataset("unpaired", a=str(write_images(a, 10)), b=str(b))
    assert len(get_stream(more, "a")) == 8


def test_invalid_folders_fail_with_one_line(tmp_path: Path) -> None:
    full, empty = str(write_images(tmp_path / "full")), str(tmp_path / "empty")
    Path(empty).mkdir()
    single = str(write_images(tmp_path / "alone", 1, first_number=90, gray_step=1))
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("pairs", {}, ConfigError, "dataset.root=null: must be a directory"),
        ("pairs", {"root": full, "input": full, "target": full}, ConfigError, "dataset.root="),
        ("pairs", {"root": empty}, DataError, "contains no readable images"),
        ("pairs", {"root": empty + "x"}, DataError, "not a directory"),
        ("pairs", {"root": single}, DataError, "1 pairs found"),
        ("pairs", {"input": full, "target": single}, DataError, "no common file names"),
        ("unpaired", {"a": full}, ConfigError, "dataset.b=null"),
        ("unpaired", {"a": full, "b": single}, DataError, "one readable image"),
    ]
    for name, values, kind, message in cases:
        with pytest.raises(kind) as excinfo:
            load_translation_dataset(name, **values)
        assert message in str(excinfo.value)
        assert "\n" not in str(excinfo.value)
