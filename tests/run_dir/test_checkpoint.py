"""Checkpoint files: the saved state, or one clear error."""

from __future__ import annotations

import os
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from genexp.errors import CheckpointError, ConfigError
from genexp.run_dir.checkpoint import (
    FORMAT_VERSION,
    get_checkpoint_path,
    list_checkpoints,
    load_checkpoint,
    load_newest_checkpoint,
    measure_logs,
    save_checkpoint,
    truncate_logs,
)
from tests.support.assertions import assert_same


@pytest.fixture
def state() -> dict[str, object]:
    """Return the state of a network and its optimizer after one step."""
    network = nn.Linear(5, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return {"step": 1, "technique": dict(network.state_dict()), "optimizers": {"model": optimizer.state_dict()}}


def test_damaged_checkpoint_is_rejected_or_loads_unchanged(state: dict[str, object], tmp_path: Path) -> None:
    """With any bytes lost or changed, loading gives the saved state or a CheckpointError."""
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, state)
    content_bytes, rng = path.read_bytes(), random.Random(0)
    files = [content_bytes[:size] for size in (0, 1, *rng.sample(range(len(content_bytes)), 50))]
    for _ in range(300):
        flipped = bytearray(content_bytes)
        flipped[rng.randrange(len(content_bytes))] ^= 1 << rng.randrange(8)
        files.append(bytes(flipped))
    messages = []
    for content in files:
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert_same(found, {**state, "format": FORMAT_VERSION})
    assert len(messages) > len(files) / 3
    assert all(text.startswith(str(path)) and "\n" not in text for text in messages)


@pytest.fixture
def logged_run_dir(tmp_path: Path) -> Path:
    """Return a run directory whose checkpoints of steps 1 and 2 refer to 50 and 100 bytes of a log."""
    for step in (1, 2):
        with (tmp_path / "metrics.jsonl").open("a") as log:
            log.write("x" * 50)
        save_checkpoint(get_checkpoint_path(tmp_path, step), {"step": step, "log_offsets": measure_logs(tmp_path)})
    return tmp_path


@pytest.mark.parametrize(("size", "expected_step"), [(120, 2), (100, 2), (99, 1), (50, 1)])
def test_checkpoint_whose_log_was_cut_is_skipped(size: int, expected_step: int, logged_run_dir: Path) -> None:
    os.truncate(logged_run_dir / "metrics.jsonl", size)
    state, problems = load_newest_checkpoint(logged_run_dir)
    assert state["step"] == expected_step
    assert len(problems) == 2 - expected_step
    assert all(
        "shorter than the checkpoint requires. Use another checkpoint. The previous checkpoint is used." in text
        for text in problems
    )


def test_run_whose_log_is_shorter_than_all_checkpoints_say_cannot_be_resumed(logged_run_dir: Path) -> None:
    os.truncate(logged_run_dir / "metrics.jsonl", 49)
    with pytest.raises(CheckpointError, match="no usable checkpoint"):
        load_newest_checkpoint(logged_run_dir)


def test_logs_are_cut_to_their_sizes_and_later_ones_removed(logged_run_dir: Path) -> None:
    (logged_run_dir / "tensorboard").mkdir()
    (logged_run_dir / "tensorboard" / "events.1").touch()  # of earlier versions
    (logged_run_dir / "events.1").touch()
    truncate_logs(logged_run_dir, {"metrics.jsonl": 50})
    assert measure_logs(logged_run_dir) == {"metrics.jsonl": 50}


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "config.yaml", "checkpoints/step-00000001.pt"])
def test_sizes_of_other_files_are_refused(name: str, logged_run_dir: Path) -> None:
    (logged_run_dir / "config.yaml").write_text("seed: 0")
    (logged_run_dir.parent / "outside").write_text("content")
    save_checkpoint(get_checkpoint_path(logged_run_dir, 3), {"step": 3, "log_offsets": {name: 0}})
    assert load_newest_checkpoint(logged_run_dir)[0]["step"] == 2
    with pytest.raises(CheckpointError, match="no log"):
        truncate_logs(logged_run_dir, {"metrics.jsonl": 100, name: 0})
    assert (logged_run_dir.parent / "outside").read_text() == "content"


def test_checkpoints_are_sorted_by_step(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        save_checkpoint(get_checkpoint_path(tmp_path, step), {"step": step})
    steps = [load_checkpoint(path)["step"] for path in list_checkpoints(tmp_path)]
    assert steps == [100_000_000, 99_999_999, 5]


class Bomb:
    """Object whose pickle calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def make_nested_list(depth: int, copies: int) -> list[Any]:
    """Return a list that contains `copies` times the same list, which contains another one as often, and so on."""
    nested: list[Any] = []
    for _ in range(depth):
        nested = copies * [nested]
    return nested


BOMBS: dict[str, object] = {
    "tensor that repeats one element": torch.zeros(1).expand(10**12),
    "tensor without data": torch.empty(10**12, device="meta"),
    "sparse tensor": torch.sparse_coo_tensor(torch.zeros(1, 1), torch.ones(1), (10**12,), check_invariants=True),
    "large buffer": Bomb(bytearray, 10**10),
    "code": Bomb(print, "executed"),
    "repeated list": make_nested_list(60, copies=2),
    "deep list": make_nested_list(200, copies=1),
}
REASONS = {
    "tensor that repeats one element": "a tensor of 4,000,000,000,000 bytes has 4 bytes of data)",
    "deep list": "more than 1,000,000 values or 100 levels",
}


@pytest.mark.parametrize("name", BOMBS)
def test_small_checkpoint_that_takes_memory_or_time_is_rejected(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": FORMAT_VERSION, "bomb": BOMBS[name]}, path)
    with pytest.raises(CheckpointError, match=r"step-00000001\.pt: (damaged|not loaded)") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert REASONS.get(name, "") in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["compressed", "overlapping"])
def test_checkpoint_whose_parts_are_larger_than_the_file_is_rejected(name: str, tmp_path: Path) -> None:
    path = tmp_path / "step-00000001.pt"
    torch.save({"format": FORMAT_VERSION, "weights": torch.zeros(10**6)}, path)
    with zipfile.ZipFile(path) as source:
        parts = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(
        path, "w", zipfile.ZIP_DEFLATED if name == "compressed" else zipfile.ZIP_STORED
    ) as target:
        for part, data in parts.items():
            target.writestr(part, data)
        if name == "overlapping":
            target.filelist += 5 * [info for info in target.filelist if info.file_size > 10**6]
    with pytest.raises(CheckpointError, match="its parts are larger than the file"):
        load_checkpoint(path)


def test_checkpoint_that_exceeds_the_memory_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, {"weights": torch.zeros(1000)})
    monkeypatch.setattr("genexp.device._allowed_bytes", 4000)
    with pytest.raises(ConfigError, match=r"step-00000001\.pt: needs at least .* kB of memory"):
        load_checkpoint(path)
