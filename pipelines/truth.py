"""`onediffusion evaluate DATASET`: the labels of a dataset beside what is known to be true of its pictures.

What is true comes with the pictures: a true disparity (`images.disparity`), and keys of `images.metadata`, as a
metadata.csv or metadata.jsonl beside the pictures gives them: `same`, a name that copies of one picture share;
`person`, of the only face; `mask`, the object, as a gray PNG in base64.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.dataset import IMAGES, Dataset
from model.inputs import InputError
from model.pictures import decode_gray
from pipelines.reports.figures import EVALUATION

SAME_PERSON = 0.6  # distance of dlib's face embeddings below which two faces are most likely of one person
CLOSE = 0.1  # share of the true disparity by which a pixel may be off
MASK = 128  # level from which a true mask counts

Row = Mapping[str, Any]
Figure = dict[str, float]


@dataclass
class Truth:
    """A comparison: what it takes of each row, and what it says at the end.

    groups: whose columns it reads; take: gives what counts of a row, None where the row has no truth or no label;
    conclude: figures of all that counts.
    """

    groups: Mapping[str, Sequence[str]]
    take: Callable[[Row, Mapping[str, Any]], Any]
    conclude: Callable[[list[Any]], Figure]
    taken: list[Any] = field(default_factory=list)


def evaluate_dataset(uri: str) -> dict[str, Figure]:
    """Compare labels with truth, into DATASET/evaluation.json; figures by group, each with its number of `rows`.

    Raises InputError where the dataset has no truth that a label of it can be compared with.
    """
    dataset = Dataset.open(uri)
    if dataset.has_sets:
        raise InputError(f"{uri}: view sets have no truth to compare labels with")
    groups = set(dataset.groups())
    truths = {name: truth for name, truth in _truths().items() if name in groups}
    for row, facts in _rows(dataset, truths):
        for truth in truths.values():
            taken = truth.take(row, facts)
            if taken is not None:
                truth.taken.append(taken)
    figures = {name: {"rows": len(t.taken), **t.conclude(t.taken)} for name, t in truths.items() if t.taken}
    if not figures:
        raise InputError(
            f"{uri}: nothing is known to be true of its pictures (images.disparity, or same, person or mask in "
            f"images.metadata) that a label among {', '.join(_truths())} can be compared with"
        )
    dataset.store.put(EVALUATION, json.dumps({"figures": figures}, indent=1).encode())
    return figures


def figure_lines(figures: Mapping[str, Figure]) -> list[str]:
    """What a person reads: a line for each label."""
    lines = []
    for name, figure in figures.items():
        values = ", ".join(f"{key} {value:.3f}" for key, value in figure.items() if key != "rows")
        lines.append(f"{name}: {values} ({figure['rows']:.0f} rows)")
    return lines


def _truths() -> dict[str, Truth]:
    return {
        "depth": Truth({"depth": ["depth", "method"]}, _depth, _depth_figures),
        "segmentation": Truth({"segmentation": ["mask"]}, _overlap, _mean_overlap),
        "duplicates": Truth({"duplicates": ["group"]}, _copies, _pair_figures),
        "faces": Truth({"faces": ["embeddings"]}, _face, _face_figures),
    }


def _rows(dataset: Dataset, truths: Mapping[str, Truth]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
    """The rows, and what is said of each."""
    columns: dict[str, list[str]] = {}
    for truth in truths.values():
        for group, names in truth.groups.items():
            columns[group] = list(names)
    for shard in dataset.shards:
        if not shard.rows:
            continue
        known = [name for name in ("id", "disparity", "metadata") if name in dataset.footer(IMAGES, shard.name).columns]
        removed = set(dataset.removed_rows(shard.name))
        table = dataset.join(shard.name, {IMAGES: known, **columns}, skip_missing=True)
        for number, row in enumerate(table.to_pylist()):
            if number not in removed:
                yield row, json.loads(row.get("images.metadata") or "{}")


def _depth(row: Row, _: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(correlation, share of pixels close to the truth, share of pixels that have a depth), of one picture."""
    truth, label = row.get("images.disparity"), row.get("depth.depth")
    if truth is None or label is None or row["depth.method"] == "given":
        return None
    true, predicted = (decode_gray(data).astype(np.float64) for data in (truth, label))
    if true.shape != predicted.shape:
        return None
    both = (true > 0) & (predicted > 0)
    if both.sum() < 2:
        return None
    x, y = predicted[both], true[both]
    # Inverse depth is known up to scale and shift: those that fit best.
    slope, shift = np.polyfit(x, y, 1)
    close = np.abs(slope * x + shift - y) <= CLOSE * y
    return float(np.corrcoef(x, y)[0, 1]), float(close.mean()), float(both.sum() / max((true > 0).sum(), 1))


def _depth_figures(taken: list[tuple[float, float, float]]) -> Figure:
    correlation, close, covered = np.mean(taken, axis=0)
    return {"correlation": float(correlation), "within 10 %": float(close), "covered": float(covered)}


def _overlap(row: Row, facts: Mapping[str, Any]) -> float | None:
    """Intersection over union of all that is segmented with the true mask."""
    label, text = row.get("segmentation.mask"), facts.get("mask")
    if label is None or not isinstance(text, str):
        return None
    try:
        true = decode_gray(base64.b64decode(text, validate=True)) >= MASK
    except (binascii.Error, ValueError, OSError) as error:
        raise InputError(f"picture {row['images.id']}: mask in images.metadata is no PNG in base64 ({error})") from None
    labeled = decode_gray(label) > 0
    if true.shape != labeled.shape:
        raise InputError(f"picture {row['images.id']}: mask in images.metadata is of another size than the picture")
    return float((true & labeled).sum() / max((true | labeled).sum(), 1))


def _mean_overlap(taken: list[float]) -> Figure:
    return {"IoU": float(np.mean(taken)), "IoU, median": float(np.median(taken))}


def _copies(row: Row, facts: Mapping[str, Any]) -> tuple[str, str] | None:
    group, same = row.get("duplicates.group"), facts.get("same")
    return None if group is None or not same else (str(group), str(same))


def _pair_figures(taken: list[tuple[str, str]]) -> Figure:
    """Precision and recall of pairs of rows: how many found pairs are copies, and how many copies were found."""
    predicted, true = (np.unique([pair[side] for pair in taken], return_inverse=True)[1] for side in (0, 1))
    both = np.unique(predicted.astype(np.int64) * (true.max() + 1) + true, return_counts=True)[1]
    right, of_predicted, of_true = (_pairs(counts) for counts in (both, np.bincount(predicted), np.bincount(true)))
    return {"precision": right / of_predicted if of_predicted else 1.0, "recall": right / of_true if of_true else 1.0}


def _pairs(counts: NDArray[np.int64]) -> float:
    return float((counts * (counts - 1) // 2).sum())


def _face(row: Row, facts: Mapping[str, Any]) -> tuple[str, list[float]] | None:
    """(person, embedding) of a picture with one face found."""
    faces, person = row.get("faces.embeddings"), facts.get("person")
    return None if not person or not faces or len(faces) != 1 or not faces[0] else (str(person), faces[0])


def _face_figures(taken: list[tuple[str, list[float]]]) -> Figure:
    people = np.array([person for person, _ in taken])
    vectors = np.array([vector for _, vector in taken], np.float64)
    same = near_pairs = same_and_near = apart = 0
    for row in range(1, len(taken)):
        near = np.linalg.norm(vectors[:row] - vectors[row], axis=1) < SAME_PERSON
        one = people[:row] == people[row]
        same, near_pairs = same + int(one.sum()), near_pairs + int(near.sum())
        same_and_near, apart = same_and_near + int((one & near).sum()), apart + int((~one & ~near).sum())
    other = len(taken) * (len(taken) - 1) // 2 - same
    return {"same, found": same_and_near / same if same else 1.0, "others, told apart": apart / other if other else 1.0}
