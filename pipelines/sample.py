"""`onediffusion sample`: one task from a checkpoint, from its condition to a picture or from a picture to its label."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.dataset import Store, open_store
from model.constants import SIZE_STEP
from model.inputs import InputError
from model.prompts import RAYS, Task, draw_colors, find_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from model.outputs import OneDiffusionOutput
    from model.pictures import Picture

_ENCODINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", "": "PNG"}  # by a file's ending
_QUALITY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


def sample(
    checkpoint: str,
    task: str,
    out: str,
    images: Sequence[str] = (),
    condition: str | None = None,
    prompt: str = "",
    names: Sequence[str] = (),
    cameras: Sequence[str] = (),
    references: Sequence[str] = (),
    size: int | tuple[int, int] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
) -> list[str]:
    """Draw one sample and write it to `out`: PNG, JPEG or WebP by its ending (several pictures as out-0.png, out-1.png,
    …), poses as JSON.

    condition → picture with `condition`; picture → label with `images`, which are also the pictures that editing,
    identity and subject refer to (their captions are `references`). For views, `cameras` are
    "azimuth,elevation,distance" in degrees, one for each view, the first ones those of `images`; without cameras the
    poses of the images are predicted. names: classes for segmentation and boxes; the colors follow from the seed.
    size: the side of a square of about as many pixels, or (width, height); the checkpoint's own by default.
    Returns the files written. Raises InputError for an unknown task or what does not go together.
    """
    _check(find_task(task), images, condition, cameras)
    only_poses = find_task(task).condition == RAYS and not cameras
    encoding = "" if only_poses and Path(out).suffix.lower() == ".json" else _encoding(out)
    if size is not None:
        _check_size(size)
    import torch

    from pipelines.sampler import load_pipeline

    pictures = [_load_image(path) for path in (*images, *([condition] if condition else []))]
    pipeline = load_pipeline(checkpoint)
    if isinstance(size, int):
        pipeline.register_to_config(default_size=size)
    sides = {"width": size[0], "height": size[1]} if isinstance(size, tuple) else {}
    angles = zip(*(map(float, camera.split(",")) for camera in cameras), strict=True)
    orbit = dict(zip(("azimuth", "elevation", "distance"), map(list, angles), strict=False))  # {} without cameras
    class_colors = draw_colors(names, str(seed))
    output = pipeline(
        task,
        pictures,
        prompt,
        "image" if find_task(task).is_paired and images else None,
        names=names,
        colors=[class_colors[name] for name in names] if find_task(task).phrase else None,
        reference_prompts=references,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        **sides,
        **({**orbit, "normalize_cameras": True} if orbit else {}),  # as in training
    )
    return _write(out, output, encoding)


def _check_size(size: int | tuple[int, int]) -> None:
    """Raise InputError for a size that pictures cannot have."""
    from model.arguments import check_size
    from model.pictures import aspect_bucket

    if isinstance(size, int):
        aspect_bucket(SIZE_STEP, SIZE_STEP, size)
    elif min(size) < SIZE_STEP:
        raise InputError(f"--size {size[0]}x{size[1]}: each side has at least {SIZE_STEP} pixels")
    else:
        check_size(*size)


def _check(task: Task, images: Sequence[str], condition: str | None, cameras: Sequence[str]) -> None:
    name = task.name
    if name == "text2image" and (images or condition):
        raise InputError("text2image takes a prompt only; give no --image or --condition")
    if task.is_paired and bool(images) == bool(condition):
        raise InputError(f"{name}: give either --condition (to get a picture) or one --image (to get its {name})")
    if task.is_paired and len(images) > 1:
        raise InputError(f"{name}: {len(images)} images given; it takes one")
    if task.condition != RAYS and cameras:
        raise InputError(f"{name} has no cameras; --camera belongs to views")
    if task.references and (condition or not images):
        raise InputError(f"{name}: give the pictures it refers to with --image, and no --condition")
    if task.condition == RAYS:
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
                f"{len(cameras)} cameras for {len(images)} images: give one for each view, those of the images first"
            )
        if not cameras and len(images) < 2:
            raise InputError("views: give --camera for each view, or at least two images to find the cameras of")


def _store_of(path: str) -> tuple[Store, str]:
    """(the folder of a file as a store, the file's name)."""
    folder, _, name = path.rpartition("/")
    return open_store(folder or ("/" if path.startswith("/") else ".")), name


def _load_image(path: str) -> Picture:
    """The picture in a file, local or s3://. Raises InputError for a file that is missing or no picture."""
    from model.pictures import read_picture

    store, name = _store_of(path)
    try:
        return read_picture(store.read(name))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, not a picture") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _encoding(out: str) -> str:
    """The format of Pillow for the name of a file. Raises InputError for an ending of no picture."""
    if not Path(out).stem or out.endswith("/") or Path(out).name in ("", ".", "..") or Path(out).is_dir():
        raise InputError(f"--out {out}: name a file, as sample.png")
    ending = Path(out).suffix.lower()
    if ending not in _ENCODINGS:
        raise InputError(f"--out {out}: end it in {', '.join(filter(None, _ENCODINGS))}")
    return _ENCODINGS[ending]


def _encode(picture: NDArray[np.uint8], encoding: str) -> bytes:
    from PIL import Image

    from model.pictures import encode_png

    if encoding == "PNG":
        return encode_png(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, encoding, **_QUALITY[encoding])
    return buffer.getvalue()


def _write(out: str, output: OneDiffusionOutput, encoding: str) -> list[str]:
    import numpy as np

    stem, ending = (out.rpartition(".")[0], Path(out).suffix) if Path(out).suffix else (out, ".png")
    files: dict[str, bytes] = {}
    pictures = output.images or []
    for index, picture in enumerate(pictures):
        name = f"{stem}-{index}{ending}" if len(pictures) > 1 else f"{stem}{ending}"
        files[name] = _encode(np.asarray(picture), encoding)
    for rotation, translation in output.cameras or []:
        poses = {"R": rotation.tolist(), "T": translation.tolist(), "convention": "PyTorch3D"}
        files[f"{stem}.json"] = json.dumps(poses, indent=1).encode()
    written = []
    for path, content in files.items():
        store, name = _store_of(path)
        store.put(name, content)
        written.append(f"{store.uri}/{name}")
    return written
