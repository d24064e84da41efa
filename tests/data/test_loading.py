"""Loaders: scaling, gathering and the memory budget."""

from __future__ import annotations

import pytest
import torch

from genexp.data.dataset import Split
from genexp.data.loading import (
    InMemoryLoader,
    StreamingLoader,
    convert_and_scale,
    make_loader,
)
from genexp.data.stream import SplitBatches
from tests.support.numbered_splits import NUM_SAMPLES, make_lazy_split, make_split


def test_images_are_scaled_and_other_streams_are_not() -> None:
    split = Split(
        {"image": torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), "point": torch.ones(3, 2) * 9}
    )
    (batch,) = SplitBatches(make_loader(split, "cpu"), 3)
    assert batch["image"].dtype == torch.float32
    assert batch["image"].flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert batch["point"].tolist() == [[9.0, 9.0]] * 3


@pytest.mark.parametrize("count", [1, 40_000, 2**18 + 1])
def test_small_and_large_batches_are_scaled_equally(count: int) -> None:
    levels = torch.arange(count).to(torch.uint8)
    assert torch.equal(convert_and_scale(levels), levels.float() / 255)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 2, 2), (2, 1, 3), (3, 5, 5)])
def test_gathering_by_machine_words_preserves_every_byte(shape: tuple[int, ...]) -> None:
    images = torch.randint(0, 256, (9, *shape), dtype=torch.uint8)
    split = Split({"image": images[1:]})  # the storage of this slice is not word-aligned
    rows = torch.tensor([7, 0, 3])
    (batch,) = make_loader(split, "cpu").fetch([{"image": rows}])
    assert torch.equal(batch["image"], images[1:][rows] / 255)


def test_memory_budget_selects_the_loader() -> None:
    split = make_split()
    size = NUM_SAMPLES * (6 + 8) / 1e9
    assert isinstance(make_loader(split, "cpu", size), InMemoryLoader)
    assert isinstance(make_loader(split, "cpu", size * 0.99), StreamingLoader)
    assert isinstance(make_loader(make_lazy_split(), "cpu", 1), StreamingLoader)


def test_ordered_passes_share_one_float_copy_if_it_fits_the_budget() -> None:
    split = make_split()
    size = NUM_SAMPLES * (6 + 8 + 4 * 6) / 1e9
    expected = torch.arange(NUM_SAMPLES).view(-1, 1, 1, 1).expand(-1, 1, 2, 3) / 255
    for resident_gb, is_shared in ((size, True), (size * 0.99, False)):
        batches = SplitBatches(make_loader(split, "cpu", resident_gb), 10)
        first, second = list(batches), list(batches)
        assert batches.are_views == is_shared
        assert (first[1]["image"].data_ptr() == second[1]["image"].data_ptr()) == is_shared
        assert torch.equal(torch.cat([batch["image"] for batch in first]), expected)
        assert torch.equal(torch.cat([batch["label"] for batch in second]), torch.arange(NUM_SAMPLES))
        (whole,) = batches.resize(100)
        assert torch.equal(whole["image"], expected)


def test_float_copy_has_the_default_dtype() -> None:
    batches = SplitBatches(make_loader(make_split(), "cpu"), 10)
    assert next(iter(batches))["image"].dtype == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert next(iter(batches))["image"].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
