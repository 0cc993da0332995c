"""What becomes of one raw file."""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.inputs import one_line

_LONGEST_REASON = 200  # characters


class Rejected(Exception):
    """The bytes are no image to keep; the message is the reason."""


@dataclass(frozen=True)
class EncodedImage:
    """Encoded bytes with the size they decode to, in pixels."""

    encoded: bytes
    width: int
    height: int


def broken(form: str, error: BaseException) -> Rejected:
    """The reason for a file that its decoder refuses: one line, the same for the same bytes.

    form: name of the format, for example "PNG".
    """
    reason = one_line(error)
    if "truncated" in reason.lower() or isinstance(error, EOFError):
        return Rejected(f"truncated {form} file")
    if reason.startswith("cannot identify image file"):
        reason = "its header cannot be read"
    if reason.startswith("Generic Error"):  # all that libjxl tells
        reason = "its pixels cannot be read"
    reason = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "the file", reason)  # an object's address differs from run to run
    return Rejected(f"broken: {form}: {reason}"[:_LONGEST_REASON])


def check_size(width: int, height: int, max_pixels: int, min_side: int) -> None:
    """Raise Rejected for a picture that has too many pixels, or too few on its shorter side."""
    if min(width, height) < 1:
        raise Rejected(f"broken: a picture of {width} × {height} pixels")
    if width * height > max_pixels:
        raise Rejected(f"decompression bomb: {width} × {height} is more than {max_pixels:,} pixels")
    if min(width, height) < min_side:
        raise Rejected(f"too small: {width} × {height}, the shorter side must have {min_side} pixels")
