"""Folders of photographs → cameras, by structure from motion (COLMAP)."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from labeling.dataset import open_store
from labeling.sources.normalize import EncodedImage, image_id
from labeling.sources.scenes.colmap_model import read_model
from labeling.sources.scenes.files import SceneFiles, read_picture
from labeling.sources.scenes.scene import Scene
from model.inputs import InputError

LensModel = Literal["SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "OPENCV_FISHEYE"]
LENS_MODEL: LensModel = "SIMPLE_RADIAL"
COMMAND = ("-m", "labeling.sources.scenes.motion")  # of Python
_PLACES = ("pictures",)
_LEAST = 3  # pictures of a scene
_EXIF_CAMERA = (0x010F, 0x0110, 0x920A, 0xA405)  # make, model, focal length, that of a 35 mm film


def find_cameras(files: SceneFiles, pictures: Sequence[str], camera_model: str = LENS_MODEL, threads: int = 1) -> Scene:
    """The scene that pictures show, and which of them are left out, why. Pictures of one size and EXIF share a camera.

    Raises InputError where no three of them can be put together.
    """
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="scene-") as scratch:
        folder = Path(scratch)
        names = _write_pictures(files, pictures, folder / "pictures", left_out)
        if len(names) < _LEAST:
            raise InputError(_too_few(len(names), len(pictures), left_out))
        (folder / "task.json").write_text(json.dumps({"camera_model": camera_model, "threads": threads}))
        said = _run(folder)
        if not said["models"]:
            raise InputError(_nothing_found(len(names), said["matches"]))
        best, *others = said["models"]
        left_out |= {names[name]: reason for name, reason in _not_placed(names, best, others, said["matches"]).items()}
        scene = read_model(SceneFiles(open_store(str(folder))), "model/images.bin", _PLACES)
    views = [
        dataclasses.replace(view, path=names[view.path.removeprefix("pictures/")], stands=True) for view in scene.views
    ]
    return dataclasses.replace(scene, views=sorted(views, key=lambda view: view.path), left_out=left_out)


def _write_pictures(
    files: SceneFiles, pictures: Sequence[str], target: Path, left_out: dict[str, str]
) -> dict[str, str]:
    """Write pictures upright, into a folder for each camera; the name there of each."""
    names: dict[str, str] = {}
    seen: dict[str, str] = {}
    for number, path in enumerate(pictures):
        try:
            raw, image = read_picture(files, path)
        except InputError as error:
            left_out[path] = str(error).removeprefix(f"{path!r} is ")
            continue
        identity = image_id(raw)
        if identity in seen:
            left_out[path] = f"the same picture as {seen[identity]}"
            continue
        seen[identity] = path
        suffix = "jpg" if image.encoded.startswith(b"\xff\xd8") else "png"
        name = f"{_camera_name(raw, image)}/{number:06d}.{suffix}"
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (target / name).write_bytes(image.encoded)
        names[name] = path
    return names


def _camera_name(raw: bytes, image: EncodedImage) -> str:
    """What tells cameras apart: size, and what EXIF says of camera and focal length."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as opened:
            exif = opened.getexif()
            values = {**exif, **exif.get_ifd(0x8769)}
            said = [str(values.get(tag, "")) for tag in _EXIF_CAMERA]
    except Exception:  # of formats that Pillow does not read nothing is known
        said = []
    return f"{image.width}x{image.height}-{image_id(repr(said).encode())[:8]}"


def _run(folder: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *COMMAND, str(folder)], capture_output=True, text=True, errors="replace")  # noqa: S603
    if not (folder / "said.json").exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        last = lines[-1][:160] if lines else "without a word"
        raise InputError(f"structure from motion ended with {done.returncode} ({last})")
    return dict(json.loads((folder / "said.json").read_text()))


def _too_few(there: int, given: int, left_out: Mapping[str, str]) -> str:
    first = next(iter(left_out.items()), None)
    more = f"; {first[0]}: {first[1]}" if first else ""
    return f"{there} of {given} pictures to find cameras of; it takes {_LEAST} that differ{more}"


def _nothing_found(count: int, matches: Mapping[str, int]) -> str:
    most = max(matches.values(), default=0)
    if not most:
        return f"no two of {count} pictures show the same"
    return f"no cameras found: {count} pictures have at most {most} points in common, or were taken from one place"


def _not_placed(
    names: Mapping[str, str], best: Sequence[str], others: Sequence[Sequence[str]], matches: Mapping[str, int]
) -> dict[str, str]:
    reasons = {}
    part = {name: model for model in reversed(others) for name in model}
    for name in sorted(set(names) - set(best)):
        if name in part:
            reasons[name] = f"of another part of the scene, {len(part[name])} pictures that none connects with this one"
        elif not matches.get(name):
            reasons[name] = "shows nothing that another picture shows"
        else:
            reasons[name] = f"cannot be placed: {matches[name]} points in common with another picture"
    return reasons
