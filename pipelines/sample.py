"""`onediffusion sample`: one task from a checkpoint, from its condition to a picture or from a picture to its label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.shards import open_store
from model.errors import InputError
from model.prompts import TASKS, build_prompt, draw_colors, find_task

if TYPE_CHECKING:
    from model.pictures import Picture

FOCAL = 1.3887  # default focal length, image width = 1 (MODEL.md, Cameras)
PAIRED = tuple(name for name, task in TASKS.items() if task.condition not in (None, "rays"))
SAMPLED = ("text2image", *PAIRED, "views")


def sample(
    checkpoint: str,
    task: str,
    out: str,
    images: Sequence[str] = (),
    condition: str | None = None,
    prompt: str = "",
    names: Sequence[str] = (),
    cameras: Sequence[str] = (),
    size: int | None = None,
    steps: int = 50,
    guidance: float = 4.0,
    seed: int = 0,
) -> list[str]:
    """Draw one sample and write it to `out` (PNG; for several views out-0.png, out-1.png …; poses as JSON).

    condition → picture with `condition`; picture → label with `images`. For views, `cameras` are
    "azimuth,elevation,distance" in degrees, one for each view, the first ones those of `images`; without cameras the
    poses of the images are predicted. names: classes for segmentation and boxes; the colours follow from the seed.
    Returns the files written. Raises InputError for an unknown task or what does not go together.
    """
    found = find_task(task)
    if task not in SAMPLED:
        raise InputError(f"task {task!r} cannot be sampled yet; there are {', '.join(SAMPLED)}")
    _check(task, images, condition, cameras)
    import torch

    from pipelines.sampler import Request, Sampler

    pictures = [_load(path) for path in (*images, *([condition] if condition else []))]
    sampler = Sampler(checkpoint)
    if size:
        sampler.size = size
    colors = draw_colors(names, str(seed))
    text = build_prompt(task, prompt, list(names), [colors[name] for name in names])
    width, height = sampler.bucket(pictures[0]) if pictures else (sampler.size // 16 * 16,) * 2
    if task == "text2image":
        request = Request(text, (1,), (), width, height, seed)
        wanted = [0]
    elif found.condition != "rays":
        mask = (1, 0) if condition else (0, 1)
        request = Request(text, mask, (pictures[0],), width, height, seed)
        wanted = [0 if condition else 1]
    else:
        return _views(sampler, text, pictures, cameras, seed, steps, guidance, out)
    with torch.no_grad():
        latents = sampler.sample([request], steps, guidance)[0]
    return [_write(out, sampler.decode(latents[frame])) for frame in wanted]


def _views(
    sampler: Any,
    text: str,
    pictures: Sequence[Picture],
    cameras: Sequence[str],
    seed: int,
    steps: int,
    guidance: float,
    out: str,
) -> list[str]:
    import numpy as np
    import torch

    from model.cameras import orbit_cameras
    from pipelines.sampler import Request, camera_latents, recover_cameras

    side = sampler.size // 16 * 16
    count = len(cameras) or len(pictures)
    intrinsics = torch.tensor([[FOCAL, 0, 0.5], [0, FOCAL, 0.5], [0, 0, 1.0]]).expand(count, 3, 3)
    if cameras:
        orbits = torch.tensor([[float(value) for value in camera.split(",")] for camera in cameras])
        rays = camera_latents(orbit_cameras(*orbits.unbind(1)), intrinsics, side, side)
        mask = tuple(value for view in range(count) for value in (int(view >= len(pictures)), 0))
    else:
        rays = torch.zeros(count, 16, side // 8, side // 8)
        mask = (0, 1) * count
    latents = sampler.sample([Request(text, mask, tuple(pictures), side, side, seed, rays)], steps, guidance)[0]
    stem, dot, ending = out.rpartition(".")
    if cameras:
        wanted = range(len(pictures), count)
        return [
            _write(f"{stem}-{view}.{ending}" if dot else f"{out}-{view}", sampler.decode(latents[2 * view]))
            for view in wanted
        ]
    rotation, translation = recover_cameras(latents[1::2], intrinsics)
    poses = {"R": np.asarray(rotation).tolist(), "T": np.asarray(translation).tolist(), "convention": "PyTorch3D"}
    folder, name = _place(f"{stem}.json" if dot else f"{out}.json")
    folder.put(name, json.dumps(poses, indent=1).encode())
    return [f"{folder.uri}/{name}"]


def _check(task: str, images: Sequence[str], condition: str | None, cameras: Sequence[str]) -> None:
    if task == "text2image" and (images or condition):
        raise InputError("text2image takes a prompt only; give no --image or --condition")
    if task in PAIRED and bool(images) == bool(condition):
        raise InputError(f"{task}: give either --condition (to get a picture) or one --image (to get its {task})")
    if task in PAIRED and len(images) > 1:
        raise InputError(f"{task}: {len(images)} images given; it takes one")
    if task != "views" and cameras:
        raise InputError(f"{task} has no cameras; --camera belongs to views")
    if task == "views":
        if condition:
            raise InputError("views takes --image and --camera, no --condition")
        for camera in cameras:
            try:
                parts = [float(value) for value in camera.split(",")]
            except ValueError:
                parts = []
            if len(parts) != 3:
                raise InputError(f"--camera {camera}: write azimuth,elevation,distance, as in 30,10,1.5")
        if cameras and len(cameras) <= len(images):
            raise InputError(
                f"{len(cameras)} cameras for {len(images)} images: give one for each view, wanted ones last"
            )
        if not cameras and len(images) < 2:
            raise InputError("views: give --camera for each view, or at least two images to find the cameras of")


def _place(path: str) -> tuple[Any, str]:
    folder, _, name = path.rpartition("/")
    return open_store(folder or ("/" if path.startswith("/") else ".")), name


def _load(path: str) -> Picture:
    from labeling.ingest import Rejected, normalise
    from model.pictures import decode_picture

    store, name = _place(path)
    try:
        return decode_picture(normalise(store.read(name), 100_000_000, 16).encoded)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Rejected as error:
        raise InputError(f"{path}: {error}") from None


def _write(path: str, picture: Picture) -> str:
    from model.pictures import encode_png

    store, name = _place(path if Path(path).suffix else f"{path}.png")
    store.put(name, encode_png(picture))
    return f"{store.uri}/{name}"
