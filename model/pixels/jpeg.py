"""Segments of a JPEG file before its pixels: the file without metadata, and how often its pixels are refined."""

from __future__ import annotations

from collections.abc import Iterator

_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF, 0xF7)  # markers of the frames of medical and camera pictures; JPEG-LS last
_FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_KEPT_SEGMENTS = {0xE0: 16, 0xEE: 14}  # JFIF and Adobe say how channels are coded; → bytes that they must have


def without_metadata(raw: bytes) -> bytes:
    """The same picture without EXIF, profiles, previews and comments."""
    place = 2
    kept = [raw[:2]]
    for marker, start, end in _segments(raw):
        kept.append(raw[place:start])
        is_metadata = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_metadata or end - start >= _KEPT_SEGMENTS.get(marker, len(raw)):
            kept.append(raw[start:end])
        place = end
    return b"".join(kept) + raw[place:]


def exif_block(raw: bytes) -> bytes | None:
    """The EXIF block of a JPEG."""
    return next((raw[start + 4 : end] for marker, start, end in _segments(raw) if _is_exif(raw, marker, start)), None)


def unread_coding(raw: bytes) -> str | None:
    """How a JPEG is coded that no decoder here reads, None for one that is read."""
    frame = next(((marker, start) for marker, start, _ in _segments(raw) if marker in _FRAMES), None)
    if frame is None or frame[1] + 4 >= len(raw):
        return None
    marker, bits = frame[0], raw[frame[1] + 4]
    if marker in _LOSSLESS or bits != 8:
        kind = "JPEG-LS" if marker == 0xF7 else "lossless JPEG" if marker in _LOSSLESS else "JPEG"
        return f"{kind} of {bits} bits"
    return None


def scans(raw: bytes) -> int:
    """At most as many passes over the pixels a decoder makes: 1 for a plain JPEG, some ten for a progressive one."""
    return raw.count(b"\xff\xda")


def _segments(raw: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment before the first scan."""
    place = 2
    while place + 4 <= len(raw):
        if raw[place] != 0xFF:
            place += 1
            continue
        marker = raw[place + 1]
        if marker == 0xFF:  # fill bytes
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # without content
            place += 2
            continue
        if marker in (0xD9, 0xDA):
            return
        end = place + 2 + int.from_bytes(raw[place + 2 : place + 4], "big")
        yield marker, place, min(end, len(raw))
        place = max(end, place + 4)


def _is_exif(raw: bytes, marker: int, start: int) -> bool:
    return marker == 0xE1 and raw[start + 4 : start + 10] == b"Exif\0\0"
