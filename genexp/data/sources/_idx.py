"""Reader of IDX files, the array format of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genexp.device import check_memory
from genexp.errors import DataError

UINT8_TYPE_CODE = 8  # the only element type in these data sets
REMEDY = "Replace the file by a complete copy, or use another dataset.root."


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the uint8 array in `path`, plain or .gz, in the shape that its header states: `dimensions` axes.

    Raises DataError for a damaged file.

    Format: two zero bytes, the element type, the number of dimensions; one big-endian 32-bit size per dimension;
    the elements in row-major order.
    """
    magic = bytes((0, 0, UINT8_TYPE_CODE, dimensions))
    header_bytes = len(magic) + 4 * dimensions
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(header_bytes)
            if header[:4] != magic:
                raise DataError(
                    f"{path}: begins with {header[:4].hex() or 'nothing'}, not {magic.hex()}. {REMEDY}"
                )
            if len(header) < header_bytes:
                raise DataError(f"{path}: incomplete header. {REMEDY}")
            sizes = np.frombuffer(header, ">u4", offset=4).tolist()
            count, shape = math.prod(sizes), "×".join(map(str, sizes))
            check_memory(count, f"{path} of {shape} bytes")
            # One byte more than declared: a longer file is refused without being decompressed to its end.
            content = bytearray(file.read(count + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable ({error}). {REMEDY}") from None
    if len(content) != count:
        fault, actual = ("truncated", len(content)) if len(content) < count else ("too long", "more")
        raise DataError(f"{path}: {fault}, its header states {shape} bytes, {actual} follow. {REMEDY}")
    return (
        torch.frombuffer(content, dtype=torch.uint8).view(sizes)
        if count
        else torch.empty(*sizes, dtype=torch.uint8)
    )
