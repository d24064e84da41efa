"""Data set of a directory of images: classes, decoding, broken files and errors."""

from __future__ import annotations

import multiprocessing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from genexp.data.dataset import Dataset, LazyStream
from genexp.data.loading import make_loader
from genexp.data.sources._image_files import read_image
from genexp.data.stream import SplitBatches, TrainingBatches
from genexp.errors import ConfigError, DataError
from tests.support.datasets import load_values
from tests.support.images import write_image, write_images


def load_image_folder(root: Path | None, **values: Any) -> Dataset:
    defaults = {"name": "image_folder", "limit": None, "resident_gb": 4.0, "size": 8, "channels": 3}
    return load_values({**defaults, "root": root and str(root), "test_fraction": 0.25, **values})


def get_images(dataset: Dataset, split: str = "train") -> Tensor:
    stream = getattr(dataset, split).streams["image"]
    assert isinstance(stream, Tensor)
    return stream


def get_gray_levels(dataset: Dataset, split: str = "train") -> list[int]:
    images = get_images(dataset, split)
    return images[:, 0, 0, 0].tolist()


def test_images_of_any_format_and_nesting_become_squares(tmp_path: Path) -> None:
    for number, name in enumerate(("a.png", "b.JPG", "c.webp", "d.bmp", "deep/er/e.gif", "deep/f.tiff")):
        write_image(tmp_path / "x" / name, 20 * number, size=(5 + number, 20 - number))
    (tmp_path / "x" / "notes.txt").write_text("no picture")
    write_image(tmp_path / "x" / ".hidden.png")
    dataset = load_image_folder(tmp_path / "x")
    assert len(dataset.train) + len(dataset.test) == 2  # the images in deep/; the others have no class
    assert "4 images in" in dataset.warnings[0]
    dataset = load_image_folder(tmp_path)
    assert get_images(dataset).shape[1:] == (3, 8, 8)
    assert get_images(dataset).dtype == torch.uint8
    assert len(dataset.train) + len(dataset.test) == 6
    assert dataset.class_names == ("x",)
    assert dataset.warnings == ()


def test_a_flat_folder_has_no_labels_and_the_split_is_fixed(tmp_path: Path) -> None:
    first, second = load_image_folder(write_images(tmp_path, 12)), load_image_folder(tmp_path)
    assert set(first.train.streams) == {"image"}
    assert first.class_names == ()
    assert (len(first.train), len(first.test)) == (9, 3)
    assert torch.equal(get_images(first), get_images(second))
    assert sorted(get_gray_levels(first) + get_gray_levels(first, "test")) == [10 * number for number in range(12)]


def test_split_does_not_depend_on_the_location_of_the_folder(tmp_path: Path) -> None:
    assert get_gray_levels(load_image_folder(write_images(tmp_path / "here", 12))) == get_gray_levels(
        load_image_folder(write_images(tmp_path / "there", 12))
    )


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for number in range(8):
        write_image(tmp_path / "zebra" / f"{number}.png", 10)
        write_image(tmp_path / "ant" / "big" / f"{number}.png", 20)
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == ("ant", "zebra")
    for split, count in ((dataset.train, 6), (dataset.test, 2)):
        labels, images = split.streams["label"], split.streams["image"]
        assert isinstance(labels, Tensor)
        assert isinstance(images, Tensor)
        assert torch.bincount(labels).tolist() == [count, count]
        assert torch.equal(images[:, 0, 0, 0], torch.where(labels == 0, 20, 10))


def test_one_channel_loads_grayscale(tmp_path: Path) -> None:
    assert get_images(load_image_folder(write_images(tmp_path, 12), channels=1)).shape == (9, 1, 8, 8)


def test_the_shorter_side_is_resized_and_the_center_kept(tmp_path: Path) -> None:
    image = Image.new("L", (30, 10), 0)
    image.paste(255, (10, 0, 20, 10))
    image.save(tmp_path / "wide.png")
    assert read_image(tmp_path / "wide.png", 10, 1).unique().tolist() == [255]


def test_16_bit_images_are_scaled_and_exif_rotation_is_applied(tmp_path: Path) -> None:
    Image.new("I;16", (4, 4), 128 * 256).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png", 4, 1).unique().tolist() == [128]
    rotated = Image.new("L", (2, 2), 0)
    rotated.putpixel((0, 0), 255)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    rotated.save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 2, 1).flatten().tolist() == [0, 0, 0, 255]


def test_transparent_and_palette_images_are_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 50, mode="RGBA")
    Image.new("P", (9, 9)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png", 4, 3).shape == read_image(tmp_path / "b.png", 4, 3).shape


def test_broken_files_are_skipped_with_a_warning(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    photograph = write_image(tmp_path / "cut.jpg", 99, size=(300, 300)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(photograph[: len(photograph) // 2])  # detected only by decoding
    dataset = load_image_folder(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 12
    assert dataset.warnings == (
        f"3 of 15 images in {tmp_path} are not readable and are skipped: cut.jpg, empty.jpg, text.png",
    )


def test_warning_counts_many_broken_files(tmp_path: Path) -> None:
    write_images(tmp_path, 12)
    for number in range(9):
        (tmp_path / f"bad{number}.png").write_bytes(b"")
    assert (
        load_image_folder(tmp_path)
        .warnings[0]
        .endswith("bad0.png, bad1.png, bad2.png, bad3.png, bad4.png and 4 more")
    )


@pytest.mark.parametrize("resident_gb", [4.0, 0.0])
def test_folder_of_only_broken_files_is_an_error(tmp_path: Path, resident_gb: float) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="0 readable images among 3"):
        load_image_folder(tmp_path, resident_gb=resident_gb)


def test_folder_of_only_undecodable_files_is_an_error(tmp_path: Path) -> None:
    for number in range(3):
        path = write_image(tmp_path / f"{number}.jpg", size=(300, 300))
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(DataError, match=r"3 of 3 images .* are not readable .*. Too few remain"):
        load_image_folder(tmp_path)


def test_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"dataset.root=.*: contains no images. Use"):
        load_image_folder(tmp_path)
    with pytest.raises(DataError, match=r"dataset.root=.*absent: not a directory. Use"):
        load_image_folder(tmp_path / "absent")


def test_one_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 readable images among 1"):
        load_image_folder(write_images(tmp_path, 1))


def test_two_images_are_enough(tmp_path: Path) -> None:
    dataset = load_image_folder(write_images(tmp_path, 2), test_fraction=0.01)
    assert (len(dataset.train), len(dataset.test)) == (1, 1)


@pytest.mark.parametrize(
    ("key", "value"), [("size", 0), ("channels", 2), ("test_fraction", 0.0), ("test_fraction", 1.0)]
)
def test_invalid_value_is_reported_with_its_key(tmp_path: Path, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"dataset.{key}={value}"):
        load_image_folder(tmp_path, **{key: value})


def test_a_root_is_required() -> None:
    with pytest.raises(ConfigError, match=r"dataset.root=null: must be a directory of images"):
        load_image_folder(None)


def test_circular_symlinks_terminate(tmp_path: Path) -> None:
    write_images(tmp_path / "a", 12)
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    dataset = load_image_folder(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 12


def test_streamed_batches_equal_in_memory_batches(tmp_path: Path) -> None:
    eager, lazy = load_image_folder(write_images(tmp_path, 12)), load_image_folder(tmp_path, resident_gb=0.0)
    assert isinstance(lazy.train.streams["image"], LazyStream)
    assert lazy.spec == eager.spec
    resident = TrainingBatches(make_loader(eager.train, "cpu"), 4, seed=1, dataset_name="album")
    with TrainingBatches(
        make_loader(lazy.train, "cpu", 0, num_workers=2), 4, seed=1, dataset_name="album"
    ) as streamed:
        for left, right in islice(zip(resident.iter_batches(2), streamed.iter_batches(2), strict=True), 7):
            assert torch.equal(left["image"], right["image"])
    assert not multiprocessing.active_children()
    for left, right in zip(
        *(SplitBatches(make_loader(d.test, "cpu", gb, num_workers=0), 2) for d, gb in ((eager, 4), (lazy, 0))),
        strict=True,
    ):
        assert torch.equal(left["image"], right["image"])


def test_file_deleted_after_loading_is_reported(tmp_path: Path) -> None:
    lazy = load_image_folder(write_images(tmp_path, 12), resident_gb=0.0)
    for path in tmp_path.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"\d\d.png: not readable as an image .*. Replace or remove it"):
        next(iter(SplitBatches(make_loader(lazy.train, "cpu", 0, num_workers=1), 4)))


@pytest.mark.parametrize("resident_gb", [4.0, 0.0])
def test_limit_applies_before_images_are_read(tmp_path: Path, resident_gb: float) -> None:
    dataset = load_image_folder(write_images(tmp_path, 12), limit=3, resident_gb=resident_gb)
    assert (len(dataset.train), len(dataset.test)) == (3, 1)
