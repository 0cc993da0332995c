"""`onediffusion evaluate`: figures and samples of a run's newest checkpoint.

The figures compare labels that the model predicts for training images with the true ones; the samples, of every task in
both directions, are for people to look at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from labeling.dataset import CAMERAS, Dataset, open_store
from model.conditions import CONDITION_READS, DEGRADATIONS, degrade, directions_of
from model.constants import LATENT_FACTOR
from model.inputs import InputError
from model.pictures import Picture, decode_picture, encode_png, fit_picture
from model.prompts import build_prompt
from pipelines.reports.figures import EVALUATION
from pipelines.reports.gallery import view_of_set
from pipelines.run_examples import Example, prompts_of, read_rows, read_training_data
from pipelines.sampler import Call, bucket, load_pipeline, sample_all
from pipelines.set_samples import draw_references
from training.checkpoint import STATE, checkpoint_name, whole_checkpoints

if TYPE_CHECKING:
    from torch import Tensor

    from model import OneDiffusionPipeline

MEASURED_LABELS = ("edges", "segmentation")
STEPS, GUIDANCE = 10, 1.0  # more steps gave no better figures at the demo's size
MAX_EXAMPLES = 64


def evaluate(run: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure and sample a run's newest checkpoint into RUN/evaluation.json and RUN/samples/; return the figures.

    They are of the first images of each source and of the first view sets that the run learns from. A checkpoint is
    evaluated once: later calls return the stored figures. Raises InputError when there is no checkpoint, or no image
    with labels and prompts.
    """
    store = open_store(run)
    steps = whole_checkpoints(store)
    if not steps:
        raise InputError(f"{store.uri}: no checkpoint there; make one with `train`")
    newest, first = (f"{store.uri}/{checkpoint_name(step)}" for step in (steps[-1], steps[0]))
    # The tag tells apart checkpoints of the same name, as of a run that was deleted and started again.
    tag = store.files(checkpoint_name(steps[-1]))[STATE].tag
    if store.exists(EVALUATION):
        stored = json.loads(store.read(EVALUATION))
        if stored.get("checkpoint") == newest and stored.get("tag") == tag:
            say("evaluation: figures and samples of this checkpoint are there already")
            return dict(stored["figures"])
    data = read_training_data(run)
    examples = data.examples(MAX_EXAMPLES)
    pipeline = load_pipeline(newest)
    figures = label_correlations(pipeline, load_pipeline(first) if steps[0] == 0 else None, examples)
    records = draw_samples(pipeline, run, examples, data.views, data.references)
    if not records:
        raise InputError(
            f"{store.uri}: learns from no pictures with a prompt or caption, so there is nothing to sample"
        )
    store.put(EVALUATION, json.dumps({"checkpoint": newest, "tag": tag, "figures": figures}, indent=1).encode())
    return figures


def label_correlations(
    pipeline: OneDiffusionPipeline,
    first: OneDiffusionPipeline | None,
    examples: Sequence[Example],
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> dict[str, Any]:
    """Correlation of labels sampled from images with the true ones, mean over the images whose label is not empty.

    Pearson's, over all pixels and colors at the model's size. Beside the checkpoint's ("model"): that of a checkpoint
    of step 0 ("step_0", where `first` is given), and where there are other images, that of the mean of their labels
    ("mean_label") and the mean of those of each of their labels ("other_pictures").
    """
    figures: dict[str, Any] = {}
    for group in MEASURED_LABELS:
        labeled = [example for example in examples if group in example.labels and group in example.prompts]
        if not labeled:
            continue
        sizes = [bucket(pipeline, example.picture) for example in labeled]
        truth = [fit_picture(e.labels[group], *size) for e, size in zip(labeled, sizes, strict=True)]
        correlations = {
            name: [
                correlation(sampled, true)
                for sampled, true in zip(sample_labels(of, labeled, group, steps, guidance), truth, strict=True)
            ]
            for name, of in (("model", pipeline), ("step_0", first))
            if of
        }
        figure: dict[str, Any] = {name: float(np.mean(values)) for name, values in correlations.items()}
        if len({example.id for example in labeled}) > 1:
            others = [
                [fit_picture(other.labels[group], *size) for other in labeled if other.id != example.id]
                for example, size in zip(labeled, sizes, strict=True)
            ]
            pairs = list(zip(others, truth, strict=True))
            figure["mean_label"] = float(np.mean([correlation(np.mean(o, 0), t) for o, t in pairs]))
            figure["other_pictures"] = float(np.mean([np.mean([correlation(x, t) for x in o]) for o, t in pairs]))
        figure |= {"pictures": len(labeled), "per_picture": correlations["model"]}
        figures[f"image_to_{group}_correlation"] = figure
    return figures


def sample_labels(
    pipeline: OneDiffusionPipeline,
    examples: Sequence[Example],
    group: str,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[Picture]:
    """The label of each image as the model predicts it, at the model's size."""
    calls = [
        Call(group, e.prompts[group], (0, 1), (e.picture,), *bucket(pipeline, e.picture), seed=index)
        for index, e in enumerate(examples)
    ]
    return [pictures[0] for pictures, _ in sample_all(pipeline, calls, steps, guidance)]


def correlation(a: Any, b: Any) -> float:
    """Pearson's correlation of two arrays, 0 where one of them is constant."""
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


@dataclass(frozen=True)
class _PlannedSample:
    """A sample to draw, what it is made from (None: from the prompt alone), and what it should be."""

    direction: str
    example: Example
    known: Picture | None
    truth: Picture
    call: Call


def draw_samples(
    pipeline: OneDiffusionPipeline,
    run: str,
    examples: Sequence[Example],
    views: Dataset | None,
    references: Mapping[str, Dataset] | None = None,
    per_task: int = 2,
    steps: int = STEPS,
) -> list[dict[str, Any]]:
    """Samples of every task in both directions, written below RUN/samples; samples.json describes them."""
    store = open_store(f"{run}/samples")
    records: list[dict[str, Any]] = []
    planned = list(_plan_samples(pipeline, examples, per_task))
    outputs = sample_all(pipeline, [sample.call for sample in planned], steps, GUIDANCE)
    for sample, ((drawn,), _) in zip(planned, outputs, strict=True):
        task, identity = sample.call.task, sample.example.id
        names = {}
        for role, picture in (("output", drawn), ("input", sample.known), ("label", sample.truth)):
            if picture is not None:
                names[role] = f"{task}-{sample.direction}-{identity[:8]}-{role}.png"
                store.put(names[role], encode_png(picture))
        records.append(
            {
                "task": task,
                "direction": sample.direction,
                "id": identity,
                "prompt": sample.call.prompt,
                "inputs": [names["input"]] if "input" in names else [],
                "label": names.get("label"),
                "output": [names["output"]],
                "note": "",
            }
        )
    if views is not None:
        records += _draw_views(pipeline, run, views, steps)
    records += draw_references(pipeline, store, references or {}, steps, GUIDANCE)
    store.put("samples.json", json.dumps(records, indent=1, ensure_ascii=False).encode())
    return records


def _plan_samples(
    pipeline: OneDiffusionPipeline, examples: Sequence[Example], per_task: int
) -> Iterator[_PlannedSample]:
    """Samples of the tasks on single images."""
    for example in examples[:per_task]:
        if "text2image" in example.prompts:
            call = Call("text2image", example.prompts["text2image"], (1,), (), *bucket(pipeline, example.picture))
            yield _PlannedSample("to_image", example, None, example.picture, call)
    for task in (*CONDITION_READS, *DEGRADATIONS):
        suitable = [e for e in examples if task in e.prompts and (task in DEGRADATIONS or task in e.labels)]
        for example in suitable[:per_task]:
            size = bucket(pipeline, example.picture)
            picture = fit_picture(example.picture, *size)
            if task in DEGRADATIONS:
                condition = degrade(picture, task, 0)
            else:
                condition = fit_picture(example.labels[task], *size)
            for direction, mask, known, truth in (
                ("to_image", (1, 0), condition, picture),
                ("from_image", (0, 1), picture, condition),
            ):
                if direction not in directions_of(task):
                    continue
                call = Call(task, example.prompts[task], mask, (known,), *size)
                yield _PlannedSample(direction, example, known, truth, call)


def _draw_views(pipeline: OneDiffusionPipeline, run: str, views: Dataset, steps: int) -> list[dict[str, Any]]:
    """Samples of the first set: other views from one view and all cameras, then the cameras from all views."""
    import torch

    from model.cameras import camera_latents, fitted_intrinsics, recover_cameras

    store = open_store(f"{run}/samples")
    row = next(iter(read_rows(views, [CAMERAS])))
    pictures = [decode_picture(raw) for raw in row["images.image"]]
    width, height = bucket(pipeline, pictures[0])
    pictures = [fit_picture(picture, width, height) for picture in pictures]
    chosen = [0, 1, 2] if len(pictures) > 2 else list(range(len(pictures)))
    c2w = torch.tensor(row["cameras.c2w"]).reshape(-1, 4, 4)[chosen]
    intrinsics = torch.tensor(row["cameras.intrinsics"]).reshape(-1, 3, 3)[chosen]
    if "cameras.width" in row:
        sizes = torch.tensor([row["cameras.width"], row["cameras.height"]]).T[chosen]
        intrinsics = fitted_intrinsics(intrinsics, sizes, (width, height))
    prompt = prompts_of(view_of_set(row, 0)).get("views") or build_prompt("views", "")
    identity = row["images.id"]
    names = [f"views-{identity[:8]}-{index}.png" for index in chosen]
    for name, index in zip(names, chosen, strict=True):
        store.put(name, encode_png(pictures[index]))
    mask = tuple(value for view in range(len(chosen)) for value in (int(view > 0), 0))
    to_images = Call("views", prompt, mask, (pictures[chosen[0]],), width, height, 0, c2w, intrinsics)
    known = tuple(pictures[index] for index in chosen)
    to_cameras = Call("views", prompt, (0, 1) * len(chosen), known, width, height, 0, None, intrinsics)
    (drawn, _), (_, (rotations, _)) = sample_all(pipeline, [to_images, to_cameras], steps, GUIDANCE)
    true_rotations, _ = recover_cameras(
        camera_latents(c2w, intrinsics, (height // LATENT_FACTOR, width // LATENT_FACTOR), normalize=True), intrinsics
    )
    outputs = []
    for view, picture in enumerate(drawn, start=1):
        outputs.append(f"views-{identity[:8]}-{view}-output.png")
        store.put(outputs[-1], encode_png(picture))
    record = {"task": "views", "id": identity, "prompt": prompt}
    from_camera = {
        "direction": "to_image",
        "inputs": names[:1],
        "label": names[1] if len(names) > 1 else None,
        "output": outputs,
        "note": f"one view and {len(chosen)} cameras known",
    }
    from_views = {
        "direction": "from_image",
        "inputs": names,
        "label": None,
        "output": [],
        "note": _camera_note(rotations, true_rotations),
    }
    return [record | from_camera, record | from_views]


def _camera_note(rotations: Tensor, truth: Tensor) -> str:
    """How far recovered rotations (V, 3, 3) are from the true ones."""
    cosine = ((rotations.transpose(1, 2) @ truth).diagonal(dim1=1, dim2=2).sum(1) - 1) / 2
    angles = np.degrees(np.arccos(np.clip(cosine.numpy(), -1, 1)))
    return "cameras recovered from the pictures; rotation off by " + ", ".join(f"{angle:.0f}°" for angle in angles)
