"""Translation of images: pairs and domains, pix2pix and CycleGAN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from genexp.capabilities import CanTranslate
from genexp.data import load_dataset
from genexp.data.dataset import Dataset, LazyStream
from genexp.data.sources.domains import TRANSFORMS
from genexp.data.sources.edges import sobel_edges
from genexp.errors import ConfigError, DataError
from genexp.metrics.sliced_wasserstein import sliced_wasserstein
from genexp.networks.patchgan import build_patchgan
from genexp.networks.resnet import build_resnet_generator
from genexp.networks.unet import UNet
from genexp.technique import find_technique
from genexp.techniques._image_history import ImageHistory
from tests.support.command import read_metrics_log, run_dir_override, run_genexp
from tests.support.images import write_images

IMAGE_SIZES = [(8, 8), (28, 28), (19, 30), (64, 64), (256, 256)]
ON_CPU = ("device=cpu", "device.threads=1")


def load_translation_dataset(name: str, **values: Any) -> Dataset:
    derived: dict[str, Any] = {"source": "digits", "options": {}}
    folders: dict[str, Any] = {"size": 8, "channels": 3, "test_fraction": 0.25}
    defaults: dict[str, dict[str, Any]] = {
        "edges": derived,
        "domains": {**derived, "change": "invert"},
        "pairs": {**folders, "root": None, "input_side": "left", "input": None, "target": None},
        "unpaired": {**folders, "a": None, "b": None},
    }
    return load_dataset({"name": name, "limit": None, "resident_gb": 4.0, **defaults[name], **values})


def get_stream(dataset: Dataset, stream: str, split: str = "train") -> Tensor:
    found = getattr(dataset, split).streams[stream]
    assert isinstance(found, Tensor)
    return found


def count_distinct_images(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the different images, in order, and how often each occurs."""
    return torch.unique(images.flatten(1), dim=0, return_counts=True)


# Data


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
    for source, message in (("digit", "did you mean digits"), ("circles", "has no images")):
        with pytest.raises(ConfigError, match=f"dataset.source={source} .*{message}"):
            load_translation_dataset("edges", source=source)
    with pytest.raises(ConfigError, match=r"dataset\.options\.root=None|dataset\.options\.root=null"):
        load_translation_dataset("domains", source="image_folder")
    with pytest.raises(ConfigError, match=r"dataset\.options\.sise is no key"):
        load_translation_dataset("domains", source="image_folder", options={"sise": 3})


def test_pairs_are_matched_by_file_name(tmp_path: Path) -> None:
    inputs, targets = (
        write_images(tmp_path / "in"),
        write_images(tmp_path / "out", first_number=2, suffix=".jpg", level=9),
    )
    (inputs / "03.png").write_bytes(b"broken")
    dataset = load_translation_dataset("pairs", input=str(inputs), target=str(targets))
    assert len(dataset.train) + len(dataset.test) == 5  # 2 to 7, less the broken one
    for split in ("train", "test"):
        input_levels, target_levels = (
            get_stream(dataset, name, split)[:, 0, 4, 4].float() for name in ("input", "target")
        )
        torch.testing.assert_close(input_levels * 9 / 10, target_levels, atol=1.5, rtol=0)
    assert any("cannot be read" in warning for warning in dataset.warnings)
    assert any("have no namesake" in warning for warning in dataset.warnings)


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
    file.write_bytes(file.read_bytes()[:100])  # a header that is sound, and nothing behind it
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
    single = str(write_images(tmp_path / "alone", 1, first_number=90, level=1))
    cases: list[tuple[str, dict[str, Any], type[Exception], str]] = [
        ("pairs", {}, ConfigError, "dataset.root=null: set it to a folder"),
        ("pairs", {"root": full, "input": full, "target": full}, ConfigError, "dataset.root="),
        ("pairs", {"root": empty}, DataError, "holds no readable pictures"),
        ("pairs", {"root": empty + "x"}, DataError, "is no folder"),
        ("pairs", {"root": single}, DataError, "finds 1 pairs"),
        ("pairs", {"input": full, "target": single}, DataError, "share no file names"),
        ("unpaired", {"a": full}, ConfigError, "dataset.b=null"),
        ("unpaired", {"a": full, "b": single}, DataError, "has one readable picture"),
    ]
    for name, values, kind, message in cases:
        with pytest.raises(kind) as excinfo:
            load_translation_dataset(name, **values)
        assert message in str(excinfo.value)
        assert "\n" not in str(excinfo.value)


# Networks


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_networks_accept_any_image_size(size: tuple[int, int]) -> None:
    images = torch.randn(2, 1, *size)
    for network in (
        UNet(1, 3, size, width=4, norm="batch", dropout=0.5),
        build_resnet_generator(1, 3, size, width=4, num_blocks=None),
    ):
        made = network(images)
        assert made.shape == (2, 3, *size)
        assert made.abs().max() <= 1
    assert build_patchgan(1, size, width=4, norm="batch")(images).shape[:2] == (2, 1)


@pytest.mark.parametrize(("side", "patch"), [(8, 1), (28, 16), (64, 34), (256, 70)])
def test_patchgan_score_has_the_expected_receptive_field(side: int, patch: int) -> None:
    images = torch.randn(1, 1, side, side, requires_grad=True)
    scores = build_patchgan(1, (side, side), width=4, norm="none")(images)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    assert images.grad is not None
    seen = images.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0) + 1).tolist() == [patch, patch]


def test_unet_rejects_images_that_are_too_small() -> None:
    with pytest.raises(ConfigError, match="3×3 pixels are too small"):
        UNet(1, 1, (3, 3), width=4, norm="batch", dropout=0.0)


# What CycleGAN remembers, and how it is judged


def test_image_history_returns_new_images_until_full() -> None:
    history = ImageHistory(10, (1, 2, 2))
    for first in (0, 4, 8):
        images = torch.arange(first, first + 4.0).view(4, 1, 1, 1).expand(-1, 1, 2, 2)
        assert torch.equal(history.exchange(images), images)
    assert history.images[:, 0, 0, 0].tolist() == list(range(10))


def test_full_image_history_exchanges_half_of_the_images() -> None:
    torch.manual_seed(0)
    history = ImageHistory(50, (1,))
    history.exchange(torch.arange(50.0)[:, None])
    everything = set(range(50))
    handed_out: list[float] = []
    for first in range(100, 2100, 20):
        new = torch.arange(first, first + 20.0)[:, None]
        everything |= set(range(first, first + 20))
        handed_out += history.exchange(new).flatten().tolist()
    # Each image is handed out once: at once, or later in the place of a newer one.
    assert len(set(handed_out)) == len(handed_out)
    assert set(handed_out) | set(history.images.flatten().tolist()) == everything
    old = sum(image < 100 + index // 20 * 20 for index, image in enumerate(handed_out))
    assert 0.45 < old / len(handed_out) < 0.55


def test_images_beyond_the_history_size_pass_through() -> None:
    history = ImageHistory(3, (1,))
    for first in (0, 7):
        images = torch.arange(first, first + 7.0)[:, None]
        returned = history.exchange(images)
        assert torch.equal(returned[3:], images[3:])


def test_sliced_wasserstein_compares_sets() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, images.flip(0)) < 1e-6
    other = torch.rand(200, 1, 6, 6)
    assert sliced_wasserstein(images, other) < 0.05 < sliced_wasserstein(images, 1 - images.square())


# Techniques


def test_pix2pix_learns_the_pairs(tmp_path: Path) -> None:
    overrides = ("model=pix2pix", "dataset.source=digits", "model.generator_width=16", "optimizer.lr=2e-3")
    result = run_genexp(*overrides, *ON_CPU, "trainer.epochs=3", "model.dropout=0", run_dir_override(tmp_path))
    assert result.exit_code == 0, result.stderr
    tested = [line for line in read_metrics_log(tmp_path) if line["split"] == "test"]
    assert tested[-1]["l1"] < 0.7 * tested[0]["l1"]
    assert tested[-1]["ssim"] > tested[0]["ssim"]
    assert (tmp_path / "figures" / "before_after.png").is_file()
    assert (tmp_path / "translations.gif").is_file()


def test_cyclegan_reduces_the_cycle_loss(tmp_path: Path) -> None:
    overrides = ("model=cyclegan", "dataset.source=digits", "model.generator_width=8", "dataset.limit=300")
    result = run_genexp(*overrides, *ON_CPU, "trainer.epochs=3", "optimizer.lr=2e-3", run_dir_override(tmp_path))
    assert result.exit_code == 0, result.stderr
    tested = [line for line in read_metrics_log(tmp_path) if line["split"] == "test"]
    assert tested[-1]["cycle_l1"] < tested[0]["cycle_l1"]
    assert {"domain_distance", "identity_l1", "truth_l1", "truth_ssim"} < set(tested[-1])
    for name in ("a_to_b.gif", "b_to_a.gif", "figures/before_after.png"):
        assert (tmp_path / name).is_file()


@pytest.mark.parametrize("name", ["pix2pix", "cyclegan"])
def test_translation_accepts_color_images_from_folders(name: str, tmp_path: Path) -> None:
    first, second = write_images(tmp_path / "1"), write_images(tmp_path / "2")
    folders = {
        "pix2pix": ("dataset=pairs", f"dataset.input={first}", f"dataset.target={second}"),
        "cyclegan": ("dataset=unpaired", f"dataset.a={first}", f"dataset.b={second}"),
    }
    small = ("dataset.size=24", "trainer.batch_size=2", "trainer.max_steps=2", "model.generator_width=4")
    result = run_genexp(f"model={name}", *folders[name], *small, *ON_CPU, run_dir_override(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    assert issubclass(find_technique(name), CanTranslate)
