"""Checkpoint files: the saved state, or one clear error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from genexp.errors import CheckpointError
from genexp.run_dir.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
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
