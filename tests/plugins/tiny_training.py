"""A small dataset of pictures and one of view sets, written as the labelers write them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from labeling.dataset import Dataset, write_shard

WIDTH = 32  # of the prompts' embeddings
SIZE = 64  # latents are taken around SIZE × SIZE pixels
TASKS = ("text2image", "edges", "segmentation", "deblurring", "inpainting", "views")
_TEXT = pa.list_(
    pa.struct(
        [
            ("task", pa.string()),
            ("prompt", pa.string()),
            ("tokens", pa.int32()),
            ("embedding", pa.list_(pa.float16())),
        ]
    )
)
_LATENT = {"latent": pa.list_(pa.float16()), "latent_height": pa.int32(), "latent_width": pa.int32()}


def _rows(shards: list[list[int]]) -> int:
    return sum(map(sum, shards))


def _write(
    uri: Path, group: str, shards: list[list[int]], types: dict[str, pa.DataType], rows: list[dict[str, Any]]
) -> None:
    """Write rows as shards; `shards` lists the rows of each row group of each shard."""
    dataset = Dataset(uri)
    parameters = {"codec": "dct"} if group.startswith("latents") else {"encoder": "minilm"} if group == "text" else {}
    declaration = {"labeler": group, "version": 1, "parameters": parameters, "weights": parameters.get("codec", "")}
    dataset.declare(group, declaration)
    schema = pa.schema([("id", pa.string()), *types.items(), ("error", pa.string())])
    start = 0
    for number, row_groups in enumerate(shards):
        shard_rows = rows[start : start + sum(row_groups)]
        table = pa.table(
            {
                field.name: pa.array(
                    [str(start + i) if field.name == "id" else row.get(field.name) for i, row in enumerate(shard_rows)],
                    field.type,
                )
                for field in schema
            }
        )
        write_shard(dataset.store, group, f"{number:06d}", table, row_groups, "recipe")
        start += sum(row_groups)


def _describe(uri: Path, kind: str, shards: list[list[int]]) -> None:
    description = {
        "schema": 1,
        "kind": kind,
        "shards": [{"name": f"{number:06d}", "rows": sum(groups)} for number, groups in enumerate(shards)],
        "sources": [],
    }
    Dataset(uri).store.put("dataset.json", json.dumps(description).encode())


def _entries(random: np.random.Generator, tasks: tuple[str, ...] = ("", *TASKS)) -> list[dict[str, Any]]:
    entries = []
    for task in tasks:
        tokens = int(random.integers(2, 7))
        values = random.normal(size=tokens * WIDTH).astype(np.float16)
        entries.append({"task": task, "prompt": task, "tokens": tokens, "embedding": values})
    return entries


@pytest.fixture
def write_group() -> Callable[..., None]:
    return _write


@pytest.fixture
def pictures_dataset(tmp_path: Path, pictures_original: Path) -> Path:
    """A copy of the pictures that a test may change."""
    return Path(shutil.copytree(pictures_original, tmp_path / "pictures-dataset"))


@pytest.fixture(scope="session")
def pictures_original(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Path:
    """The dataset of `write_pictures`."""
    return write_pictures(tmp_path_factory.mktemp("training") / "pictures", photographs)


@pytest.fixture(scope="session")
def views_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `write_views`."""
    return write_views(tmp_path_factory.mktemp("training") / "views")


def write_pictures(uri: Path, photographs: Path) -> Path:
    """Twelve rows in two shards of two row groups; row 1 has no edges, row 2 an empty segmentation, row 3 no prompt."""
    import torch

    from model.codecs import load_codec
    from model.pictures import aspect_bucket, decode_picture, fit_picture

    shards = [[4, 4], [2, 2]]
    random = np.random.default_rng(0)
    codec = load_codec("dct")
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"]
    images, latents, edges, masks, mask_labels, texts = [], [], [], [], [], []
    for row in range(_rows(shards)):
        data = (photographs / names[row % len(names)]).read_bytes()
        picture = decode_picture(data)
        width, height = aspect_bucket(picture.shape[1], picture.shape[0], SIZE)
        pixels = torch.from_numpy(fit_picture(picture, width, height)).permute(2, 0, 1)[None].float() / 127.5 - 1
        latent = codec.encode(pixels)[0].numpy().astype(np.float16)
        stored = {"latent": latent.ravel(), "latent_height": height // 8, "latent_width": width // 8}
        images.append({"image": data, "width": picture.shape[1], "height": picture.shape[0]})
        latents.append(stored)
        edges.append({"error": "no edges"} if row == 1 else {**stored, "latent": -latent.ravel()})
        masks.append({**stored, "latent": latent[::-1].ravel()})
        mask_labels.append({"names": [] if row == 2 else ["cat"]})
        texts.append({"entries": _entries(random, ("",) if row == 3 else ("", *TASKS))})
    image = {"image": pa.binary(), "width": pa.int32(), "height": pa.int32()}
    _write(uri, "images", shards, image, images)
    _write(uri, f"latents-{SIZE}", shards, _LATENT, latents)
    _write(uri, f"latents-{SIZE}-edges", shards, _LATENT, edges)
    _write(uri, f"latents-{SIZE}-segmentation", shards, _LATENT, masks)
    _write(uri, "segmentation", shards, {"names": pa.list_(pa.string())}, mask_labels)
    _write(uri, "text", shards, {"entries": _TEXT}, texts)
    _describe(uri, "pictures", shards)
    return uri


def write_views(uri: Path, latent: tuple[int, int] = (SIZE // 8, SIZE // 8), pictures: Any = None) -> Path:
    """Three sets of 3, 4 and 5 views with cameras around the origin.

    latent: height and width; pictures: width and height that cameras are of, where sets say it.
    """
    import torch

    from model.cameras import orbit_cameras

    shards = [[2, 1]]
    random = np.random.default_rng(1)
    h, w = latent
    latents, cameras, texts = [], [], []
    for count in (3, 4, 5):
        c2w = orbit_cameras(30.0 * torch.arange(count), torch.full((count,), 10.0), torch.full((count,), 1.5))
        latents.append(
            {
                "latent": [random.normal(size=16 * h * w).astype(np.float16) for _ in range(count)],
                "latent_height": [h] * count,
                "latent_width": [w] * count,
            }
        )
        intrinsics = [1.4, 0, 0.5, 0, 1.4, 0.5, 0, 0, 1.0]
        cameras.append({"c2w": c2w.reshape(count, 16).tolist(), "intrinsics": [intrinsics] * count})
        if pictures:
            cameras[-1] |= {"width": [pictures[0]] * count, "height": [pictures[1]] * count}
        texts.append({"entries": [_entries(random) for _ in range(count)]})
    lists = {name: pa.list_(kind) for name, kind in _LATENT.items()}
    floats = pa.list_(pa.list_(pa.float32()))
    _write(uri, f"latents-{SIZE}", shards, lists, latents)
    sizes = {"width": pa.list_(pa.int32()), "height": pa.list_(pa.int32())} if pictures else {}
    _write(uri, "cameras", shards, {"c2w": floats, "intrinsics": floats, **sizes}, cameras)
    _write(uri, "text", shards, {"entries": pa.list_(_TEXT)}, texts)
    _describe(uri, "sets", shards)
    return uri


def _small_config(pictures: Path) -> dict[str, Any]:
    return {
        "size": SIZE,
        "steps": 4,
        "batch": 6,
        "log_every": 1,
        "mixture": {
            "pictures": {
                "dataset": str(pictures),
                "tasks": ["text2image", "edges", "segmentation", "deblurring"],
            },
            "views": None,
        },
        "model": {"hidden_size": 48, "depth": 2, "num_heads": 4, "num_kv_heads": 2, "caption_channels": WIDTH},
        "optimizer": {"warmup": 2, "schedule": "constant"},
        "workers": {"count": 1, "threads": 1},
        "checkpoints": {"every": 2, "keep": 2, "first": False},
    }


@pytest.fixture
def small_config(pictures_dataset: Path) -> dict[str, Any]:
    """A run of a few seconds on the pictures, as overrides of the debug preset."""
    return _small_config(pictures_dataset)


@pytest.fixture(scope="session")
def shared_config(pictures_original: Path, views_dataset: Path) -> dict[str, Any]:
    """A run on both datasets, which tests must not change; 30 steps, so that there is time to kill it."""
    config = _small_config(pictures_original)
    config["mixture"]["views"] = {"dataset": str(views_dataset), "tasks": ["views"]}
    return {**config, "steps": 30, "checkpoints": {"every": 2, "keep": 14, "first": True}}


def tensorboard_steps(run: Path, name: str) -> list[int]:
    """The steps of a value in a run's TensorBoard files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(name)]
