"""The views job: sets of pictures with cameras, from meshes (rendered here, with exact depth) or a transforms.json.

A row is a set: each column is a list with one entry a view. Cameras go to the group `cameras`, true inverse depth to
images.disparity, from which the depth labeler makes labels like any other.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.session import ray_session
from labeling.dataset import SCHEMA_VERSION, Dataset, ShardInfo, digest_json, lease, open_store, recipe, write_shard
from labeling.sources.ingest import IMAGES, ROW_GROUP_BYTES, ROW_GROUP_PIXELS, Rejected, normalize, picture_id
from labeling.sources.source import METADATA, Source
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError, require
from pipelines.progress import progress

VERSION = 1
SHARD_SETS = 64
MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
CAMERAS = pa.schema(
    [
        ("id", pa.string()),
        ("c2w", pa.list_(pa.list_(pa.float32()))),
        ("intrinsics", pa.list_(pa.list_(pa.float32()))),
        ("error", pa.string()),
    ]
)
SETS = pa.schema([f if f.name == "id" else pa.field(f.name, pa.list_(f.type)) for f in IMAGES])


@dataclass(frozen=True)
class ViewsResult:
    """Sets written by this run, and sets in the dataset."""

    added: int
    sets: int


def views(source_uri: str, dataset_uri: str, count: int = 8, size: int = 256, seed: int = 0) -> ViewsResult:
    """Make a dataset of view sets: one set for each mesh or transforms.json below the source.

    count, size: views of a mesh and their side in pixels; seed: of the cameras drawn around it. Sets written before
    are kept. Raises InputError when the source has neither, or the dataset holds pictures.
    """
    source = Source(source_uri)
    found = [item for item in source.items() if _is_set(item.name)]
    if not found:
        raise InputError(f"{source_uri}: no mesh ({', '.join(MESHES)}) and no transforms.json there")
    if any(not item.name.endswith("transforms.json") for item in found):
        require("trimesh", "embreex")  # here, and not in the middle of a job
    store = open_store(dataset_uri)
    if store.exists("dataset.json") and Dataset.open(dataset_uri).kind != "sets":
        raise InputError(f"{dataset_uri}: a dataset of pictures; view sets go into a dataset of their own")
    parameters = {"count": count, "size": size, "seed": seed}
    declaration = {"labeler": "views", "version": VERSION, "parameters": parameters, "weights": "", "reads": []}
    target = Dataset(dataset_uri)
    names = [item.name for item in found]
    parts = [names[start : start + SHARD_SETS] for start in range(0, len(names), SHARD_SETS)]
    shards, waiting = [], []
    with lease(store, ["images", "cameras"]):
        for group in ("images", "cameras"):
            target.declare(group, declaration)
        for index, part in enumerate(parts):
            shard = f"{index:06d}"
            digests = {name: _digest(source, name) for name in part}
            wanted = recipe(declaration, {"source": digest_json(digests)})
            shards.append(ShardInfo(shard, len(part)))
            present = store.exists(f"images/{shard}.parquet") and store.exists(f"cameras/{shard}.parquet")
            if not (present and target.footer("images", shard).recipe == wanted):
                waiting.append((shard, part, wanted))
        added = _run(source, target, waiting, parameters)
        description = {
            "schema": SCHEMA_VERSION,
            "kind": "sets",
            "shards": [asdict(shard) for shard in shards],
            "sources": [{"uri": source.uri if "://" in source.uri else open_store(source.uri).uri}],
        }
        store.put("dataset.json", json.dumps(description, indent=1).encode() + b"\n")
    return ViewsResult(added, len(names))


def _is_set(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() in MESHES or PurePosixPath(name).name == "transforms.json"


def _digest(source: Source, name: str) -> str:
    said = source.metadata().get(name, {})
    return hashlib.blake2b(source.store.read(name), digest_size=16).hexdigest() + digest_json(said)


def _run(
    source: Source, target: Dataset, waiting: Sequence[tuple[str, list[str], str]], parameters: dict[str, int]
) -> int:
    if not waiting:
        return 0

    def write(row: dict[str, Any]) -> dict[str, Any]:
        shard, part, wanted = waiting[row["id"]]
        sets = [_make_set(source, name, **parameters) for name in part]
        row_groups = _cut(sets)
        # The images shard comes last: it says that both are there.
        cameras = pa.Table.from_pylist([{key: one.get(key) for key in CAMERAS.names} for one in sets], CAMERAS)
        write_shard(target.store, "cameras", shard, cameras, row_groups, wanted)
        table = pa.Table.from_pylist([{key: one[key] for key in SETS.names} for one in sets], SETS)
        write_shard(target.store, "images", shard, table, row_groups, wanted)
        return {"sets": len(sets)}

    added = 0
    with ray_session(), progress("views", sum(len(part) for _, part, _ in waiting), "sets") as advance:
        import ray  # the session says how it is to start

        for row in ray.data.range(len(waiting), override_num_blocks=len(waiting)).map(write).iter_rows():
            added += row["sets"]
            advance(row["sets"])
    return added


def _cut(sets: Sequence[dict[str, Any]]) -> list[int]:
    groups: list[int] = []
    size = pixels = 0
    for one in sets:
        bytes_here = sum(len(picture) for picture in one["image"])
        pixels_here = sum(w * h for w, h in zip(one["width"], one["height"], strict=True))
        if not groups or size + bytes_here > ROW_GROUP_BYTES or pixels + pixels_here > ROW_GROUP_PIXELS:
            groups.append(0)
            size = pixels = 0
        groups[-1] += 1
        size += bytes_here
        pixels += pixels_here
    return groups


def _make_set(source: Source, name: str, count: int, size: int, seed: int) -> dict[str, Any]:
    said = source.metadata().get(name, {})
    if name.endswith("transforms.json"):
        rows = _photographed(source, name)
    else:
        rows = _rendered(source, name, count, size, seed)
    one: dict[str, Any] = {key: [row.get(key) for row in rows] for key in (*SETS.names, "c2w", "intrinsics")}
    for key in ("author", "licence", "text"):
        one[key] = [said.get(key)] * len(rows)
    one["source"] = [f"{name}/{index}" for index in range(len(rows))]
    one["id"] = digest_json([_digest(source, name), count, size, seed])
    return one


def _rendered(source: Source, name: str, count: int, size: int, seed: int) -> list[dict[str, Any]]:
    from labeling.sources.rendering import render_views
    from model.pictures import encode_png

    with tempfile.TemporaryDirectory() as folder:
        # A mesh may name textures and materials beside it, so its whole folder comes along.
        beside = str(PurePosixPath(name).parent)
        for neighbor in source.store.walk("" if beside == "." else beside):
            path = Path(folder, neighbor)
            if neighbor != METADATA and path.resolve().is_relative_to(Path(folder).resolve()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(source.store.read(neighbor if beside == "." else f"{beside}/{neighbor}"))
        pictures = render_views(Path(folder, PurePosixPath(name).name), count, size, seed)
    rows = []
    for view in pictures:
        scale = float(view.inverse_depth.max()) / 65535 or 1.0
        levels = np.rint(view.inverse_depth / scale).astype(np.uint16)
        rows.append(
            {
                "image": encode_png(view.picture),
                "width": size,
                "height": size,
                "disparity": encode_png(levels),
                "disparity_scale": scale,
                "c2w": np.asarray(view.c2w, np.float32).reshape(-1).tolist(),
                "intrinsics": np.asarray(view.intrinsics, np.float32).reshape(-1).tolist(),
            }
        )
    return rows


def _photographed(source: Source, name: str) -> list[dict[str, Any]]:
    """Views of a NeRF-style transforms.json: OpenGL camera-to-world matrices and a pinhole focal length."""
    folder = PurePosixPath(name).parent
    place = f"{source.uri}/{name}"
    try:
        described = json.loads(source.store.read(name))
        frames = described["frames"]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{place}: not a transforms.json (no list of frames)") from None
    rows = []
    for frame in frames:
        path = str(folder / frame["file_path"]).removeprefix("./")
        if ".." in PurePosixPath(path).parts:
            raise InputError(f"{place}: frame {frame['file_path']!r} lies outside the source folder")
        try:
            raw = source.store.read(path)
            picture = normalize(raw, MAX_PIXELS, MIN_SIDE)
        except FileNotFoundError:
            raise InputError(f"{place}: frame {frame['file_path']!r} is not there") from None
        except Rejected as error:
            raise InputError(f"{place}: frame {frame['file_path']!r} is {error}") from None
        width = picture.width
        about = {**described, **frame}
        focal = about["fl_x"] if "fl_x" in about else 0.5 * width / math.tan(0.5 * about["camera_angle_x"])
        scale = width / about.get("w", width)  # focal lengths are in pixels of the size they were found at
        focal_y = about.get("fl_y", focal)
        center = (about.get("cx", 0.5 * width / scale), about.get("cy", 0.5 * picture.height / scale))
        intrinsics = np.array([[focal, 0, center[0]], [0, focal_y, center[1]], [0, 0, width / scale]]) * (scale / width)
        rows.append(
            {
                "id": picture_id(raw),
                "image": picture.encoded,
                "width": width,
                "height": picture.height,
                "c2w": np.asarray(frame["transform_matrix"], np.float32).reshape(-1).tolist(),
                "intrinsics": intrinsics.astype(np.float32).reshape(-1).tolist(),
            }
        )
    return rows
