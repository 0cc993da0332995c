"""`onediffusion evaluate`: what a run has learned, in figures (labels it gives training pictures against the true ones)
and in samples of every task to look at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from labeling.dataset import CAMERAS, IMAGES, TEXT, Dataset, entry_columns, open_store
from model.conditions import CONDITION_READS, DEGRADATIONS, condition_picture, degrade
from model.constants import LATENT_FACTOR, SIZE_STEP
from model.inputs import InputError
from model.pictures import Picture, decode_picture, encode_png, fit_picture
from model.prompts import find_token
from pipelines.reports.run import EVALUATION
from pipelines.sampler import Call, bucket, load_pipeline, sample_all
from training.checkpoint import STATE, checkpoint_name, whole_checkpoints
from training.run import CONFIG

if TYPE_CHECKING:
    from torch import Tensor

    from model import OneDiffusionPipeline

LABELS = ("edges", "segmentation")
STEPS, GUIDANCE = 10, 1.0  # more steps draw no better at this size
MOST_EXAMPLES = 64


def evaluate(run: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Figures and samples of a run's newest checkpoint, kept in RUN/evaluation.json and RUN/samples/. The figures.

    They are of the first pictures and view sets that the run learns from. What was kept of this checkpoint stays.
    Raises InputError when there is no checkpoint, or no pictures with labels and prompts.
    """
    store = open_store(run)
    steps = whole_checkpoints(store)
    if not steps:
        raise InputError(f"{store.uri}: no checkpoint there; make one with `train`")
    newest, first = (f"{store.uri}/{checkpoint_name(step)}" for step in (steps[-1], steps[0]))
    tag = store.files(checkpoint_name(steps[-1]))[STATE].tag  # a run that was begun again has others of that name
    if store.exists(EVALUATION):
        kept = json.loads(store.read(EVALUATION))
        if kept.get("checkpoint") == newest and kept.get("tag") == tag:
            say("evaluation: figures and samples of this checkpoint are there already")
            return dict(kept["figures"])
    pictures, views, tasks = _learned_from(run)
    shown = examples(pictures, limit=MOST_EXAMPLES) if pictures else []
    for example in shown:
        example.prompts = {task: prompt for task, prompt in example.prompts.items() if task in tasks}
    pipeline = load_pipeline(newest)
    figures = label_correlations(pipeline, load_pipeline(first) if steps[0] == 0 else None, shown)
    records = draw_samples(pipeline, run, shown, views)
    if not records:
        raise InputError(f"{store.uri}: learns from no pictures with a prompt (`text`), so there is nothing to sample")
    store.put(EVALUATION, json.dumps({"checkpoint": newest, "tag": tag, "figures": figures}, indent=1).encode())
    return figures


def _learned_from(run: str) -> tuple[Dataset | None, Dataset | None, set[str]]:
    """The first dataset of pictures of a run's mixture, the first of view sets that serves `views`, and its tasks."""
    sources = yaml.safe_load(open_store(run).read(CONFIG))["mixture"].values()
    opened = [(Dataset.open(source["dataset"]), source["tasks"]) for source in sources]
    pictures = next((dataset for dataset, _ in opened if dataset.kind == "pictures"), None)
    views = next((dataset for dataset, tasks in opened if dataset.has_sets and "views" in tasks), None)
    return pictures, views, {task for _, tasks in opened for task in tasks}


@dataclass
class Example:
    """A row of a dataset of pictures, as the model is shown it: pictures by frame name, and its prompts by task."""

    id: str
    picture: Picture
    prompts: dict[str, str]
    labels: dict[str, Picture] = field(default_factory=dict)  # drawn, only those that are not empty


def examples(dataset: Dataset, limit: int | None = None) -> list[Example]:
    """The first rows of a dataset of pictures with their labels drawn; rows in error simply lack that label."""
    groups = [group for group in CONDITION_READS if dataset.declaration(group)]
    found: list[Example] = []
    for row in _joined(dataset, groups):
        picture = decode_picture(row["images.image"])
        prompts = {entry["task"]: entry["prompt"] for entry in row.get("text.entries") or ()}
        example = Example(row["images.id"], picture, prompts)
        for group in groups:
            if all(row.get(column) is not None for column in CONDITION_READS[group]):  # of a shard it may yet lack
                drawn = condition_picture(group, row, row["images.width"], row["images.height"])
                if drawn.any():
                    example.labels[group] = drawn
        found.append(example)
        if limit and len(found) == limit:
            break
    return found


def label_correlations(
    pipeline: OneDiffusionPipeline,
    first: OneDiffusionPipeline | None,
    shown: Sequence[Example],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> dict[str, Any]:
    """Correlation of labels sampled from pictures with the true ones, mean over pictures whose label is not empty.

    Beside the checkpoint's: that of a checkpoint of step 0 (`first`, where it was kept), and where there are other
    pictures, of the mean of their labels and of each of them, on the same pictures. Pearson's, over all pixels and
    colors at the model's size.
    """
    figures: dict[str, Any] = {}
    for group in LABELS:
        some = [example for example in shown if group in example.labels and group in example.prompts]
        if not some:
            continue
        sizes = [bucket(pipeline, example.picture) for example in some]
        truth = [fit_picture(e.labels[group], *size) for e, size in zip(some, sizes, strict=True)]
        drawn = {
            name: sample_labels(one, some, group, steps, guidance)
            for name, one in (("model", pipeline), ("step_0", first))
            if one
        }
        singly = {
            name: [correlation(a, b) for a, b in zip(labels, truth, strict=True)] for name, labels in drawn.items()
        }
        figure: dict[str, Any] = {name: float(np.mean(values)) for name, values in singly.items()}
        if len({example.id for example in some}) > 1:
            others = [
                [fit_picture(o.labels[group], *size) for o in some if o.id != example.id]
                for example, size in zip(some, sizes, strict=True)
            ]
            pairs = list(zip(others, truth, strict=True))
            figure["mean_label"] = float(np.mean([correlation(np.mean(o, 0), t) for o, t in pairs]))
            figure["other_pictures"] = float(np.mean([np.mean([correlation(x, t) for x in o]) for o, t in pairs]))
        figures[f"image_to_{group}_correlation"] = {**figure, "pictures": len(some), "per_picture": singly["model"]}
    return figures


def sample_labels(
    pipeline: OneDiffusionPipeline,
    some: Sequence[Example],
    group: str,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Picture]:
    """The label of each picture as the model predicts it, at the model's size."""
    calls = [
        Call(group, e.prompts[group], (0, 1), (e.picture,), *bucket(pipeline, e.picture), seed=index)
        for index, e in enumerate(some)
    ]
    return [pictures[0] for pictures, _ in sample_all(pipeline, calls, steps, guidance)]


def correlation(a: Any, b: Any) -> float:
    """Pearson's correlation of two arrays, 0 where one of them is constant."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def draw_samples(
    pipeline: OneDiffusionPipeline,
    run: str,
    shown: Sequence[Example],
    views: Dataset | None,
    each: int = 2,
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """Samples of every task in both directions, written below RUN/samples with samples.json to describe them."""
    store = open_store(f"{run}/samples")
    records: list[dict[str, Any]] = []
    calls: list[Call] = []
    plans: list[tuple[str, str, Example, Picture | None, Picture]] = []  # …, known frame, true frame
    for example in shown[:each]:
        if "text2image" in example.prompts:
            plans.append(("text2image", "to_image", example, None, example.picture))
            size = bucket(pipeline, example.picture)
            calls.append(Call("text2image", example.prompts["text2image"], (1,), (), *size))
    for task in (*CONDITION_READS, *DEGRADATIONS):
        suited = [e for e in shown if task in e.prompts and (task in DEGRADATIONS or task in e.labels)]
        for example in suited[:each]:
            size = bucket(pipeline, example.picture)
            picture = fit_picture(example.picture, *size)
            if task in DEGRADATIONS:
                condition = degrade(picture, task, 0)
            else:
                condition = fit_picture(example.labels[task], *size)
            for direction, mask, known, true in (
                ("to_image", (1, 0), condition, picture),
                ("from_image", (0, 1), picture, condition),
            ):
                plans.append((task, direction, example, known, true))
                calls.append(Call(task, example.prompts[task], mask, (known,), *size))
    for (task, direction, example, given, true), ((drawn,), _) in zip(
        plans, sample_all(pipeline, calls, steps, GUIDANCE), strict=True
    ):
        names = {}
        for key, shown_picture in (("output", drawn), ("input", given), ("label", true)):
            if shown_picture is not None:
                names[key] = f"{task}-{direction}-{example.id[:8]}-{key}.png"
                store.put(names[key], encode_png(shown_picture))
        records.append(
            {
                "task": task,
                "direction": direction,
                "id": example.id,
                "prompt": example.prompts[task],
                "inputs": [names["input"]] if "input" in names else [],
                "label": names.get("label"),
                "output": [names["output"]],
                "note": "",
            }
        )
    if views is not None:
        records += list(_view_samples(pipeline, run, views, steps))
    store.put("samples.json", json.dumps(records, indent=1, ensure_ascii=False).encode())
    return records


def _view_samples(pipeline: OneDiffusionPipeline, run: str, views: Dataset, steps: int) -> Iterator[dict[str, Any]]:
    """The first set, both ways: one view known and two wanted, then two views known and their cameras wanted."""
    import torch

    from model.cameras import camera_latents, recover_cameras

    store = open_store(f"{run}/samples")
    row = next(iter(_joined(views, [CAMERAS])))
    side = pipeline.config.default_size // SIZE_STEP * SIZE_STEP
    pictures = [fit_picture(decode_picture(raw), side, side) for raw in row["images.image"]]
    chosen = [0, 1, 2] if len(pictures) > 2 else list(range(len(pictures)))
    c2w = torch.tensor(row["cameras.c2w"]).reshape(-1, 4, 4)[chosen]
    intrinsics = torch.tensor(row["cameras.intrinsics"]).reshape(-1, 3, 3)[chosen]
    entries = (row.get("text.entries") or [[]])[0]
    prompt = next((entry["prompt"] for entry in entries if entry["task"] == "views"), find_token("views"))
    names = [f"views-{row['images.id'][:8]}-{index}.png" for index in chosen]
    for name, index in zip(names, chosen, strict=True):
        store.put(name, encode_png(pictures[index]))
    mask = tuple(value for view in range(len(chosen)) for value in (int(view > 0), 0))
    turned = Call("views", prompt, mask, (pictures[chosen[0]],), side, side, 0, c2w, intrinsics)
    known = tuple(pictures[index] for index in chosen)
    posed = Call("views", prompt, (0, 1) * len(chosen), known, side, side, 0, None, intrinsics)
    (drawn, _), (_, (found, _)) = sample_all(pipeline, [turned, posed], steps, GUIDANCE)
    true, _ = recover_cameras(camera_latents(c2w, intrinsics, side // LATENT_FACTOR, normalize=True), intrinsics)
    outputs = []
    for view, picture in enumerate(drawn, start=1):
        outputs.append(f"views-{row['images.id'][:8]}-{view}-output.png")
        store.put(outputs[-1], encode_png(picture))
    yield {
        "task": "views",
        "direction": "to_image",
        "id": row["images.id"],
        "prompt": prompt,
        "inputs": names[:1],
        "label": names[1] if len(names) > 1 else None,
        "output": outputs,
        "note": f"one view and {len(chosen)} cameras known",
    }
    yield {
        "task": "views",
        "direction": "from_image",
        "id": row["images.id"],
        "prompt": prompt,
        "inputs": names,
        "label": None,
        "output": [],
        "note": _camera_note(found, true),
    }


def _camera_note(found: Tensor, true: Tensor) -> str:
    """How far recovered rotations (V, 3, 3) are from the true ones."""
    cosine = ((found.transpose(1, 2) @ true).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosine.numpy(), -1, 1)))
    return "cameras recovered from the pictures; rotation off by " + ", ".join(f"{angle:.0f}°" for angle in angles)


def _joined(dataset: Dataset, groups: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Rows of images, of the groups named and of the prompts, as "group.column" → value."""
    columns = {**dict.fromkeys((IMAGES, *groups)), TEXT: entry_columns(dataset.has_sets, "task", "prompt")}
    return dataset.joined_rows(columns)
