"""What data a run saw, in a few words: enough to tell whether another run saw the same."""

from __future__ import annotations

import torch
from crc32c import crc32c
from torch import Tensor

from genexp.data.dataset import Dataset, Split

CHECKSUM_SAMPLES = 2000  # of each stream that the checksum takes in, evenly spread: it costs a millisecond


def fingerprint(dataset: Dataset) -> dict[str, str]:
    """Return split → its size and a checksum. What is read from disk sample by sample has its size only."""
    return {"train": _describe_split(dataset.train), "test": _describe_split(dataset.test)}


def _describe_split(split: Split) -> str:
    checksum, is_complete = 0, True
    for name in sorted(split.streams):
        stream = split.streams[name]
        if isinstance(stream, Tensor):
            checksum = crc32c(_read_evenly_spaced(stream), checksum)
        else:
            is_complete = False
    size = f"{len(split):,} samples"
    return f"{size}, checksum {checksum:08x}" if is_complete else size


def _read_evenly_spaced(stream: Tensor) -> bytes:
    stride = -(-len(stream) // CHECKSUM_SAMPLES)
    return stream[::stride].contiguous().view(torch.uint8).cpu().numpy().tobytes()
