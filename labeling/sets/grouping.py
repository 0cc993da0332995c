"""Which pictures make a set: clusters of candidates, without what is nearly the same, cut into sets.

The plan lies in PLAN/: a Parquet file for each shard of sets, and plan.json, written last, with a digest of all that it
was made from. Copying reads it, so that a job that was killed goes on with the same sets.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from labeling.dataset import IMAGES, Dataset, FooterTable, Store, digest_json
from labeling.near_duplicates import group_words
from labeling.sets.candidates import UNKNOWN, Candidates, read_candidates
from labeling.sets.graph import Links, cluster, link, pair_scores
from labeling.sets.options import GroupingOptions, IdentityOptions, SubjectOptions
from labeling.sets.rows import CAPTION, SHARD_SETS

PLAN, PLAN_FILE = "plan", "plan.json"
CURVE_ROWS = 50_000  # up to so many candidates the figures of other thresholds are computed too
_SHAPES = 0.7  # of the logarithm of width over height: pictures above 1.42 are wide
Indices = NDArray[np.int64]

_MEMBER = pa.struct(
    [
        ("dataset", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("face", pa.list_(pa.int32())),
        ("distance", pa.float32()),
    ]
)
_SCHEMA = pa.schema([("group", pa.string()), ("members", pa.list_(_MEMBER))])


def make_plan(sources: Sequence[Dataset], options: GroupingOptions, store: Store, digest: str) -> None:
    """Group the pictures of labeled datasets, and write the plan of their sets."""
    left_out: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as scratch:
        candidates = read_candidates(sources, options, Path(scratch), left_out)
        groups, curve = _grouped(candidates, options)
        sets = sorted(_sets(candidates, groups, options, left_out), key=lambda members: _place(candidates, members))
        contents = [source.all_footers([IMAGES, CAPTION]) for source in sources]
        store.delete_tree(PLAN)
        for number, start in enumerate(range(0, len(sets), SHARD_SETS)):
            rows = [_plan_row(candidates, members, groups) for members in sets[start : start + SHARD_SETS]]
            buffer = io.BytesIO()
            # A shard whose pictures or captions have changed since is made anew.
            schema = _SCHEMA.with_metadata({"content": digest_json(_contents(rows, sources, contents))})
            pq.write_table(pa.Table.from_pylist(rows, schema), buffer)
            store.put(f"{PLAN}/{number:06d}.parquet", buffer.getvalue())
        subjects = len({int(groups[members[0]]) for members in sets})
        plan = {
            "digest": digest,
            "shards": -(-len(sets) // SHARD_SETS),
            "sets": len(sets),
            "subjects": subjects,
            "pictures": sum(map(len, sets)),
            "left_out": dict(left_out.most_common()),
            "curve": curve,
        }
        store.put(f"{PLAN}/{PLAN_FILE}", json.dumps(plan, indent=1).encode())


def read_plan(store: Store) -> dict[str, Any] | None:
    """plan.json, None where there is none."""
    try:
        return dict(json.loads(store.read(f"{PLAN}/{PLAN_FILE}")))
    except FileNotFoundError:
        return None


def read_planned(store: Store, name: str) -> list[dict[str, Any]]:
    """The sets of a shard as the plan has them."""
    table = pq.read_table(io.BytesIO(store.read(f"{PLAN}/{name}.parquet")))
    return list(table.to_pylist())


def _grouped(candidates: Candidates, options: GroupingOptions) -> tuple[Indices, list[dict[str, float]]]:
    """(N,) of each candidate the first of its group, and the figures of several thresholds."""
    if isinstance(options, SubjectOptions) and not candidates.width:
        _, first, inverse = np.unique(candidates.keys, return_index=True, return_inverse=True)
        return first[inverse.ravel()], []
    if not candidates.count:
        return np.zeros(0, np.int64), []
    threshold, steps = _thresholds(options)
    known = candidates.truth != UNKNOWN
    draws_curve = candidates.count <= CURVE_ROWS or bool(known.any())
    links = link(candidates.vectors, max(threshold, *steps) if draws_curve else threshold)
    if isinstance(options, SubjectOptions):  # only objects of one class
        same = candidates.keys[links.one] == candidates.keys[links.other]
        links = Links(links.one[same], links.other[same], links.distance[same])
    truth = np.where(known, np.unique(candidates.truth, return_inverse=True)[1].ravel(), UNKNOWN)
    curve = []
    for step in steps if draws_curve else ():
        groups = cluster(candidates.count, links.within(step), step)
        curve.append(_figures(groups, truth, step, options))
    return cluster(candidates.count, links.within(threshold), threshold), curve


def _thresholds(options: GroupingOptions) -> tuple[float, list[float]]:
    """The distance of vectors that is asked for, and those that a curve is drawn of."""
    if isinstance(options, IdentityOptions):
        return options.distance, [round(0.3 + 0.05 * step, 2) for step in range(10)]
    assert isinstance(options, SubjectOptions)
    cosines = [round(0.5 + 0.05 * step, 2) for step in range(10)]
    return _of_cosine(options.similarity), [_of_cosine(cosine) for cosine in cosines]


def _of_cosine(cosine: float) -> float:
    """The distance of two vectors of length 1."""
    return float(np.sqrt(2 - 2 * cosine)) + 1e-6


def _figures(groups: Indices, truth: Indices, step: float, options: GroupingOptions) -> dict[str, float]:
    sizes = np.unique(groups, return_counts=True)[1]
    several = sizes[sizes >= options.least]
    threshold = step if isinstance(options, IdentityOptions) else 1 - step**2 / 2
    figures = {"threshold": round(threshold, 3), "groups": len(several), "pictures": int(several.sum())}
    if (truth != UNKNOWN).any():
        precision, recall = pair_scores(groups, truth)
        figures |= {"known": int((truth != UNKNOWN).sum()), "precision": precision, "recall": recall}
    return figures


def _sets(
    candidates: Candidates, groups: Indices, options: GroupingOptions, left_out: Counter[str]
) -> Iterator[Indices]:
    """Candidates of each set."""
    order = np.argsort(groups, kind="stable")
    bounds = np.flatnonzero(np.diff(groups[order], prepend=-1, append=-1))
    few = max(options.least, options.pictures[0])
    for start, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        members = order[start:end]
        if len(members) >= few and options.duplicates >= 0:
            kept = _different(candidates, members, options.duplicates)
            left_out["nearly the same as another of its group"] += len(members) - len(kept)
            members = kept
        if len(members) < few:
            left_out[f"fewer than {few} of its group"] += len(members)
            continue
        # Tall, square and wide pictures have sets of their own, so that little is cropped; their ids mix the rest.
        widths, heights = candidates.sizes[members].T
        shape = np.round(np.log(widths / heights) / _SHAPES)
        members = members[np.lexsort((candidates.ids[members], shape))]
        parts = _cut(members, options.pictures)
        left_out["over what its sets take"] += len(members) - sum(map(len, parts))
        yield from parts


def _different(candidates: Candidates, members: Indices, bits: int) -> Indices:
    """Of pictures that are nearly the same the largest, of equal ones the first. Those without a hash stay."""
    hashes = candidates.hashes[members]
    known = hashes.any(axis=1)
    groups = np.arange(len(members))
    groups[known] = np.flatnonzero(known)[group_words(hashes[known], bits)]
    areas = candidates.sizes[members].astype(np.int64).prod(axis=1)
    order = np.lexsort((np.arange(len(members)), -areas, groups))
    first = np.diff(groups[order], prepend=-1) != 0
    return np.asarray(members[np.sort(order[first])])


def _cut(members: Indices, pictures: tuple[int, int]) -> list[Indices]:
    """Sets of about equal size, each within `pictures`."""
    least, most = pictures
    count = -(-len(members) // most)
    while count > 1 and len(members) // count < least:
        count -= 1
    return [part[:most] for part in np.array_split(members, count)]


def _contents(
    rows: Sequence[Mapping[str, Any]], sources: Sequence[Dataset], footers: Sequence[Mapping[str, FooterTable]]
) -> list[Any]:
    """Of each shard that pictures of planned sets are in the content of its groups."""
    found = []
    for number, index in sorted({(member["dataset"], member["shard"]) for row in rows for member in row["members"]}):
        name = sources[number].shards[index].name
        content = [of_group[name].content for of_group in footers[number].values() if name in of_group]
        found.append([number, name, content])
    return found


def _place(candidates: Candidates, members: Indices) -> tuple[int, ...]:
    return min(tuple(place) for place in candidates.place[members].tolist())


def _plan_row(candidates: Candidates, members: Indices, groups: Indices) -> dict[str, Any]:
    vectors = candidates.vectors[members].astype(np.float64)
    distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1) if vectors.shape[1] else [None] * len(members)
    first = bytes(candidates.ids[groups[members[0]]])
    faces = candidates.faces[members].tolist()
    return {
        "group": first.decode(),
        "members": [
            {
                "dataset": place[0],
                "shard": place[1],
                "row": place[2],
                "face": face if any(face) else None,
                "distance": None if distance is None else float(distance),
            }
            for place, face, distance in zip(candidates.place[members].tolist(), faces, distances, strict=True)
        ],
    }
