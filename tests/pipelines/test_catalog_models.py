"""Models of the catalog from the command line, with their networks on a logical GPU: the labels of rows in batches are
those of rows alone.

The suite takes three of them, one after the other in one job; `MODELS=all` every class of model (`make test-models`).
That batches which are joined on a device give what single rows give, for each of these classes, is shown in
tests/labeling/labelers/test_networks.py.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import onediffusion
from logical_nodes import actors_on, joined_node
from tiny_models import save_blip, save_depth_anything, save_vae
from tiny_networks import (
    save_classifier,
    save_clip,
    save_dinov2,
    save_dpt,
    save_eomt,
    save_glpn,
    save_grounding_dino,
    save_llava,
    save_owlv2,
    save_sam2,
    save_sam3,
    save_segformer,
    save_siglip,
    save_vision_encoder_decoder,
    save_vitpose,
    save_yolos,
)

from labeling.dataset import Dataset
from pipelines.demo_data.pictures import PHOTOGRAPHS
from pipelines.ingest import ingest

pytestmark = pytest.mark.slow

NAMES, FP32 = "names=[cat, wine glass]", "dtype=fp32"
# Group → how the network of its model is built, and settings besides.
MODELS: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    "boxes": (save_grounding_dino, [NAMES, "threshold=0", "most=3"]),
    "segmentation": (save_sam2, ["kind=boxes"]),
    "pose": (save_vitpose, ["person=[cat, wine glass]"]),
    "boxes-owlv2": (save_owlv2, [NAMES, "threshold=0", "most=3"]),
    "boxes-yolos": (save_yolos, ["threshold=0"]),
    "segmentation-words": (save_sam3, ["kind=words", NAMES, "threshold=0"]),
    "segmentation-eomt": (save_eomt, ["threshold=0"]),
    "segmentation-segformer": (save_segformer, []),
    "caption": (save_llava, ["tokens=6", FP32, "temperature=0.7"]),
    "caption-blip": (save_blip, ["tokens=6"]),
    "caption-ved": (save_vision_encoder_decoder, ["tokens=6"]),
    "objects": (save_llava, ["tokens=3", FP32]),
    "depth": (save_depth_anything, []),
    "depth-dpt": (save_dpt, []),
    "depth-glpn": (save_glpn, []),
    "embedding": (save_clip, []),
    "embedding-siglip": (save_siglip, []),
    "embedding-dinov2": (save_dinov2, []),
    "quality": (partial(save_classifier, classes=["score"]), ["text=false", "nsfw=''"]),
    "quality-nsfw": (partial(save_classifier, classes=["normal", "nsfw"]), ["text=false"]),
    "quality-watermark": (partial(save_classifier, classes=["clean", "watermark"]), ["text=false", "nsfw=''"]),
    "faces": (save_yolos, ["threshold=0", "least_side=4", "most=3"]),
    "hed": (lambda _: None, []),  # whose weights a package holds
    "latents-96": (save_vae, []),
}
# That names the network; of others it is `model`.
PARAMETER = {
    "quality": "aesthetic", "quality-nsfw": "nsfw", "quality-watermark": "watermark", "latents-96": "codec", "hed": "",
}  # fmt: skip
IN_THE_SUITE = 3
JOB = 5  # networks of a job, which has a process for each


def jobs() -> Iterator[Any]:
    """The groups of each job; the first has what others read."""
    groups = list(MODELS) if os.environ.get("MODELS") == "all" else list(MODELS)[:IN_THE_SUITE]
    first, rest = groups[:IN_THE_SUITE], groups[IN_THE_SUITE:]
    for part in [first, *(rest[start : start + JOB] for start in range(0, len(rest), JOB))]:
        yield pytest.param(part, id=" ".join(part))


@pytest.fixture(scope="module")
def gpu(ray_cluster: None) -> Iterator[str]:
    """A node that says it has a GPU."""
    with joined_node(cpus=1, gpus=1) as node:
        yield node


@pytest.fixture(scope="module")
def labeled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of the demo as a dataset, in shards of three rows."""
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "pictures").mkdir()
    for name in ("dog.jpg", "car.jpg", "cat_on_floor.jpg", "tesla_portrait.jpg"):
        shutil.copy(PHOTOGRAPHS / name, folder / "pictures" / name)
    ingest(str(folder / "pictures"), str(folder / "dataset"), shard_rows=3)
    return folder / "dataset"


@pytest.mark.parametrize("groups", jobs())
def test_model_labels_the_same_in_batches_on_a_gpu_and_alone(
    groups: list[str], gpu: str, shared_ray: None, labeled: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    changed = []
    for group in groups:
        build, settings = MODELS[group]
        (tmp_path / group).mkdir()
        build(tmp_path / group)
        parameter = PARAMETER.get(group, "model")
        named = [f"{parameter}={tmp_path / group}"] if parameter else []
        changed += [f"{group}.{one}" for one in [*named, *settings]]
    files = {}
    for where, resources in (("gpu", ("gpus=0.1", "batch=4")), ("alone", ("gpus=0", "batch=1"))):
        shutil.copytree(labeled, tmp_path / where)
        more = [word for one in changed for word in ("--set", one)]
        more += [word for group in groups for own in resources for word in ("--resources", f"{group}.{own}")]
        done = onediffusion("label", str(tmp_path / where), *groups, *more)
        assert done.returncode == 0, done.stdout + done.stderr
        dataset = Dataset.open(tmp_path / where)
        for group in groups:
            rows = list(dataset.rows(group))
            assert len(rows) == 4 and not any(row["error"] for row in rows), (group, [row["error"] for row in rows])
        files[where] = {
            f"{path.parent.name}/{path.name}": path.read_bytes() for path in (tmp_path / where).glob("*/0*.parquet")
        }
    assert "NetworkProcess" in actors_on(gpu)
    assert files["gpu"] == files["alone"]
