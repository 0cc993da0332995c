"""How a turned JPEG is coded again at the least loss."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from typing import Any

QUALITY = 95
_FULL, _ACROSS, _BOTH = 0, 1, 2  # 4:4:4, 4:2:2, 4:2:0
_BLOCK = 8

Tables = dict[int, list[int]]  # number → 64 divisors, row by row


@dataclass(frozen=True)
class JpegCoding:
    """How the channels of a JPEG are coded. sampling: Pillow's number, −1 for an unusual one."""

    tables: Tables
    sampling: int


def coding_of(image: Any) -> JpegCoding:
    """The coding of an opened JPEG."""
    from PIL.JpegImagePlugin import get_sampling

    sampling = get_sampling(image) if image.mode == "RGB" else _FULL
    return JpegCoding({number: list(table) for number, table in image.quantization.items()}, sampling)


def options_of_turned(coding: JpegCoding, turn: int, size: tuple[int, int]) -> dict[str, Any]:
    """What Pillow is to save a turned JPEG with; size: width and height.

    Where the turned blocks are blocks again, the same divisors give nearly the same numbers: the bytes stay as many, at
    49 to 56 dB. Where they are not, each divisor is at most that of quality 95, and chroma is whole: 45 to 49 dB.
    """
    if set(coding.tables) - {0, 1}:
        return {"quality": QUALITY, "subsampling": _FULL}
    is_transposed = turn >= 5
    own = {number: _transposed(table) if is_transposed else table for number, table in coding.tables.items()}
    step = {_FULL: (_BLOCK, _BLOCK), _ACROSS: (2 * _BLOCK, _BLOCK), _BOTH: (2 * _BLOCK, 2 * _BLOCK)}.get(
        coding.sampling
    )
    can_repeat = step is not None and not (is_transposed and coding.sampling == _ACROSS)
    if can_repeat and step and not any(side % length for side, length in zip(size, step, strict=True)):
        return {"qtables": own, "subsampling": coding.sampling}
    fine = _tables_of_quality()
    finer = {number: [min(pair) for pair in zip(table, fine[number], strict=True)] for number, table in own.items()}
    return {"qtables": finer, "subsampling": _FULL}


def _transposed(table: list[int]) -> list[int]:
    return [table[8 * column + row] for row in range(8) for column in range(8)]


@cache
def _tables_of_quality() -> Tables:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=QUALITY)
    with Image.open(buffer) as image:
        return coding_of(image).tables
