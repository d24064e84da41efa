"""Batch streams: order, shards, resumption, workers and examples."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import pytest
import torch

from genexp.data.dataset import Split
from genexp.data.loading import (
    Batch,
    SplitLoader,
    make_loader,
    translate_worker_error,
)
from genexp.data.stream import SplitBatches, TrainingBatches, select_examples
from genexp.errors import ConfigError, DataError
from genexp.sharding import Shard
from tests.support.numbered_splits import NUM_SAMPLES, make_lazy_split, make_split


def make_stream(loader: SplitLoader, batch_size: int | None = 5, seed: int = 0) -> TrainingBatches:
    return TrainingBatches(loader, batch_size, seed=seed, dataset_name="numbers")


def take_labels(batches: Iterator[Batch], num_batches: int) -> list[list[int]]:
    return [batch["label"].tolist() for batch in islice(batches, num_batches)]


def flatten(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def assert_same_batch(left: Batch, right: Batch) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert torch.equal(left[name], right[name])


@pytest.mark.parametrize("first_step", [1, 2, 4, 5, 6, 17])
def test_starting_at_a_step_equals_skipping_the_steps_before(first_step: int) -> None:
    loader = make_loader(make_split(), "cpu")
    skipped = take_labels(islice(make_stream(loader).iter_batches(1), first_step - 1, None), 9)
    assert take_labels(make_stream(loader).iter_batches(first_step), 9) == skipped


def test_an_epoch_draws_each_sample_at_most_once_and_drops_the_incomplete_batch() -> None:
    batches = make_stream(make_loader(make_split(), "cpu"))
    assert batches.steps_per_epoch == 4
    drawn = flatten(take_labels(batches.iter_batches(1), 4))
    assert len(set(drawn)) == len(drawn) == 20


def test_epochs_differ_in_order_and_together_cover_every_sample() -> None:
    batches = make_stream(make_loader(make_split(), "cpu"))
    epochs = [flatten(take_labels(batches.iter_batches(1 + 4 * epoch), 4)) for epoch in range(8)]
    assert len({tuple(epoch) for epoch in epochs}) == 8
    assert set(flatten(epochs)) == set(range(NUM_SAMPLES))


def test_the_order_depends_on_the_seed() -> None:
    loader = make_loader(make_split(), "cpu")
    assert take_labels(make_stream(loader, seed=0).iter_batches(1), 4) != take_labels(
        make_stream(loader, seed=1).iter_batches(1), 4
    )


def test_order_does_not_use_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = take_labels(make_stream(make_loader(make_lazy_split(), "cpu", 0, num_workers=0)).iter_batches(1), 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert take_labels(make_stream(make_loader(make_split(), "cpu")).iter_batches(1), 3) == first


def test_samples_of_aligned_streams_belong_together() -> None:
    for batch in islice(make_stream(make_loader(make_split(), "cpu")).iter_batches(1), 6):
        assert torch.equal(batch["image"][:, 0, 0, 0] * 255, batch["label"].float())


def test_unaligned_streams_are_shuffled_independently_and_the_shortest_sets_the_epoch() -> None:
    split = Split({"a": torch.arange(40), "b": torch.arange(21)}, is_aligned=False)
    batches = make_stream(make_loader(split, "cpu"))
    assert batches.steps_per_epoch == 4
    epoch = list(islice(batches.iter_batches(1), 4))
    a, b = (torch.cat([batch[name] for batch in epoch]) for name in ("a", "b"))
    assert not torch.equal(a, b)
    assert len(a.unique()) == len(b.unique()) == 20
    assert a.max() > 20  # all of the longer stream is drawn


def test_null_batch_size_yields_the_same_full_split_each_step() -> None:
    batches = make_stream(make_loader(make_split(), "cpu"), None)
    assert batches.steps_per_epoch == 1
    first, second = islice(batches.iter_batches(1), 2)
    assert first["label"].tolist() == list(range(NUM_SAMPLES))
    assert first["image"] is second["image"]
    assert next(batches.iter_batches(40))["image"] is first["image"]


def test_batch_size_larger_than_the_split_is_rejected() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^trainer.batch_size=24: exceeds the 23 training samples of dataset=numbers. Use a smaller value",
    ):
        make_stream(make_loader(make_split(), "cpu"), 24)


def test_null_batch_size_is_rejected_for_a_streamed_split() -> None:
    with pytest.raises(ConfigError, match=r"trainer.batch_size=null: .* dataset.resident_gb"):
        make_stream(make_loader(make_split(), "cpu", 0), None)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_batches_equal_in_memory_batches(workers: int) -> None:
    resident, streamed = (
        make_loader(make_split(), "cpu"),
        make_loader(make_lazy_split(), "cpu", 0, num_workers=workers),
    )
    with make_stream(streamed) as batch_stream:
        for left, right in zip(
            islice(make_stream(resident).iter_batches(3), 9), batch_stream.iter_batches(3), strict=False
        ):
            assert_same_batch(left, right)
    assert not multiprocessing.active_children()


def test_abandoned_iterator_leaves_no_worker_process() -> None:
    batches = SplitBatches(make_loader(make_lazy_split(), "cpu", 0, num_workers=1), 5)
    for _ in batches:
        break
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_sample_raises_a_one_line_error(workers: int) -> None:
    batch_stream = make_stream(make_loader(make_lazy_split(broken_index=11), "cpu", 0, num_workers=workers))
    with batch_stream, pytest.raises(DataError, match=r"^11.png cannot be read; replace it$"):
        list(islice(batch_stream.iter_batches(1), 8))
    assert not multiprocessing.active_children()


def test_killed_worker_process_raises_a_one_line_error() -> None:
    batch_stream = make_stream(make_loader(make_lazy_split(), "cpu", 0, num_workers=1))
    with batch_stream:
        batches = batch_stream.iter_batches(1)
        next(batches)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises((RuntimeError, DataError)) as excinfo:
            list(islice(batches, 20))
    error = translate_worker_error(excinfo.value)
    assert isinstance(error, DataError)
    assert "process that reads the data set was killed" in str(error)
    assert translate_worker_error(KeyError("other")).args == ("other",)


def test_close_ends_every_iterator() -> None:
    batch_stream = make_stream(make_loader(make_lazy_split(), "cpu", 0, num_workers=0))
    batches = batch_stream.iter_batches(1)
    next(batches)
    batch_stream.close()
    assert list(batches) == []


@pytest.mark.parametrize("split", [make_split(), make_lazy_split()], ids=["resident", "streamed"])
def test_split_batches_can_be_iterated_repeatedly_in_order(split: Split) -> None:
    batches = SplitBatches(make_loader(split, "cpu", num_workers=0), 10)
    assert len(batches) == 3
    for _ in range(2):
        assert [len(batch["label"]) for batch in batches] == [10, 10, 3]
        assert torch.cat([batch["label"] for batch in batches]).tolist() == list(range(NUM_SAMPLES))


def test_split_batches_can_be_limited() -> None:
    batches = SplitBatches(make_loader(make_split(), "cpu"), 10, limit=12)
    assert [len(batch["image"]) for batch in batches] == [10, 2]
    assert len(SplitBatches(make_loader(make_split(), "cpu"), 10, limit=99)) == 3


def test_examples_alternate_between_classes() -> None:
    split = Split({"point": torch.arange(8.0)[:, None], "label": torch.tensor([2, 2, 2, 0, 0, 1, 2, 0])})
    loader = make_loader(split, "cpu")
    assert select_examples(loader, 5)["label"].tolist() == [0, 1, 2, 0, 2]
    assert select_examples(loader, 5)["point"].flatten().tolist() == [3, 5, 0, 4, 1]
    assert len(select_examples(loader, 99)["label"]) == 8


def test_examples_without_labels_are_the_first_samples() -> None:
    loader = make_loader(Split({"point": torch.arange(8.0)[:, None]}), "cpu")
    assert select_examples(loader, 3)["point"].flatten().tolist() == [0, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streamed_batches_equal_in_memory_batches_on_a_gpu() -> None:
    resident, streamed = (
        make_loader(make_split(), "cuda"),
        make_loader(make_lazy_split(), "cuda", 0, num_workers=2),
    )
    with make_stream(streamed) as batch_stream:
        for left, right in zip(
            islice(make_stream(resident).iter_batches(3), 9), batch_stream.iter_batches(3), strict=False
        ):
            assert left["image"].is_cuda
            assert_same_batch(left, right)


def test_importing_the_package_imports_no_library_of_a_source() -> None:
    code = (
        "import sys; from genexp.data import list_datasets; list_datasets(); import genexp.data.stream;"
        "print({'sklearn', 'torchvision', 'PIL'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert result.stdout.strip() == "set()"


def test_shards_of_a_batch_are_disjoint_and_complete() -> None:
    numbers = make_loader(Split({"point": torch.arange(30.0).unsqueeze(1)}), "cpu")
    whole_stream = TrainingBatches(numbers, 6, seed=1, dataset_name="numbers").iter_batches(1)
    streams = [
        TrainingBatches(numbers, 6, seed=1, dataset_name="numbers", shard=Shard(index, 3)).iter_batches(1)
        for index in range(3)
    ]
    for _ in range(7):
        parts = [next(stream)["point"] for stream in streams]
        assert [len(shard) for shard in parts] == [2, 2, 2]
        assert torch.equal(torch.cat(parts), next(whole_stream)["point"])
