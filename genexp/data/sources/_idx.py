"""Reader of IDX files, the array format of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genexp.errors import DataError

UINT8_TYPE_CODE = 8  # the only element type in these data sets
REMEDY = "replace the file by a whole copy, or point dataset.root to another folder"


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the uint8 array with `dimensions` axes in `path`, plain or .gz. Raises DataError for a damaged file.

    Format: two zero bytes, the element type, the number of dimensions; one big-endian 32-bit size per dimension;
    the elements in row-major order.
    """
    content = _read_bytes(path)
    magic = bytes((0, 0, UINT8_TYPE_CODE, dimensions))
    if content[:4] != magic:
        raise DataError(f"{path} begins with {content[:4].hex() or 'nothing'}, not {magic.hex()}; {REMEDY}")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise DataError(f"{path} ends within its header; {REMEDY}")
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    expected_bytes, actual_bytes = math.prod(sizes), len(content) - start
    if actual_bytes != expected_bytes:
        fault = "is truncated" if actual_bytes < expected_bytes else "is too long"
        shape = "×".join(map(str, sizes))
        raise DataError(f"{path} {fault}: its header says {shape} bytes, {actual_bytes} follow; {REMEDY}")
    return torch.frombuffer(content, dtype=torch.uint8)[start:].view(sizes)


def _read_bytes(path: Path) -> bytearray:
    try:
        content = path.read_bytes()
        return bytearray(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); {REMEDY}") from None
