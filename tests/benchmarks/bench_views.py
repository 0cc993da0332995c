"""View sets against what is known: cameras of turntables, boards and films; scenes an hour; many meshes; killed jobs.

    PYTHONPATH=. python tests/benchmarks/bench_views.py [turntables|boards|film|depth|speed|meshes|kills …]

`boards` and `film` take Debian's opencv-doc (`apt-get download`, which installs nothing). Figures go to
runs/bench/views.json, a picture of depth seen from another view to runs/bench/views-depth.png. Exit code 1 where a
turntable's cameras are further off than 0.1° (median) or 1 % of the orbit, or fewer than 95 % of its views are found.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from view_scenes import camera_errors, write_meshes

from labeling.dataset import Dataset, open_store
from labeling.sources.rendering import render_views
from labeling.sources.scenes.colmap_model import read_model
from labeling.sources.scenes.files import SceneFiles
from labeling.sources.scenes.photographs import find_cameras
from labeling.sources.scenes.stored_views import store_views
from model.constants import FOCAL_LENGTH
from model.inputs import InputError
from model.pictures import decode_picture
from pipelines.reports.reprojection import reproject

RESULT = Path("runs/bench/views.json")
VIEWS, SIZE = 24, 480
FRAMES, FRAMES_APART = 12, 60
Figures = dict[str, Any]


def turntables(work: Path) -> Figures:
    """Structure from motion of rendered turntables, against the cameras that they were rendered with."""
    figures: Figures = {}
    for name, mesh in write_meshes(work / "meshes").items():
        folder = work / "turntables" / name.replace(" ", "-")
        folder.mkdir(parents=True)
        views = render_views(mesh, VIEWS, SIZE, 0, "turntable")
        for index, view in enumerate(views):
            Image.fromarray(view.image).save(folder / f"{index:03d}.png")
        started = time.perf_counter()
        try:
            scene = find_cameras(_files(folder), sorted(path.name for path in folder.iterdir()))
        except InputError as error:
            figures[name] = {"registered": 0.0, "reason": str(error)}
            continue
        seconds = time.perf_counter() - started
        places = [int(view.path[:3]) for view in scene.views]
        true = np.stack([views[place].c2w for place in places])
        focal = scene.views[0].camera.fx
        assert focal is not None
        figures[name] = {
            "registered": len(places) / VIEWS,
            **camera_errors(np.stack([view.c2w for view in scene.views]), true),
            "focal_off": abs(focal / SIZE / FOCAL_LENGTH - 1),
            "reprojection": scene.reprojection,
            "seconds": seconds,
        }
    return figures


def boards(work: Path) -> Figures:
    """The chessboards left01 … left14 of opencv-doc, whose camera cv2.calibrateCamera finds: where a stored set says
    that the board's corners are, against where they are in its undistorted pictures. From the pictures alone no cameras
    are to be had, since the board moves and the camera stands.
    """
    import cv2

    folder, target = _opencv_doc(work), work / "boards"
    (target / "images").mkdir(parents=True)
    shape = (9, 6)
    grid = np.zeros((54, 3), np.float32)
    grid[:, :2] = np.mgrid[:9, :6].T.reshape(-1, 2)
    corners, names = [], []
    for path in sorted(folder.glob("left*.jpg")):
        where = _corners(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), shape)
        if where is not None:
            shutil.copy(path, target / "images" / path.name)
            corners.append(where)
            names.append(path.name)
    error, K, lens, turns, moves = cv2.calibrateCamera([grid] * len(corners), corners, (640, 480), None, None)
    # OpenCV counts from the middle of the first pixel, COLMAP from its corner.
    numbers = [K[0, 0], K[1, 1], K[0, 2] + 0.5, K[1, 2] + 0.5, *lens.ravel()[:4], lens.ravel()[4], 0, 0, 0]
    (target / "cameras.txt").write_text(f"1 FULL_OPENCV 640 480 {' '.join(map(repr, map(float, numbers)))}\n")
    lines = []
    for index, (name, turn, move) in enumerate(zip(names, turns, moves, strict=True)):
        angle = float(np.linalg.norm(turn))
        quaternion = [np.cos(angle / 2), *(turn.ravel() / angle * np.sin(angle / 2))]
        lines.append(f"{index} {' '.join(map(repr, map(float, [*quaternion, *move.ravel()])))} 1 {name}\n\n")
    (target / "images.txt").write_text("".join(lines))
    files = _files(target)
    views, _ = store_views(files, read_model(files, "images.txt"))
    off = []
    for view in views:
        found = _corners(cv2.cvtColor(decode_picture(view.image.encoded), cv2.COLOR_RGB2GRAY), shape)
        if found is not None:
            local = (grid - view.c2w[:3, 3]) @ view.c2w[:3, :3] * (1, -1, -1)
            seen = local @ view.matrix.T
            off.append(np.linalg.norm(seen[:, :2] / seen[:, 2:] * view.image.width - 0.5 - found, axis=1))
    figures: Figures = {
        "pictures": len(names),
        "found_again": len(off),
        "cv2_error": error,
        "k1": float(lens.ravel()[0]),
    }
    figures["error"] = float(np.sqrt(np.mean(np.square(off))))
    try:
        find_cameras(files, [f"images/{name}" for name in names])
    except InputError as failure:
        figures["from_pictures_alone"] = str(failure)
    return figures


def _corners(gray: Any, shape: tuple[int, int]) -> Any:
    import cv2

    found, where = cv2.findChessboardCorners(gray, shape)
    end = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 30, 1e-3)
    return cv2.cornerSubPix(gray, where, (5, 5), (-1, -1), end).reshape(-1, 2) if found else None


def film(work: Path) -> Figures:
    """People who walk before a camera that stands: no cameras are to be had, and the scene says so."""
    import cv2

    path, folder = _opencv_doc(work) / "vtest.avi", work / "film"
    folder.mkdir()
    video = cv2.VideoCapture(str(path))
    for index in range(FRAMES):
        video.set(cv2.CAP_PROP_POS_FRAMES, index * FRAMES_APART)
        read, frame = video.read()
        assert read
        cv2.imwrite(str(folder / f"{index:03d}.png"), frame)
    try:
        scene = find_cameras(_files(folder), sorted(path.name for path in folder.iterdir()))
    except InputError as error:
        return {"frames": FRAMES, "reason": str(error)}
    centers = np.stack([view.c2w[:3, 3] for view in scene.views])
    return {"frames": FRAMES, "registered": len(scene.views), "spread": float(np.ptp(centers, axis=0).max())}


def depth(work: Path) -> Figures:
    """Depth of one view reprojected into another: how far it is from the depth there, and a picture of both."""
    mesh = write_meshes(work / "meshes")["still life"]
    one, other = render_views(mesh, 16, 256, 0, "turntable")[:2]
    colors, there = reproject(one.image, one.inverse_depth, (one.c2w, other.c2w), (one.intrinsics, other.intrinsics))
    seen = other.inverse_depth
    both = (seen > 0) & (there > 0)
    off = np.abs(there[both] / seen[both] - 1)
    strip = np.concatenate([one.image, other.image, colors], 1)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(RESULT.with_name("views-depth.png"))
    agree = float((off < 0.01).mean())
    return {"pixels": int(both.sum()), "median_off": float(np.median(off)), "within_1_percent": agree}


def speed(work: Path) -> Figures:
    """Scenes an hour of 200 folders of 8 rendered pictures, and the share of the time that COLMAP takes."""
    folders = work / "captures"
    count = 0
    for name, mesh in write_meshes(work / "meshes").items():
        views = [Image.fromarray(view.image) for view in render_views(mesh, 34, 320, 0, "turntable")]
        for first in range(34):
            if count == 200:
                break
            place = folders / f"{name.replace(' ', '-')}-{first:02d}"
            place.mkdir(parents=True)
            for index in range(8):
                views[(first + index) % 34].save(place / f"{index}.png")
            count += 1
    seconds, out = _timed_views(folders, work / "out-captures")
    sample = sorted(folders.iterdir())[::20]
    colmap = whole = 0.0
    for place in sample:
        colmap += _seconds(
            lambda place=place: find_cameras(_files(place), sorted(path.name for path in place.iterdir()))
        )
        whole += _seconds(lambda place=place: _make(place))
    said = {"scenes": count, "seconds": seconds, "scenes_per_hour": 3600 * count / seconds, "said": out}
    rows = list(Dataset.open(work / "out-captures").rows("cameras", ["c2w"]))
    placed = float(np.mean([len(row["c2w"]) / 8 for row in rows]))
    return {**said, "share_of_colmap": colmap / whole, "sets": len(rows), "placed": placed}


def meshes(work: Path) -> Figures:
    """Seconds a mesh of 1,250, 2,500 and 5,000 in one folder: the same for each."""
    import trimesh

    figures: Figures = {}
    for count in (1250, 2500, 5000):
        folder = work / f"many-{count}"
        folder.mkdir()
        for index in range(count):
            (folder / f"{index:05d}.ply").write_bytes(
                trimesh.creation.box((1, 1, 1 + index % 7)).export(file_type="ply")
            )
        seconds, _ = _timed_views(folder, work / f"out-many-{count}", "--count", "2", "--size", "32")
        again, _ = _timed_views(folder, work / f"out-many-{count}", "--count", "2", "--size", "32")
        figures[str(count)] = {"ms_per_mesh": 1000 * seconds / count, "again_ms_per_mesh": 1000 * again / count}
    return figures


def kills(work: Path) -> Figures:
    """A job that is killed again and again, and ends with the bytes of one that is not."""
    import trimesh

    folder = work / "killed-source"
    folder.mkdir()
    for index in range(150):
        (folder / f"{index:03d}.ply").write_bytes(trimesh.creation.icosphere(3, 1 + index).export(file_type="ply"))
    options = ("--count", "6", "--size", "128")
    seconds, _ = _timed_views(folder, work / "whole", *options)
    killed = 0
    while killed < 4:
        process = _start(folder, work / "killed", *options)
        time.sleep(0.35 * seconds)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    _timed_views(folder, work / "killed", *options)
    whole, resumed = (_bytes_of(work / name) for name in ("whole", "killed"))
    return {"kills": killed, "files": len(whole), "same_bytes": whole == resumed}


def _files(folder: Path) -> SceneFiles:
    return SceneFiles(open_store(str(folder)))


def _make(folder: Path) -> None:
    from labeling.sources.scenes.discovery import find_scenes
    from labeling.sources.source import Source
    from labeling.sources.view_sets import ViewOptions, make_row

    source = Source(str(folder))
    make_row(source, find_scenes(source, photographs=True)[0], ViewOptions())


def _start(source: Path, target: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipelines", "views", str(source), str(target), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )


def _timed_views(source: Path, target: Path, *options: str) -> tuple[float, str]:
    started = time.perf_counter()
    process = _start(source, target, *options)
    said, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"views {source} ended with {process.returncode}")
    return time.perf_counter() - started, said.strip()


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))}


def _opencv_doc(work: Path) -> Path:
    """The example data of Debian's opencv-doc; OPENCV_DOC names a folder that has them already."""
    if "OPENCV_DOC" in os.environ:
        return Path(os.environ["OPENCV_DOC"])
    folder = work / "opencv-doc"
    if not folder.exists():
        folder.mkdir()
        subprocess.run(["apt-get", "download", "opencv-doc"], cwd=folder, check=True, capture_output=True)
        (package,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    data: Path = folder / "usr/share/doc/opencv-doc/examples/data"
    return data


PARTS = {part.__name__: part for part in (turntables, boards, film, depth, speed, meshes, kills)}


def main() -> None:
    console, chosen = Console(), sys.argv[1:] or list(PARTS)
    figures: Figures = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="bench-views-") as work:
            figures[name] = PARTS[name](Path(work))
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=1) + "\n")
        table = Table(title=name)
        for column in ("", "figures"):
            table.add_column(column)
        for key, value in figures[name].items():
            shown = (
                {k: round(v, 4) if isinstance(v, float) else v for k, v in value.items()}
                if isinstance(value, dict)
                else value
            )
            table.add_row(key, str(shown))
        console.print(table)
    found = figures["turntables"].values() if "turntables" in chosen else ()
    bad = [one for one in found if one["registered"] < 0.95 or one["degrees"] > 0.1 or one["center"] > 0.01]
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
