"""Chunks of a PNG file: what they say of colors, and a file without those that only harm."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MOST_TEXT = 64 << 10  # bytes; longer texts (workflows of generators, histories of editors) are left out
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_FRAMES = {b"acTL", b"fcTL", b"fdAT"}
_MOST_PROFILE = 4 << 20  # bytes of a compressed profile


@dataclass(frozen=True)
class PngFacts:
    """What a PNG says of itself, and its bytes without what is left out.

    data: the file's bytes where nothing is left out. bits: of a sample. cicp: (primaries, transfer). gamma: of gAMA,
    1/2.2 for example. chromaticities: of cHRM, the x and y of white, red, green and blue. Those three are None where
    they say nothing, or where sRGB or a profile counts instead.
    """

    data: bytes
    bits: int
    cicp: tuple[int, int] | None
    gamma: float | None
    chromaticities: tuple[float, ...] | None


def read_png(raw: bytes) -> PngFacts:
    """Walk the chunks of a PNG; what is broken about them is left to the decoder."""
    chunks = list(_chunks(raw))
    kinds = {kind for kind, _, _ in chunks}
    texts = sum(end - start for kind, start, end in chunks if kind in _TEXTS)
    dropped = {kind for kind in kinds & _FRAMES}  # an animation's still picture is a PNG of its own
    if texts > _MOST_TEXT:
        dropped |= kinds & _TEXTS
    if any(kind == b"iCCP" and end - start > _MOST_PROFILE for kind, start, end in chunks):
        dropped.add(b"iCCP")
    data = raw
    if dropped:
        data = SIGNATURE + b"".join(raw[start:end] for kind, start, end in chunks if kind not in dropped)
    content = {kind: raw[start + 8 : end - 4] for kind, start, end in chunks if kind in _COLORS}
    header = content.get(b"IHDR", b"")
    cicp = gamma = chromaticities = None
    if len(content.get(b"cICP", b"")) == 4:
        cicp = (content[b"cICP"][0], content[b"cICP"][1])
    elif not kinds & {b"sRGB", b"iCCP"}:
        if len(content.get(b"gAMA", b"")) == 4:
            gamma = struct.unpack(">I", content[b"gAMA"])[0] / 100_000
        if len(content.get(b"cHRM", b"")) == 32:
            chromaticities = tuple(value / 100_000 for value in struct.unpack(">8I", content[b"cHRM"]))
    return PngFacts(data, header[8] if len(header) > 8 else 8, cicp, gamma, chromaticities)


_COLORS = {b"IHDR", b"cICP", b"gAMA", b"cHRM"}


def _chunks(raw: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk, length and checksum included; of a cut one the end is the file's."""
    place = len(SIGNATURE)
    while place + 8 <= len(raw):
        length, kind = struct.unpack_from(">I4s", raw, place)
        end = min(place + 12 + length, len(raw))
        yield kind, place, end
        place = end
