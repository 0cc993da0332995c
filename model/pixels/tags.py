"""Tags of TIFF files and of EXIF blocks, which are small TIFF files: read only, and never an error."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

ORIENTATION = 0x0112
_EXIF_FOLDER, _INTEROP_FOLDER, _INTEROP_INDEX = 0x8769, 0xA005, 0x0001
_SUB_FOLDERS = 330
_PHOTOMETRIC, _SAMPLES, _ARRANGEMENT = 262, 277, 284
_PIECES = (273, 279, 324, 325)  # where strips and tiles begin, and how large they are
_OF_COLORS = (258, 280, 281, 338, 339)  # tags that have a value for each color
_MOST_TAGS, _MOST_VALUES, _MOST_FOLDERS = 4096, 1 << 16, 64
_CODES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}

Tags = Mapping[int, tuple[Any, ...]]  # tag → its values; of texts and undefined types the bytes


@dataclass(frozen=True)
class _Layout:
    """Byte order, and where things are: BigTIFF has offsets of 8 bytes."""

    order: str
    count: str
    entry: str
    inline: int
    first: int  # where the offset of the first folder is


def read_folders(data: bytes) -> Iterator[Tags]:
    """The tags of each folder (IFD) of a TIFF file, one after another, as far as they can be read."""
    layout = _layout(data)
    if layout is None:
        return
    place, visited = _offset(data, layout.first, layout), set[int]()
    while place and place not in visited and len(visited) < _MOST_FOLDERS:
        visited.add(place)
        tags, place = _read_folder(data, place, layout)
        yield tags


def with_tags(data: bytes, number: int, wanted: frozenset[int]) -> bytes:
    """A TIFF file whose only folder is the one of this number, without tags that are not wanted.

    What they describe is for decoders to read, and decoders stumble over what the other tags hold.
    """
    layout = _layout(data)
    assert layout is not None
    place = _offset(data, layout.first, layout)
    for _ in range(number):
        place = _read_folder(data, place, layout)[1]
    step = struct.calcsize(layout.entry) + layout.inline
    start = place + struct.calcsize(layout.count)
    count = min(struct.unpack_from(layout.count, data, place)[0], _MOST_TAGS)
    entries = [data[at : at + step] for at in range(start, start + count * step, step)]
    entries = [
        entry for entry in entries if len(entry) == step and struct.unpack_from(layout.order + "H", entry)[0] in wanted
    ]
    end = data + b"\0" * (len(data) % 2)
    offset = struct.pack(layout.order + ("Q" if layout.inline == 8 else "I"), len(end))
    folder = struct.pack(layout.count, len(entries)) + b"".join(entries) + bytes(layout.inline)
    return end[: layout.first] + offset + end[layout.first + layout.inline :] + folder


def planes(data: bytes, page: Tags, wanted: frozenset[int]) -> Iterator[bytes]:
    """A gray TIFF file for each color of a page whose colors lie one after another; of these tags, page's own.

    The file keeps its byte order and, with offsets of 4 bytes, its form; nothing of a page in BigTIFF.
    """
    layout = _layout(data)
    if layout is None or layout.inline != 4:
        return
    samples = int(page.get(_SAMPLES, (1,))[0])
    pieces = {tag: page[tag] for tag in _PIECES if tag in page}
    kept = {tag: page[tag] for tag in wanted - {*pieces, *_OF_COLORS} if tag in page and isinstance(page[tag][0], int)}
    for plane in range(samples):
        parts = {tag: _nth(values, plane, samples) for tag, values in pieces.items()}
        own = {tag: page[tag][:1] for tag in wanted.intersection(_OF_COLORS) if tag in page}
        yield _with_folder(
            data, {**kept, **own, **parts, _SAMPLES: (1,), _ARRANGEMENT: (1,), _PHOTOMETRIC: (1,)}, layout
        )


def _nth(values: tuple[Any, ...], number: int, parts: int) -> tuple[Any, ...]:
    length = len(values) // parts
    return values[number * length : (number + 1) * length]


def _with_folder(data: bytes, tags: Tags, layout: _Layout) -> bytes:
    """A TIFF file of the same bytes with another folder; tags: whole numbers."""
    end = data + b"\0" * (len(data) % 2)
    place = len(end) + struct.calcsize(layout.count) + 12 * len(tags) + 4
    entries, behind = b"", b""
    for tag in sorted(tags):
        values = struct.pack(f"{layout.order}{len(tags[tag])}I", *tags[tag])
        value = values if len(values) == 4 else struct.pack(layout.order + "I", place + len(behind))
        behind += b"" if len(values) == 4 else values
        entries += struct.pack(layout.order + "HHI", tag, 4, len(tags[tag])) + value
    offset = struct.pack(layout.order + "I", len(end))
    folder = struct.pack(layout.count, len(tags)) + entries + bytes(4) + behind
    return end[: layout.first] + offset + end[layout.first + 4 :] + folder


def sub_folders(data: bytes, tags: Tags) -> Iterator[Tags]:
    """The folders that a folder refers to, as cameras do for the picture of the sensor."""
    layout = _layout(data)
    for place in tags.get(_SUB_FOLDERS, ())[:_MOST_FOLDERS]:
        if layout and isinstance(place, int):
            yield _read_folder(data, place, layout)[0]


def orientation(exif: bytes | None, xmp: bytes | str | None) -> int:
    """1…8 as EXIF counts them; 1 where neither EXIF nor, without it, XMP says something that makes sense."""
    value = next(iter(_exif_tags(exif).get(ORIENTATION, ())), None) if exif else None
    if value is None and xmp:
        text = xmp.encode("utf-8", "replace") if isinstance(xmp, str) else xmp
        match = re.search(rb'tiff:Orientation(?:="|>)\s*([1-8])', text)
        value = int(match[1]) if match else None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def is_adobe_rgb(exif: bytes | None) -> bool:
    """Whether EXIF says Adobe RGB: cameras write it as the interoperability index R03, without a profile."""
    if not exif:
        return False
    block = _bare(exif)
    layout = _layout(block)
    tags = _exif_tags(exif)
    for folder in (_EXIF_FOLDER, _INTEROP_FOLDER):
        place = next(iter(tags.get(folder, ())), None)
        if layout is None or not isinstance(place, int):
            return False
        tags = _read_folder(block, place, layout)[0]
    return bytes(tags.get(_INTEROP_INDEX, ()))[:3] == b"R03"


def _exif_tags(exif: bytes) -> Tags:
    return next(read_folders(_bare(exif)), {})


def _bare(exif: bytes) -> bytes:
    while exif.startswith(b"Exif\0\0"):  # some programs write it twice
        exif = exif[6:]
    return exif


def _layout(data: bytes) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return None
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    return _Layout(order, order + "Q", order + "HHQ", 8, 8) if big else _Layout(order, order + "H", order + "HHI", 4, 4)


def _offset(data: bytes, place: int, layout: _Layout) -> int:
    code = layout.order + ("Q" if layout.inline == 8 else "I")
    return struct.unpack_from(code, data, place)[0] if 0 <= place <= len(data) - layout.inline else 0


def _read_folder(data: bytes, place: int, layout: _Layout) -> tuple[Tags, int]:
    """(tags, place of the next folder or 0)."""
    tags: dict[int, tuple[Any, ...]] = {}
    head = struct.calcsize(layout.count)
    if place < 0 or place + head > len(data):
        return tags, 0
    entries = struct.unpack_from(layout.count, data, place)[0]
    step = struct.calcsize(layout.entry) + layout.inline
    start = place + head
    for entry in range(min(entries, _MOST_TAGS)):
        at = start + entry * step
        if at + step > len(data):
            return tags, 0
        tag, kind, count = struct.unpack_from(layout.entry, data, at)
        value = _values(data, kind, count, at + step - layout.inline, layout)
        if value is not None:
            tags.setdefault(tag, value)
    return tags, _offset(data, start + entries * step, layout)


def _values(data: bytes, kind: int, count: int, place: int, layout: _Layout) -> tuple[Any, ...] | None:
    code = _CODES.get(kind)
    if code is None or not 0 < count <= _MOST_VALUES:
        return None
    size = struct.calcsize(code) * count
    if size > layout.inline:
        place = _offset(data, place, layout)
    if place + size > len(data):
        return None
    return struct.unpack_from(f"{layout.order}{count}{code}", data, place)
