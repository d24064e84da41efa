"""Reader of IDX files, the array format of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genexp.data.sources._torchvision import REMEDY
from genexp.device import check_memory
from genexp.errors import DataError

NUMPY_TYPES = {8: ">u1", 12: ">i4"}  # code of the element type → type; QMNIST has labels of 32 bits


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Return the array in `path`, plain or .gz, in the shape that its header states: `dimensions` axes.

    It is int32 if it has two axes, else uint8. Raises DataError for a damaged file.

    Format: two zero bytes, the element type, the number of dimensions; one big-endian 32-bit size per dimension;
    the elements in row-major order, big-endian.
    """
    type_code = 12 if dimensions == 2 else 8
    dtype = np.dtype(NUMPY_TYPES[type_code])
    magic = bytes((0, 0, type_code, dimensions))
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
            count, shape = math.prod(sizes) * dtype.itemsize, "×".join(map(str, sizes))
            check_memory(count, f"{path} of {shape} bytes")
            # One byte more than declared: a longer file is refused without being decompressed to its end.
            content = bytearray(file.read(count + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable ({error}). {REMEDY}") from None
    if len(content) != count:
        fault, actual = ("truncated", len(content)) if len(content) < count else ("too long", "more")
        raise DataError(f"{path}: {fault}, its header states {shape} bytes, {actual} follow. {REMEDY}")
    values = np.frombuffer(content, dtype).reshape(sizes)
    return torch.from_numpy(values if dtype.itemsize == 1 else values.astype(dtype.newbyteorder("=")))
