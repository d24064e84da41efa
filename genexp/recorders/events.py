"""TensorBoard's event files: records of protocol buffers, a whole block of steps written at once.

tensorboardX takes some 45 µs for each event, most of it to build the protocol buffer. The events of a block
differ in a few numbers only, so here they are packed into place: some 3 µs a step.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from crc32c import crc32c

from genexp.recorders.step_rows import iter_step_rows
from genexp.snapshot import Curve

# Field numbers and wire types of event.proto and summary.proto.
_WALL_TIME_FIELD, _STEP_FIELD, _SUMMARY_FIELD = b"\x09", b"\x10", b"\x2a"
_VALUE_FIELD, _TAG_FIELD, _SIMPLE_VALUE_FIELD = b"\x0a", b"\x0a", b"\x15"


class EventFileWriter:
    """An event file that is appended to, one write a block."""

    def __init__(self, path: Path, first_step: int) -> None:
        # tensorboardX takes a while to import, and only runs that write events need it.
        from tensorboardX.proto import event_pb2

        self._proto = event_pb2
        self._file = path.open("xb")
        self._last_wall_time = time.time()
        version = event_pb2.Event(wall_time=self._last_wall_time, file_version="brain.Event:2")
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        # A TensorBoard that is running forgets the steps that a killed run had come to after its checkpoint.
        restart = event_pb2.Event(wall_time=self._last_wall_time, step=first_step, session_log=start)
        self._write(event.SerializeToString() for event in (version, restart))

    def add_summaries(self, summaries: Iterable[Any], step: int) -> None:
        """Append an event for each summary."""
        now = time.time()
        events = [self._proto.Event(wall_time=now, step=step, summary=summary) for summary in summaries]
        self._write(event.SerializeToString() for event in events)

    def add_curves(self, prefix: str, curves: Mapping[str, Curve]) -> None:
        """Append one event for each step. Its wall time is interpolated between the last block and now."""
        if not curves:
            return
        values = {name: curve.values.tolist() for name, curve in curves.items()}
        step_rows = list(iter_step_rows(curves, values))
        begin, now = self._last_wall_time, time.time()
        interval = (now - begin) / len(step_rows)
        self._last_wall_time = now
        self._write(
            _pack_event(prefix, names, begin + interval * count, step, row)
            for count, (step, names, row) in enumerate(step_rows, start=1)
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, events: Iterable[bytes]) -> None:
        self._file.write(b"".join(map(encode_tfrecord, events)))
        self._file.flush()


def encode_tfrecord(record: bytes) -> bytes:
    """Return a record in its frame: length, checksum of the length, record, checksum of the record."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _masked_crc32c(length), record, _masked_crc32c(record)))


def _masked_crc32c(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8) & 0xFFFFFFFF)


def _pack_event(
    prefix: str, names: tuple[str, ...], wall_time: float, step: int, values: tuple[float, ...]
) -> bytes:
    """Return Event(wall_time, step, Summary of one Value(tag, simple_value) for each name), serialized."""
    step_bytes = _encode_varint(step)
    layout, keys = _build_event_layout(prefix, names, len(step_bytes))
    fields: list[Any] = [_WALL_TIME_FIELD, wall_time, _STEP_FIELD, step_bytes]
    for key, value in zip(keys, values, strict=True):
        fields += key, value
    return layout.pack(*fields)


@lru_cache(maxsize=64)
def _build_event_layout(
    prefix: str, names: tuple[str, ...], step_length: int
) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """Return where the numbers go, and the bytes in front of each metric's value."""
    keys = []
    for name in names:
        tag = _encode_bytes_field(_TAG_FIELD, f"{prefix}/{name}".encode())
        keys.append(_VALUE_FIELD + _encode_varint(len(tag) + 1 + 4) + tag + _SIMPLE_VALUE_FIELD)
    length = sum(len(key) + 4 for key in keys)
    keys[0] = _SUMMARY_FIELD + _encode_varint(length) + keys[0]
    return struct.Struct(f"<cdc{step_length}s" + "".join(f"{len(key)}sf" for key in keys)), tuple(keys)


def _encode_bytes_field(key: bytes, content: bytes) -> bytes:
    return key + _encode_varint(len(content)) + content


def _encode_varint(number: int) -> bytes:
    """Return a number seven bits at a time, lowest first, as protocol buffers have it."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
