"""The pictures of labeled datasets that sets may be made of, as arrays on a local disk.

N pictures; of each some 400 bytes, which lie in files of a scratch folder.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from labeling.dataset import IMAGES, Dataset, Selection, digest_json, select_rows
from labeling.sets.options import EMBEDDING, FOLDER, OF_CAPTION, GroupingOptions, IdentityOptions, SubjectOptions
from labeling.sets.rows import CAPTION, VERSION
from model.inputs import InputError

FACES, HASHES, OBJECTS = "faces", "hashes", "embedding-object"
PERSON, ITEM = "person", "item"  # keys of images.metadata that say what is true
UNKNOWN = -1
VECTOR = "vector"  # of a row: its embedding, as an array
Row = Mapping[str, Any]


class Candidates:
    """Arrays of all candidates, each (N, …): `place` (dataset, shard, row in the shard), `vectors`, `hashes`, `ids`,
    `faces` (boxes), `sizes` (width, height), `keys` (equal for pictures that one key names, else 0), and `truth` (equal
    for pictures of which it is known that they belong together, else UNKNOWN)."""

    def __init__(self, folder: Path, most: int, width: int) -> None:
        self.count = 0
        self.width = width

        def array(name: str, kind: Any, *shape: int) -> NDArray[Any]:
            if not most or 0 in shape:
                return np.zeros((most, *shape), kind)
            return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", kind, (most, *shape))

        self._arrays = {
            "place": array("place", np.int32, 3),
            "vectors": array("vectors", np.float32, width),
            "hashes": array("hashes", np.uint64, 4),
            "ids": array("ids", "S32"),
            "faces": array("faces", np.int32, 4),
            "sizes": array("sizes", np.int32, 2),
            "keys": array("keys", np.int64),
            "truth": array("truth", np.int64),
        }

    def __getattr__(self, name: str) -> NDArray[Any]:
        return self.__dict__["_arrays"][name][: self.count]

    def add(self, **values: Any) -> None:
        """One candidate. values: by the names above."""
        for name, value in values.items():
            self._arrays[name][self.count] = value
        self.count += 1


def groups_read(options: GroupingOptions) -> list[str]:
    """Groups of labels that candidates are read from."""
    if isinstance(options, IdentityOptions):
        needed = [FACES]
    else:
        assert isinstance(options, SubjectOptions)
        needed = {EMBEDDING: [OBJECTS], OF_CAPTION: [CAPTION]}.get(options.by, [])
    return [*needed, *([HASHES] if options.duplicates >= 0 else [])]


def sources_digest(sources: Sequence[Dataset], options: GroupingOptions) -> str:
    """Digest of all that candidates are read from. Raises InputError where labels are missing, or `where` selects
    nothing of any."""
    digest = hashlib.blake2b(digest_size=16)
    for source in sources:
        needed = groups_read(options)
        groups = list(dict.fromkeys([IMAGES, CAPTION, *needed]))
        footers = source.all_footers(groups)
        for group in needed:
            missing = [shard for shard in source.shard_names if shard not in footers[group]]
            if missing and group != CAPTION:
                names = " ".join(needed)
                raise InputError(
                    f"{source.uri}: group {group!r} lacks {len(missing)} of {len(source.shards)} shards; make it with "
                    f"`label {source.uri} {names}`"
                    + ("" if group != HASHES else ", or keep what is nearly the same: --duplicates -1")
                )
        for shard in source.shard_names:
            content = [footers[group][shard].content for group in groups if shard in footers[group]]
            digest.update(json.dumps([shard, content, source.removed_rows(shard)]).encode())
    return digest_json([VERSION, digest.hexdigest(), options.model_dump(mode="json")])


def read_candidates(
    sources: Sequence[Dataset], options: GroupingOptions, folder: Path, left_out: Counter[str]
) -> Candidates:
    """Read what sets may be made of. left_out: gets why pictures are left out, and how many."""
    most = sum(shard.rows for source in sources for shard in source.shards)
    candidates: Candidates | None = None
    for number, source in enumerate(sources):
        selection = select_rows(source, options.where) if options.where else None
        for index, shard in enumerate(source.shard_names):
            for row_number, row in _rows(source, shard, options, selection, left_out):
                values = _values(row, options, left_out)
                if values is None:
                    continue
                if candidates is None:
                    candidates = Candidates(folder, most, len(values.get("vectors", ())))
                if len(values.get("vectors", ())) != candidates.width:
                    raise InputError(f"{source.uri}: embeddings of another model than the other sources'")
                candidates.add(
                    place=(number, index, row_number),
                    ids=row["images.id"].encode(),
                    sizes=(row["images.width"], row["images.height"]),
                    hashes=_hash(row),
                    **values,
                )
    return candidates or Candidates(folder, 0, 0)


def _rows(
    source: Dataset, shard: str, options: GroupingOptions, selection: Selection | None, left_out: Counter[str]
) -> Iterator[tuple[int, Row]]:
    known = source.footer(IMAGES, shard).columns
    columns: dict[str, list[str]] = {
        IMAGES: [name for name in ("id", "width", "height", "source", "text", "metadata") if name in known]
    }
    for group in groups_read(options):
        columns[group] = {
            FACES: ["embeddings", "boxes", "error"],
            OBJECTS: ["embedding", "name", "error"],
            CAPTION: ["caption"],
            HASHES: ["phash"],
        }[group]
    removed = set(source.removed_rows(shard))
    selected = None if selection is None else selection.mask(shard)
    table = source.join(shard, columns, skip_missing=True)
    vectors: dict[int, NDArray[Any]] = {}
    for name in (f"{FACES}.embeddings", f"{OBJECTS}.embedding"):
        if name in table.column_names:  # as lists of Python numbers they would take most of the time
            vectors = first_vectors(table[name])
            table = table.drop_columns([name])
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        row[VECTOR] = vectors.get(number)
        if number in removed:
            left_out["removed at the source"] += 1
        elif selected is not None and not selected[number]:
            left_out["not selected"] += 1
        else:
            yield number, row


def _values(row: Row, options: GroupingOptions, left_out: Counter[str]) -> dict[str, Any] | None:
    """What a candidate is told by, None for a row that is left out."""
    facts = json.loads(row.get("images.metadata") or "{}")
    if isinstance(options, IdentityOptions):
        return _face(row, facts, options, left_out)
    assert isinstance(options, SubjectOptions)
    truth = key_of(str(facts[ITEM])) if facts.get(ITEM) else UNKNOWN
    if options.by == EMBEDDING:
        embedding = row[VECTOR]
        if embedding is None:
            left_out["no object of it is embedded"] += 1
            return None
        return {"vectors": embedding, "keys": key_of(row["embedding-object.name"]), "truth": truth}
    text = said_key(row, facts, options.by)
    if not text:
        left_out[f"no {options.by}"] += 1
        return None
    return {"keys": key_of(text), "truth": truth}


def _face(
    row: Row, facts: Mapping[str, Any], options: IdentityOptions, left_out: Counter[str]
) -> dict[str, Any] | None:
    boxes = row["faces.boxes"]
    if not boxes or row[VECTOR] is None:
        left_out["no face" if boxes is not None else "faces in error"] += 1
        return None
    if options.alone and len(boxes) > 1:
        left_out["several faces"] += 1
        return None
    box = [boxes[0][side] for side in ("x0", "y0", "x1", "y1")]
    if min(box[2] - box[0], box[3] - box[1]) < options.side:
        left_out[f"a face below {options.side} pixels"] += 1
        return None
    truth = key_of(str(facts[PERSON])) if facts.get(PERSON) else UNKNOWN
    return {"vectors": row[VECTOR], "faces": [round(side) for side in box], "truth": truth}


def first_vectors(column: pa.ChunkedArray) -> dict[int, NDArray[Any]]:
    """Row → its vector, of lists of numbers; of lists of such lists, as of several faces, the first."""
    array = column.combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(array), 0)
    rows = np.flatnonzero(lengths.to_numpy(zero_copy_only=False))
    present = array.take(pa.array(rows))
    if pa.types.is_list(array.type.value_type):
        present = pc.list_element(present, 0)
    if not len(rows):
        return {}
    values = present.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
    return dict(zip(rows.tolist(), values, strict=True))


def said_key(row: Row, facts: Mapping[str, Any], by: str) -> str:
    """What pictures of one item share, as text; "" of a picture that says nothing."""
    if by == FOLDER:
        return (row["images.source"] or "").rpartition("/")[0]
    if by == OF_CAPTION:
        caption = row.get("caption.caption") or row["images.text"] or ""
        return re.sub(r"[\W\d_]+", " ", caption).strip().lower()
    value = facts.get(by)
    return "" if value is None else str(value).strip()


def key_of(text: str) -> int:
    """A positive number that stands for a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def _hash(row: Row) -> NDArray[np.uint64]:
    data = row.get("hashes.phash")
    return np.zeros(4, np.uint64) if data is None else np.frombuffer(data, np.uint64)
