"""Reading a report, and small datasets and runs to report on, with text in them that must not become markup."""

from __future__ import annotations

import base64
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from PIL import Image

from labeling.dataset import IMAGE_SCHEMA, REJECTED_SCHEMA, SCHEMA_VERSION, Dataset, open_store, recipe, write_shard
from model.pictures import encode_png
from pipelines.reports.page import split_target
from training.config import load_config

EVIL = '<script>alert("x")</script>'
HOSTILE_COLOR = "red;background:url(http://evil.example/x)"
SIDE = 64
SOURCE = {"labeler": "test", "version": 1, "parameters": {}, "weights": "", "reads": []}


class Page(HTMLParser):
    """The elements of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read_page(address: str) -> Page:
    store, name = split_target(address)
    html = store.read(name).decode()
    assert len(html) < 12_000_000
    page = Page(html)
    assert_self_contained(page)
    return page


def assert_self_contained(page: Page) -> None:
    assert not page.all("script")
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data"):
                assert (value or "").startswith(("data:", "#")), (tag, value)
            if name == "style":
                assert "url(" not in (value or "")
    for image in page.all("img"):
        assert image["alt"]


def decoded(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",", 1)[1]))).convert("RGB"))


def write_group(
    dataset: str, group: str, rows: list[dict[str, Any]], schema: pa.Schema, reads: tuple[str, ...]
) -> None:
    """A group of one shard, as a labeling job leaves it."""
    target = Dataset(dataset)
    declaration = {**SOURCE, "labeler": group, "reads": list(reads)}
    target.declare(group, declaration)
    read = {}
    for column in (*reads, *(["images.id"] if reads else [])):
        of, _, name = column.partition(".")
        read[column] = target.footer(of, "000000").columns[name]
    table = pa.Table.from_pylist([{**row, "model": "m 1", "version": 1} for row in rows], schema)
    write_shard(target.store, group, "000000", table, [len(rows)], recipe(declaration, read))


def labeled(**columns: pa.DataType) -> pa.Schema:
    common = {"model": pa.string(), "version": pa.int32(), "error": pa.string()}
    return pa.schema([("id", pa.string()), *columns.items(), *common.items()])


POINT = pa.struct([("x0", pa.float32()), ("y0", pa.float32()), ("x1", pa.float32()), ("y1", pa.float32())])
ENTRY = pa.struct([("task", pa.string()), ("prompt", pa.string()), ("embedding", pa.list_(pa.float16()))])


def describe(store_uri: str, kind: str, rows: int) -> None:
    description = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "shards": [{"name": "000000", "rows": rows, "source": 0}],
        "sources": [{"uri": f"/{EVIL}"}],
    }
    open_store(store_uri).put("dataset.json", json.dumps(description).encode())


def build_pictures(uri: str, count: int = 3, side: int = SIDE) -> str:
    """A dataset of noise with hostile texts; the last row is in error in every group."""
    random = np.random.default_rng(0)
    images = [
        {
            "id": f"{index:032x}",
            "image": encode_png(random.integers(0, 256, (side, side, 3), dtype=np.uint8)),
            "width": side,
            "height": side,
            "source": f"{EVIL.replace('/', '')}{index}.png",
            "author": EVIL,
            "licence": 'CC0" onload="alert(1)',
        }
        for index in range(count)
    ]
    write_group(uri, "images", images, IMAGE_SCHEMA, ())
    rejected = pa.Table.from_pylist([{"source": f"bad-{EVIL}.txt", "reason": f"no picture {EVIL}"}], REJECTED_SCHEMA)
    write_shard(open_store(uri), "rejected", "000000", rejected, [1], "r")
    box = {"x0": side / 4, "y0": side / 4, "x1": side, "y1": side}
    half = np.zeros((side, side), np.uint8)
    half[: side // 2] = 1
    ramp = np.linspace(1, 65535, side * side).astype(np.uint16).reshape(side, side)
    ramp[:, : side // 2] = 0
    values: dict[str, tuple[pa.Schema, dict[str, Any]]] = {
        "boxes": (
            labeled(
                boxes=pa.list_(POINT),
                scores=pa.list_(pa.float32()),
                names=pa.list_(pa.string()),
                colors=pa.list_(pa.string()),
            ),
            {"boxes": [box], "scores": [0.5], "names": [EVIL], "colors": [HOSTILE_COLOR]},
        ),
        "segmentation": (
            labeled(mask=pa.binary(), names=pa.list_(pa.string()), colors=pa.list_(pa.string())),
            {"mask": encode_png(half), "names": [EVIL], "colors": ["#00FF00"]},
        ),
        "edges": (labeled(edges=pa.binary()), {"edges": encode_png(half * np.uint8(255))}),
        "depth": (
            labeled(depth=pa.binary(), near=pa.float32(), far=pa.float32(), method=pa.string()),
            {"depth": encode_png(ramp), "near": 0.5, "far": 0.125, "method": "stereo"},
        ),
        "caption": (labeled(caption=pa.string()), {"caption": f"A caption {EVIL}"}),
        "brightness": (labeled(value=pa.float32()), {"value": 12.5}),
    }
    for group, (schema, row) in values.items():
        rows = [{"id": image["id"], **row} for image in images[:-1]]
        rows.append({"id": images[-1]["id"], "error": f"broken {EVIL}"})
        write_group(uri, group, rows, schema, ("images.image",))
    entries = [{"task": "", "prompt": "", "embedding": []}, {"task": "edges", "prompt": EVIL, "embedding": [1.0]}]
    texts = [{"id": image["id"], "entries": entries} for image in images]
    write_group(uri, "text", texts, labeled(entries=pa.list_(ENTRY)), ("caption.caption",))
    describe(uri, "pictures", count)
    return uri


def build_sets(uri: str) -> str:
    """A dataset of one set of three views, with cameras on a circle and depth."""
    lists = {field.name: pa.list_(field.type) for field in IMAGE_SCHEMA if field.name != "id"}
    picture = encode_png(np.full((SIDE, SIDE, 3), 90, np.uint8))
    image = {"image": picture, "width": SIDE, "height": SIDE, "source": "still.glb/0"}
    one = {"id": "s", **{name: [image.get(name)] * 3 for name in lists}}
    write_group(uri, "images", [one], pa.schema([("id", pa.string()), *lists.items()]), ())
    poses = []
    for angle in (0.0, 2.0, 4.0):
        pose = np.eye(4)
        pose[:3, 2] = pose[:3, 3] = [2 * np.cos(angle), 2 * np.sin(angle), 0]  # looks along −z, at the origin
        poses.append(pose.ravel().tolist())
    cameras = {"c2w": poses, "intrinsics": [[1.4, 0, 0.5, 0, 1.4, 0.5, 0, 0, 1]] * 3}
    floats = pa.list_(pa.list_(pa.float32()))
    write_group(uri, "cameras", [{"id": "s", **cameras}], labeled(c2w=floats, intrinsics=floats), ())
    depth = encode_png(np.full((SIDE, SIDE), 40_000, np.uint16))
    row = {"id": "s", "depth": [depth] * 3, "near": [2.0] * 3, "far": [1.0] * 3, "method": ["given"] * 3}
    schema = labeled(
        depth=pa.list_(pa.binary()),
        near=pa.list_(pa.float32()),
        far=pa.list_(pa.float32()),
        method=pa.list_(pa.string()),
    )
    write_group(uri, "depth", [row], schema, ("images.image",))
    describe(uri, "sets", 1)
    return uri


def build_run(run: Path, datasets: dict[str, str]) -> None:
    """What a finished run leaves, as training, sampling and evaluation write it."""
    mixture = {
        "pictures": {"dataset": datasets["pictures"], "tasks": ["edges", "text2image"]},
        "views": {"dataset": datasets["views"], "tasks": ["views"]},
    }
    config = load_config("debug", {"mixture": mixture}).model_dump(mode="json")
    (run / "samples").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {
            "step": step,
            "loss": 2 / step,
            "losses": {"edges": 3 / step, **({"views": 1.0} if step % 20 == 0 else {})},
            "tokens_per_second": 1500 + step,
            "learning_rate": 1e-3,
            "gradient_norm": float("nan") if step == 30 else 1.0,
            "wait_share": 0.25,
            "level_losses": {"0.0-0.2": 1 / step, "0.8-1.0": 4 / step},
            **({"validation_losses": {"edges": 5 / step}, "memory_gb": 1.5} if step % 50 == 0 else {}),
            "seconds": step / 10 if step <= 50 else (step - 50) / 10,  # resumed at step 50
        }
        for step in range(10, 101, 10)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 110, "lo')
    for step in (0, 100):
        (run / f"checkpoints/step-{step:06d}").mkdir(parents=True)
        (run / f"checkpoints/step-{step:06d}/state.json").write_text("{}")
    for name, level in (("in", 10), ("label", 200), ("out", 120)):
        (run / f"samples/{name}.png").write_bytes(encode_png(np.full((32, 48, 3), level, np.uint8)))
    (run / "secret.png").write_bytes(encode_png(np.full((32, 48, 3), 255, np.uint8)))
    common = {"id": "abcdef", "prompt": EVIL, "inputs": ["in.png"], "label": "label.png", "output": ["out.png"]}
    samples = [
        {**common, "task": "edges", "direction": "to_image", "note": ""},
        {**common, "task": "edges", "direction": "from_image", "note": EVIL},
        {**common, "task": "views", "direction": "from_image", "label": None, "output": ["../secret.png"], "note": ""},
    ]
    (run / "samples/samples.json").write_text(json.dumps(samples))
    _build_watched(run)
    figure = {"step_0": 0.01, "mean_label": 0.3, "other_pictures": 0.1, "pictures": 3, "per_picture": [0.6, 0.7, 0.8]}
    figures = {
        "image_to_edges_correlation": {"model": 0.7, **figure},
        "image_to_segmentation_correlation": {"model": 0.2, **figure},
    }
    (run / "evaluation.json").write_text(json.dumps({"checkpoint": "c", "figures": figures}))
    timings = [{"step": "label", "seconds": 10.0, "pictures": 40}, {"step": "  edges", "seconds": 4.0, "pictures": 40}]
    (run / "metrics.json").write_text(json.dumps({"timings": timings}))


def _build_watched(run: Path) -> None:
    """Steps that were skipped, and the same row drawn at two checkpoints."""
    sample = {"index": 7, "task": "edges", "id": "abcdef", "dataset": EVIL, "shard": "000000", "row": 3, "loss": "nan"}
    skipped = {"step": 41, "reason": "the loss is not finite", "loss": "nan", "gradient_norm": "nan"}
    (run / "skipped.json").write_text(json.dumps([{**skipped, "samples": [sample]}]))
    drawn = {**sample, "views": [], "direction": "to_image", "prompt": EVIL, "inputs": ["given/in.png"]}
    (run / "samples" / "given").mkdir()
    (run / "samples/given/in.png").write_bytes(encode_png(np.full((40, 40, 3), 30, np.uint8)))
    for step in (50, 100):
        folder = run / f"samples/step-{step:06d}"
        folder.mkdir()
        (folder / "out.png").write_bytes(encode_png(np.full((40, 40, 3), step, np.uint8)))
        records = [{**drawn, "output": ["out.png"], "truth": ["../../../secret.png"]}]
        (folder / "samples.json").write_text(json.dumps(records))
