"""Structure from motion in a process of its own, which may die of what pictures hold: COLMAP ends it by `abort`.

Run as `python -m labeling.sources.scenes.motion FOLDER`: FOLDER/task.json says what to do, FOLDER/pictures has a folder
for each camera, and FOLDER/model gets the best reconstruction, FOLDER/said.json what became of the pictures. One thread
and seeded, so that the same pictures give the same cameras.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.scenes.alignment import align_points

_EXHAUSTIVE = 60  # pictures up to which each is matched with each
_NEAREST, _NEIGHBORS = 20, 4  # others that a picture of more is matched with: by likeness, and by name
_LEAST_MODEL = 3  # pictures of a reconstruction
_SIDE = 1600  # pixels of the longer side that features are looked for at
_FEATURES = 8192
_ROUNDS, _FARTHEST = 3, 6  # of the last adjustment, and how many times the median error a point may be off by
_LEAST_ERROR = 0.04  # pixels of the median, at the size of the search, below which pictures are not taken at their word
_TOLERANCE = 1e-6  # share of the cost that a step has to win; without one COLMAP's take a hundred steps
_LEAST_ANGLE = 1.5  # degrees between the rays of a point
_FIRST_ANGLE = 8.0  # between those of the first two pictures: of a turntable's, neighbors and not opposite ones
_SEED = 0
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def reconstruct(folder: Path, camera_model: str, threads: int) -> dict[str, Any]:
    """Write the best reconstruction of FOLDER/pictures to FOLDER/model; what became of the pictures.

    models: names of the pictures of each reconstruction, the best first; matches: picture → points that it has in
    common with the one that it has most with.
    """
    import pycolmap

    pycolmap.set_random_seed(_SEED)
    database, pictures = folder / "database.db", folder / "pictures"
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.max_image_size = threads, _SIDE
    extraction.sift.max_num_features = _FEATURES
    reading = pycolmap.ImageReaderOptions()
    reading.camera_model = camera_model
    pycolmap.extract_features(
        database,
        pictures,
        camera_mode=pycolmap.CameraMode.PER_FOLDER,
        reader_options=reading,
        extraction_options=extraction,
    )
    matching, verification = pycolmap.FeatureMatchingOptions(), pycolmap.TwoViewGeometryOptions()
    matching.num_threads, verification.ransac.random_seed = threads, _SEED
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*") if path.is_file())
    if len(names) <= _EXHAUSTIVE:
        pycolmap.match_exhaustive(database, matching, verification_options=verification)
    else:
        from labeling.sources.scenes.retrieval import likely_pairs

        pairs = likely_pairs(database, _NEAREST, _NEIGHBORS)
        (folder / "pairs.txt").write_text("".join(f"{one} {other}\n" for one, other in pairs))
        pairing = pycolmap.ImportedPairingOptions()
        pairing.match_list_path = folder / "pairs.txt"
        pycolmap.match_image_pairs(database, matching, pairing, verification)
    mapping = pycolmap.IncrementalPipelineOptions()
    mapping.num_threads, mapping.random_seed, mapping.min_model_size = threads, _SEED, _LEAST_MODEL
    mapping.extract_colors = False
    mapping.mapper.init_min_tri_angle = _FIRST_ANGLE
    (folder / "models").mkdir()
    found = pycolmap.incremental_mapping(database, pictures, folder / "models", mapping)
    models = sorted(found.values(), key=lambda model: (-model.num_reg_images(), -model.num_points3D()))
    while models:
        align_points(models[0], database, pictures, _SIDE, threads)
        if adjust(models[0], threads):
            (folder / "model").mkdir()
            models[0].write_binary(folder / "model")
            break
        models.pop(0)
    return {"models": [_names(model) for model in models], "matches": _matches(database)}


def adjust(model: Any, threads: int) -> bool:
    """Adjust cameras and points of a pycolmap.Reconstruction once more, in rounds, to what the most of its pictures
    agree on: errors count by how many times the median they are, and those far above it are left out.

    False where no point is left then, as of a camera that stood still: it is no reconstruction.
    """
    import pycolmap

    sides = (max(model.images[number].camera.width, model.images[number].camera.height) for number in model.images)
    least = _LEAST_ERROR * max(1.0, max(sides) / _SIDE)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.ceres.solver_options.num_threads = threads
    options.ceres.solver_options.function_tolerance = _TOLERANCE
    options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
    for round_ in range(_ROUNDS):
        errors = _errors(model)
        if not len(errors):
            return False
        median = max(float(np.median(errors)), least)
        if round_:
            pycolmap.ObservationManager(model).filter_all_points3D(_FARTHEST * median, _LEAST_ANGLE)
        options.ceres.loss_function_scale = 2 * median
        pycolmap.bundle_adjustment(model, options)
    model.update_point_3d_errors()
    return bool(model.num_points3D())


def _errors(model: Any) -> NDArray[np.float64]:
    """Pixels between where each picture shows a point and where its camera sees it."""
    off = []
    for image in model.images.values():
        for seen in image.get_observation_points2D() if image.has_pose else ():
            there = image.project_point(model.points3D[seen.point3D_id].xyz)
            if there is not None:
                off.append(there - seen.xy)
    return np.asarray(np.linalg.norm(np.array(off).reshape(-1, 2), axis=1))


def _names(model: Any) -> list[str]:
    return sorted(image.name for image in model.images.values() if image.has_pose)


def _matches(path: Path) -> dict[str, int]:
    import pycolmap

    with pycolmap.Database.open(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        pairs, counts = database.read_two_view_geometry_num_inliers()
    most = dict.fromkeys(names.values(), 0)
    for pair, count in zip(pairs, counts, strict=True):
        for image in _images_of(pair):
            most[names[image]] = max(most[names[image]], int(count))
    return most


def _images_of(pair: Any) -> Sequence[int]:
    import pycolmap

    return pycolmap.pair_id_to_image_pair(pair) if isinstance(pair, int) else pair


def main() -> None:
    """Do what FOLDER/task.json says."""
    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
    folder = Path(sys.argv[1])
    task = json.loads((folder / "task.json").read_text())
    said = reconstruct(folder, task["camera_model"], task["threads"])
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
