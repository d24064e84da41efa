"""Checkpoint files: what was saved, or one clear error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import nn

from genexp.errors import CheckpointError
from genexp.run_dir.checkpoint import FORMAT_VERSION, load_checkpoint, save_checkpoint
from tests.support.command import assert_same


@pytest.fixture
def state() -> dict[str, object]:
    """Return a network and its optimizer after a step."""
    network = nn.Linear(5, 3)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return {"step": 1, "technique": dict(network.state_dict()), "optimizers": {"model": optimizer.state_dict()}}


def test_a_damaged_file_is_refused_or_whole(state: dict[str, object], tmp_path: Path) -> None:
    """Whatever bytes are lost or changed: no other error, and never another state."""
    path = tmp_path / "step-00000001.pt"
    save_checkpoint(path, state)
    whole, chance = path.read_bytes(), random.Random(0)
    files = [whole[:size] for size in (0, 1, *chance.sample(range(len(whole)), 50))]
    for _ in range(300):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        files.append(bytes(flipped))
    complaints = []
    for content in files:
        path.write_bytes(content)
        try:
            found = load_checkpoint(path)
        except CheckpointError as error:
            complaints.append(str(error))
        else:
            assert_same(found, {**state, "format": FORMAT_VERSION})
    assert len(complaints) > len(files) / 3
    assert all(text.startswith(str(path)) and "\n" not in text for text in complaints)
