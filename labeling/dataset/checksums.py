"""Checksums of what a shard holds: a byte that changed on a disk or on its way is noticed by whoever reads it.

Pages have those of Parquet, a CRC-32 before each. Single arrays are read without their page, so the footer has a half
of the CRC-32 of each of them: 2 bytes an array, of which 1 in 65,536 damaged ones is missed.
"""

from __future__ import annotations

import base64
import importlib
import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from model.inputs import InputError, one_line

CHECKSUMS = "checksums"  # key of the footer: JSON object, "pages": "crc32", "arrays": base64 of a uint16 for each
PIECE_BYTES = 256 << 10  # of an array that is read and compared piece by piece; a core's cache holds it
_HALF = 0xFFFF
_BROKEN_PAGE = "page integrity"  # what Arrow says of a page with another checksum


def checksums_text(stored: pa.Table, arrays: Sequence[str]) -> str:
    """What the footer of a shard says; arrays: the column, or field of structs, whose values are read alone."""
    values = {"pages": "crc32"}
    for path in arrays:
        column, *fields = path.split(".")
        sums = [_of_values(_binary(chunk, fields)) for chunk in stored[column].chunks]  # together they may be > 2 GiB
        values["arrays"] = base64.b64encode(b"".join(each.tobytes() for each in sums)).decode()
    return json.dumps(values)


def read_checksums(metadata: pq.FileMetaData) -> tuple[bool, NDArray[np.uint16] | None]:
    """(whether pages have checksums, those of single arrays in their order or None)."""
    text = (metadata.metadata or {}).get(CHECKSUMS.encode())
    values = json.loads(text) if text else {}
    arrays = values.get("arrays")
    return "pages" in values, None if arrays is None else np.frombuffer(base64.b64decode(arrays), "<u2")


def array_checksum(content: memoryview, before: int = 0) -> int:
    """The CRC-32 of an array that ends with these bytes; before: that of those before them.

    Who adds a piece right after it was written finds it in the cache of its core: so 550 kB take 11 µs, and 20 µs where
    they are added when all is there.
    """
    checksum: int = _crc32()(content, before)
    return checksum


def is_checksum(checksum: int, stored: int) -> bool:
    """Whether the half that a shard has of it is that of this CRC-32."""
    return checksum & _HALF == stored


def open_parquet(file: pa.NativeFile) -> pq.ParquetFile:
    """A shard to read tables from, its pages compared with their checksums where it has some."""
    return pq.ParquetFile(file, page_checksum_verification=True)


def read_table(parquet: pq.ParquetFile, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of columns (all for None)."""
    names = list(columns) if columns is not None else None
    try:
        return parquet.read(columns=names)
    except pa.ArrowNotImplementedError:  # of bytes within lists and structs Arrow reads no more than 2 GiB at once
        groups = range(parquet.metadata.num_row_groups)
        return pa.concat_tables([parquet.read_row_group(group, columns=names) for group in groups])


def read_verified(
    parquet: pq.ParquetFile, columns: Sequence[str] | None, row_groups: Sequence[int] | None, address: str, far: bool
) -> pa.Table:
    """Columns (all for None) of row groups (all for None) of an opened shard.

    far: of a store that may fail and answer the next time. Raises InputError that names file and row group where the
    file does not hold what was written.
    """
    names = list(columns) if columns is not None else None
    groups = list(range(parquet.metadata.num_row_groups)) if row_groups is None else list(row_groups)
    try:
        return read_table(parquet, names) if row_groups is None else parquet.read_row_groups(groups, columns=names)
    except (pa.ArrowException, OSError) as error:
        if not _is_damage(error, far):
            raise
        for group in groups:
            try:
                parquet.read_row_group(group, columns=names)
            except (pa.ArrowException, OSError) as found:
                if _is_damage(found, far):
                    raise damaged_shard(address, group, found) from None
                raise
        raise


def damaged_shard(address: str, row_group: int | None, error: BaseException | None = None) -> InputError:
    """What to tell a person whose shard does not hold what was written."""
    where = address if row_group is None else f"{address} row group {row_group}"
    reason = f" ({one_line(error, 120)})" if error else ""
    return InputError(f"{where}: damaged{reason}; delete the file and label its group again, which makes it anew")


def changed_shard(address: str) -> InputError:
    """What to tell a person whose shard is not the one that a run began with."""
    return InputError(f"{address}: changed since the run began; restore it, or begin a new run")


def gone_shard(address: str) -> InputError:
    """What to tell a person whose shard is not there any more."""
    return InputError(f"{address}: gone since the run began; restore it, or begin a new run")


@cache
def _crc32() -> Any:
    """CRC-32 by zlib-ng, in a sixteenth of the time of zlib's, and the same."""
    try:
        return importlib.import_module("zlib_ng.zlib_ng").crc32
    except ImportError:
        return importlib.import_module("zlib").crc32


def _is_damage(error: BaseException, far: bool) -> bool:
    """Whether Arrow failed at what a file holds, and not at reading it."""
    if isinstance(error, OSError) and error.errno is not None:
        return False
    return not (far and isinstance(error, OSError)) or _BROKEN_PAGE in str(error)


def _binary(array: pa.Array, fields: Sequence[str]) -> pa.Array:
    """The binary values of a column's field of structs, in order, whatever lists they are in."""
    for name in (*fields, None):
        while pa.types.is_list(array.type):
            array = array.flatten()
        if name is not None:
            array = array.field(name)
    return array


def _of_values(array: pa.Array) -> NDArray[np.uint16]:
    """(values,) of a binary array; of nulls that of nothing."""
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int32, len(array) + 1, 4 * array.offset).tolist() if len(array) else [0]
    content = memoryview(data) if data is not None else memoryview(b"")
    crc32 = _crc32()
    return np.array([crc32(content[start:end]) & _HALF for start, end in pairwise(bounds)], "<u2")
