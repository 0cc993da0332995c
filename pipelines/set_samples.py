"""Samples of tasks that refer to pictures: another picture of a person or an item, and an edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from labeling.dataset import IMAGES, Dataset, Store
from model.pictures import decode_picture, encode_png, fit_picture
from model.prompts import EDITING, build_prompt, find_task
from pipelines.sampler import Call, bucket, sample_all

if TYPE_CHECKING:
    from model import OneDiffusionPipeline

CAPTION, SUBJECT = "caption", "subject"


def draw_references(
    pipeline: OneDiffusionPipeline, store: Store, datasets: Mapping[str, Dataset], steps: int, guidance: float
) -> list[dict[str, Any]]:
    """A sample of each task with references, from the first set of its dataset, written to `store`; their records.

    datasets: by task.
    """
    records = []
    for task, dataset in datasets.items():
        groups = [CAPTION, *([SUBJECT] if task == SUBJECT else [])]
        row = next((row for row in dataset.joined_rows(dict.fromkeys((IMAGES, *groups))) if _serves(row)), None)
        if row is None:
            continue
        image, references, prompt = _asked(task, row)
        pictures = [decode_picture(row["images.image"][index]) for index in (image, *references)]
        size = bucket(pipeline, pictures[0])
        truth, *known = (fit_picture(picture, *size) for picture in pictures)
        call = Call(task, prompt, (1,) + (0,) * len(known), tuple(known), *size)
        (((drawn, *_), _),) = sample_all(pipeline, [call], steps, guidance)
        start = f"{task}-{row['images.id'][:8]}"
        inputs = [f"{start}-{number}.png" for number in range(len(known))]
        for name, picture in zip(
            (*inputs, f"{start}-label.png", f"{start}-output.png"), (*known, truth, drawn), strict=True
        ):
            store.put(name, encode_png(picture))
        note = "the first picture is edited" if task == EDITING else "other pictures are known"
        records.append(
            {
                "task": task,
                "direction": "to_image",
                "id": row["images.id"],
                "prompt": prompt,
                "inputs": inputs,
                "label": f"{start}-label.png",
                "output": [f"{start}-output.png"],
                "note": note,
            }
        )
    return records


def _serves(row: Mapping[str, Any]) -> bool:
    captions = row.get("caption.caption") or []
    return bool(captions) and None not in captions and len(row["images.image"]) > 1


def _asked(task: str, row: Mapping[str, Any]) -> tuple[int, Sequence[int], str]:
    """Which picture of a set is drawn, which are known, and the prompt."""
    captions = row["caption.caption"]
    if task == EDITING:
        return 1, (0,), build_prompt(task, captions[1])
    references = range(1, min(len(captions), 1 + find_task(task).references))
    names = row["subject.item"][:1] if task == SUBJECT else []
    return 0, references, build_prompt(task, captions[0], names, (), [captions[index] for index in references])
