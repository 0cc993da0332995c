"""RealEstate10K's lines: a video's address, then of each frame its time, intrinsics and world-to-camera matrix.

A line is `timestamp fx fy cx cy 0 0 r₀₀ … t₂`, focal lengths and principal point as shares of width and height
(https://google.github.io/realestate10k/download.html). Frames lie in a folder that has the file's name, or the name
of the video, as TIMESTAMP.png or .jpg.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from labeling.sources.scenes.files import SceneFiles, folder_of, joined
from labeling.sources.scenes.scene import Camera, Scene, View, from_opencv
from model.inputs import InputError

_NUMBERS = 19
_VIDEO = re.compile(r"(?:v=|youtu\.be/)([\w-]{6,})")


def may_be_lines(name: str, folders: set[str]) -> bool:
    """Whether a text file has frames beside it, in a folder of its own name. folders: all that hold pictures."""
    path = PurePosixPath(name)
    return path.suffix == ".txt" and any(
        joined(folder_of(name), f"{prefix}{path.stem}") in folders for prefix in ("", "../", "frames/", "images/")
    )


def read_lines(files: SceneFiles, name: str) -> Scene:
    """The scene of a text file of RealEstate10K. Raises InputError for what is none."""
    lines = files.read(name).decode("utf-8", "replace").splitlines()
    video = lines[0].strip() if lines else ""
    if "://" not in video:
        raise InputError("not a file of RealEstate10K (no address in its first line)")
    folder, stem = folder_of(name), PurePosixPath(name).stem
    found = _VIDEO.search(video)
    names = [stem, f"../{stem}", f"frames/{stem}", f"images/{stem}", *([found[1]] if found else [])]
    folders = []
    for one in names:
        try:
            folders.append(joined(folder, one))
        except InputError:  # above the source's folder
            continue
    views = [_view(files, folders, line, number) for number, line in enumerate(lines[1:], 2) if line.strip()]
    if not views:
        raise InputError("no frames in it")
    return Scene(views, facts={"video": video})


def _view(files: SceneFiles, folders: Sequence[str], line: str, number: int) -> View:
    try:
        time, *words = line.split()
        values = np.array(words, np.float64)
    except ValueError:
        values = np.empty(0)
    if len(values) != _NUMBERS - 1:
        raise InputError(f"line {number}: not {_NUMBERS} numbers")
    fx, fy, cx, cy = (float(value) for value in values[:4])
    pose = values[6:].reshape(3, 4)
    try:
        path = files.find_picture(folders, time)
        return View(path, Camera(fx, fy, cx, cy, 1.0, 1.0), from_opencv(pose[:, :3], pose[:, 3]))
    except InputError as error:
        raise InputError(f"line {number}: {error}") from None
