"""Boxes of HEIC, AVIF and JPEG XL files: the colors of the main picture, and sizes that decoders do not tell first."""

from __future__ import annotations

import struct
from collections.abc import Iterator


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start of the content, end) of each box."""
    end = len(data) if end is None else min(end, len(data))
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= end:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        stop = end if size == 0 else min(start + size, end)
        if stop < start + head:
            return
        yield kind, start + head, stop
        start = stop


def main_color(data: bytes) -> tuple[int, int] | None:
    """(primaries, transfer) that a HEIC or AVIF file gives its main picture, None where it gives none.

    The codes are those of ITU-T H.273.
    """
    properties = _main_properties(data)
    for kind, start, end in properties:
        if kind == b"colr" and data[start : start + 4] == b"nclx" and end - start >= 8:
            primaries, transfer = struct.unpack_from(">HH", data, start + 4)
            return primaries, transfer
    return None


def without_exif(data: bytes) -> bytes:
    """Hide a file's EXIF block: a decoder that writes the block anew fails on what it holds."""
    for kind, start, end in boxes(data):
        if kind == b"meta":
            return data[:start] + data[start:end].replace(b"Exif", b"skip") + data[end:]
    return data


def _main_properties(data: bytes) -> list[tuple[bytes, int, int]]:
    """Boxes of the properties of the main item; those of all items where the tables cannot be read."""
    meta = next(((start + 4, end) for kind, start, end in boxes(data) if kind == b"meta"), None)
    if meta is None:
        return []
    inside = {kind: (start, end) for kind, start, end in boxes(data, *meta)}
    tables = {kind: (start, end) for kind, start, end in boxes(data, *inside.get(b"iprp", (0, 0)))}
    properties = list(boxes(data, *tables.get(b"ipco", (0, 0))))
    try:
        numbers = _numbers_of(data, *tables[b"ipma"], _main_item(data, *inside[b"pitm"]))
    except (KeyError, struct.error, IndexError):
        return properties
    return [properties[number - 1] for number in numbers if 0 < number <= len(properties)]


def _main_item(data: bytes, start: int, end: int) -> int:
    return struct.unpack_from(">I" if data[start] else ">H", data, start + 4)[0]


def _numbers_of(data: bytes, start: int, end: int, item: int) -> list[int]:
    """Numbers of the properties of an item, counted from 1."""
    version, wide = data[start], data[start + 3] & 1
    (count,) = struct.unpack_from(">I", data, start + 4)
    offset = start + 8
    for _ in range(count):
        if offset >= end:
            break
        identity = struct.unpack_from(">I" if version else ">H", data, offset)[0]
        offset += 4 if version else 2
        step = 2 if wide else 1
        length = data[offset]
        entries = [data[at : at + step] for at in range(offset + 1, offset + 1 + length * step, step)]
        if identity == item:
            mask = 0x7FFF if wide else 0x7F
            return [int.from_bytes(entry, "big") & mask for entry in entries]
        offset += 1 + length * step
    return []


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) in the header of a JPEG XL file, None where there is none to read."""
    stream = data
    if not data.startswith(b"\xff\x0a"):
        parts = [(kind, start, end) for kind, start, end in boxes(data) if kind in (b"jxlc", b"jxlp")]
        if not parts:
            return None
        kind, start, end = parts[0]
        stream = data[start + (4 if kind == b"jxlp" else 0) : end][:64]
    if not stream.startswith(b"\xff\x0a"):
        return None
    bits = _Bits(stream[2:64])
    small = bits.take(1)
    height = _jxl_side(bits, small)
    ratio = bits.take(3)
    if ratio:
        above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
        return height * above // below, height
    return _jxl_side(bits, small), height


def _jxl_side(bits: _Bits, small: int) -> int:
    if small:
        return 8 * (bits.take(5) + 1)
    return bits.take((9, 13, 18, 30)[bits.take(2)]) + 1


class _Bits:
    """Bits of a stream, the lowest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "little")

    def take(self, count: int) -> int:
        value = self._value & ((1 << count) - 1)
        self._value >>= count
        return value
