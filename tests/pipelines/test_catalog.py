"""Labelers of the catalog from the command line, with tiny random models where they take one by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_server import chat_server, says
from commands import onediffusion
from tiny_networks import (
    save_classifier,
    save_clip,
    save_grounding_dino,
    save_llava,
    save_sam2,
    save_sam3,
    save_vitpose,
)

from labeling.dataset import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]
KEY = "sk-abcdefghijklmnop"


def label(dataset: Dataset, groups: str, *settings: str, **environment: str) -> str:
    """What the command prints; it succeeds."""
    changed = [word for setting in settings for word in ("--set", setting)]
    done = onediffusion("label", dataset.uri, *groups.split(), *changed, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_models_by_name_label_a_dataset(dataset: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    builds = {
        "vlm": save_llava, "dino": save_grounding_dino, "sam2": save_sam2, "sam3": save_sam3, "pose": save_vitpose,
        "clip": save_clip, "nsfw": lambda folder: save_classifier(folder, ["normal", "nsfw"]),
        "score": lambda folder: save_classifier(folder, ["score"]),
    }  # fmt: skip
    for name, build in builds.items():
        (tmp_path / name).mkdir()
        build(tmp_path / name)
    paths = {name: tmp_path / name for name in builds}
    label(
        dataset,
        "caption objects boxes segmentation segmentation-words pose embedding quality faces degraded-inpainting",
        f"caption.model={paths['vlm']}", "caption.tokens=12", "caption.temperature=0.7", "caption.dtype=fp32",
        f"objects.model={paths['vlm']}", "objects.tokens=3", "objects.dtype=fp32",
        f"boxes.model={paths['dino']}", "boxes.names_from=caption", "boxes.names=[cat, dog, sofa]",
        "boxes.threshold=0", "boxes.most=4",
        f"segmentation.model={paths['sam2']}", "segmentation.kind=boxes",
        f"segmentation-words.model={paths['sam3']}", "segmentation-words.kind=words", "segmentation-words.threshold=0",
        "segmentation-words.names=[cat, wine glass]",
        f"pose.model={paths['pose']}", "pose.person=[Cat, sofa, dog]",
        f"embedding.model={paths['clip']}", f"quality.aesthetic={paths['score']}", f"quality.nsfw={paths['nsfw']}",
    )  # fmt: skip
    for group in ("caption", "objects", "boxes", "segmentation", "segmentation-words", "pose", "embedding", "quality",
                  "faces", "degraded-inpainting"):  # fmt: skip
        rows = list(dataset.rows(group))
        assert len(rows) == 6 and not any(row["error"] for row in rows), (group, [row["error"] for row in rows])
    boxes, captions = list(dataset.rows("boxes")), list(dataset.rows("caption"))
    for found, said in zip(boxes, captions, strict=True):
        assert set(found["names"]) <= {word for word in ("cat", "dog", "sofa") if word in said["caption"].split()}
    assert any(found["names"] for found in boxes)
    for pose, found in zip(dataset.rows("pose"), boxes, strict=True):
        assert len(pose["keypoints"]) == len(found["names"])  # every box is a person by these names
    assert all(row["aesthetic"] is not None and 0 < row["nsfw"] < 1 for row in dataset.rows("quality"))
    assert str(tmp_path) not in json.dumps(next(iter(dataset.rows("segmentation-words")))["model"])


def test_endpoint_is_asked_once_for_each_row_of_a_finished_shard(dataset: Dataset, tmp_path: Path) -> None:
    with chat_server(lambda _body, number: says(f"caption {number}")) as server:
        settings = (f"caption.endpoint={server.address}", "caption.model=tiny", "caption.key=CAPTION_KEY")
        environment = {"CAPTION_KEY": KEY, "RAY_ADDRESS": ""}  # a Ray of its own, whose processes have the key
        output = label(dataset, "caption", *settings, **environment)
        assert len(server.requests) == 6
        output += label(dataset, "caption", **environment)
        assert "0 shards labeled" in output and len(server.requests) == 6
    rows = list(dataset.rows("caption"))
    assert {row["caption"] for row in rows} == {f"caption {number}" for number in range(1, 7)}
    assert {request["headers"]["Authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    kept = [path.read_bytes() for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
    assert not any(KEY.encode() in data for data in kept) and KEY not in output
