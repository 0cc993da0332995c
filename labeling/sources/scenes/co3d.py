"""CO3D's annotations of frames: PyTorch3D world-to-camera for row vectors, focal lengths in normalized coordinates.

A category has one file for all its sequences, each of which is a scene
(https://github.com/facebookresearch/co3d, dataset/data_types.py).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from labeling.dataset import Store, open_store
from labeling.sources.scenes.files import SceneFiles, folder_of
from labeling.sources.scenes.scene import Camera, Scene, View, from_opencv
from model.inputs import InputError

_NAMES = ("frame_annotations.jgz", "frame_annotations.json.gz", "frame_annotations.json")
_GZIP = b"\x1f\x8b"
_FLIP = np.array([-1.0, -1.0, 1.0])  # PyTorch3D's camera looks as OpenCV's does, x to the left and y up


def is_annotations(name: str) -> bool:
    """Whether a file is one of CO3D's annotations, by its name."""
    return PurePosixPath(name).name in _NAMES


def sequences_of(store: Store, name: str) -> list[str]:
    """Names of the sequences that a file of annotations is about, sorted. Raises InputError."""
    return sorted(_by_sequence(store.uri, name))


def read_sequence(files: SceneFiles, name: str, sequence: str) -> Scene:
    """The scene of one sequence, its frames by their numbers. Raises InputError."""
    frames = _by_sequence(files.store.uri, name).get(sequence)
    if frames is None:
        raise InputError(f"no sequence {sequence!r} in it")
    rows = sorted((json.loads(frame) for frame in frames), key=lambda frame: int(frame.get("frame_number", 0)))
    return Scene([_view(files, name, row) for row in rows])


def _view(files: SceneFiles, name: str, frame: Mapping[str, Any]) -> View:
    shown = str(frame.get("frame_number"))
    try:
        image, viewpoint = frame["image"], frame["viewpoint"]
        shown = str(image["path"])
        height, width = (float(side) for side in image["size"])
        focal, center = (np.array(viewpoint[key], np.float64) for key in ("focal_length", "principal_point"))
        R, T = (np.array(viewpoint[key], np.float64) for key in ("R", "T"))
        kind = viewpoint.get("intrinsics_format") or "ndc_norm_image_bounds"
        mask = (frame.get("mask") or {}).get("path")
        if R.shape != (3, 3) or T.shape != (3,) or focal.shape != (2,) or center.shape != (2,):
            raise ValueError("shapes")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InputError(f"frame {shown!r}: not an annotation of CO3D") from None
    half = np.array([width, height]) / 2
    if kind not in ("ndc_norm_image_bounds", "ndc_isotropic"):
        raise InputError(f"frame {shown!r}: intrinsics of the format {kind!r} are not known")
    unit = half if kind == "ndc_norm_image_bounds" else half.min()
    (fx, fy), (cx, cy) = focal * unit, half - center * unit
    folders = [folder_of(folder_of(name)), folder_of(name)]  # paths begin at the folder of all categories
    try:
        c2w = from_opencv((R * _FLIP).T, T * _FLIP)
        mask_path = files.find_picture(folders, mask) if mask else None
        camera = Camera(float(fx), float(fy), float(cx), float(cy), width, height)
        return View(files.find_picture(folders, shown), camera, c2w, mask_path)
    except InputError as error:
        prefix = "" if repr(shown) in str(error) else f"{shown!r}: "
        raise InputError(f"frame {prefix}{error}") from None


@lru_cache(maxsize=1)  # a worker makes sequences of one file after another
def _by_sequence(uri: str, name: str) -> dict[str, list[bytes]]:
    try:
        data = open_store(uri).read(name)
        rows = json.loads(gzip.decompress(data) if data.startswith(_GZIP) else data)
        sequences: dict[str, list[bytes]] = {}
        for row in rows:
            sequences.setdefault(str(row["sequence_name"]), []).append(json.dumps(row).encode())
    except FileNotFoundError:
        raise InputError("it is not there") from None
    except (ValueError, TypeError, KeyError, OSError, EOFError, zlib.error):
        raise InputError("not CO3D's annotations of frames") from None
    return sequences
