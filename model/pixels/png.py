"""Chunks of a PNG file: what they say of colors and turns, and a file without those that only harm."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 64 << 10  # bytes; longer texts (workflows of generators, histories of editors) are left out
_MOST_TEXTS = 1 << 20  # bytes of all texts
_MOST_PROFILE = 4 << 20  # bytes
_PILLOWS_PROFILE = 1 << 20  # bytes that Pillow reads of a profile
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_FRAMES = {b"acTL", b"fcTL", b"fdAT"}
_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT"}
_FACTS = {b"IHDR", b"cICP", b"gAMA", b"cHRM", b"iCCP", b"eXIf"}

_Chunk = tuple[bytes, int, int]  # kind, start, end; with length and checksum


@dataclass(frozen=True)
class PngFacts:
    """What a PNG says of itself, and its bytes without what is left out.

    data: the file's bytes where nothing is left out. bits: of a sample. cicp: (primaries, transfer). gamma: of gAMA,
    1/2.2 for example. chromaticities: of cHRM, the x and y of white, red, green and blue. profile: the ICC profile.
    All are None where they say nothing, or where another of them counts instead.
    """

    data: bytes
    bits: int
    exif: bytes | None
    profile: bytes | None
    cicp: tuple[int, int] | None
    gamma: float | None
    chromaticities: tuple[float, ...] | None


def read_png(raw: bytes) -> PngFacts:
    """Walk the chunks of a PNG; what is broken about its pixels is left to the decoder."""
    chunks = list(_chunks(raw))
    kinds = {kind for kind, _, _ in chunks}
    content = {kind: raw[start + 8 : end - 4] for kind, start, end in chunks if kind in _FACTS}
    profile = _unpacked(content[b"iCCP"], _MOST_PROFILE) if b"iCCP" in content else None
    dropped = kinds & _FRAMES  # without them an animation is its still picture
    if not _texts_are_harmless(raw, chunks):
        dropped |= kinds & _TEXTS
    if b"iCCP" in kinds and not (profile and len(profile) < _PILLOWS_PROFILE):
        dropped.add(b"iCCP")
    data = _without(raw, chunks, dropped) if dropped else raw
    header = content.get(b"IHDR", b"")
    cicp = gamma = chromaticities = None
    if len(content.get(b"cICP", b"")) == 4:
        cicp, profile = (content[b"cICP"][0], content[b"cICP"][1]), None
    elif not profile and b"sRGB" not in kinds:
        if len(content.get(b"gAMA", b"")) == 4:
            gamma = struct.unpack(">I", content[b"gAMA"])[0] / 100_000
        if len(content.get(b"cHRM", b"")) == 32:
            chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", content[b"cHRM"]))
    bits = header[8] if len(header) > 8 else 8
    return PngFacts(data, bits, content.get(b"eXIf"), profile, cicp, gamma, chromaticities)


def pixels_only(raw: bytes) -> bytes:
    """Keep only the chunks of a picture's pixels: a decoder stumbles over what others hold.

    Lengths and checksums are set right, and it has an end: OpenCV looks for what is missing for ten seconds.
    """
    parts = []
    for kind, start, end in _chunks(raw):
        if kind in _PIXELS:
            (length,) = struct.unpack_from(">I", raw, start)
            parts.append(png_chunk(kind, raw[start + 8 : min(start + 8 + length, end)]))
    return SIGNATURE + b"".join(parts) + png_chunk(b"IEND", b"")


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk as files have it, with length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _chunks(raw: bytes) -> Iterator[_Chunk]:
    """Each chunk; the end of a cut one is the file's."""
    offset = len(SIGNATURE)
    while offset + 8 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, offset)
        end = min(offset + 12 + length, len(raw))
        yield kind, offset, end
        if kind == b"IEND":
            return
        offset = end


def _without(raw: bytes, chunks: list[_Chunk], dropped: set[bytes]) -> bytes:
    return SIGNATURE + b"".join(raw[start:end] for kind, start, end in chunks if kind not in dropped)


def _texts_are_harmless(raw: bytes, chunks: list[_Chunk]) -> bool:
    """Whether all texts are short, unpacked ones too, so that any decoder reads past them."""
    total = 0
    for kind, start, end in chunks:
        if kind not in _TEXTS:
            continue
        data = raw[start + 8 : end - 4]
        if kind == b"iTXt" and data.partition(b"\0")[2][:1] != b"\0":
            return False  # packed, or cut: few programs write one
        text = _unpacked(data, _MOST_TEXT) if kind == b"zTXt" else data
        if text is None or len(text) > _MOST_TEXT:
            return False
        total += len(text)
    return total <= _MOST_TEXTS


def _unpacked(data: bytes, most: int) -> bytes | None:
    """What follows a name in an iCCP or zTXt chunk; None where it is broken, or longer than `most` bytes."""
    _, _, rest = data.partition(b"\0")
    if rest[:1] != b"\0":
        return None
    try:
        unpacked = zlib.decompressobj().decompress(rest[1:], most + 1)
    except zlib.error:
        return None
    return unpacked if 0 < len(unpacked) <= most else None
