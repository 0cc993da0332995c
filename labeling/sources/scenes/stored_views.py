"""Views as a dataset stores them: upright pictures of one shape, the pinhole of each, masks and points of the scene.

H, W pixels.
"""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.sources.normalize import EncodedImage, image_id
from labeling.sources.scenes.files import SceneFiles, read_picture
from labeling.sources.scenes.scene import MIN_VIEWS, Floats, Scene, View, baseline, turned_pose
from model.inputs import InputError
from model.pictures import crop_size, decode_gray, decode_picture, encode_png, fit_picture, fitted_matrix
from model.pixels import tags

_QUALITY = 95  # of a JPEG that is coded again
_TURNS = {1: 0, 6: 1, 3: 2, 8: 3}  # EXIF orientation → quarters to turn clockwise
_IN_EXIF = ("JPEG", "MPO", "PNG", "WEBP", "TIFF")  # formats whose pictures lie as they are stored until EXIF is read
_LEAST_KEPT = 0.5  # of a picture's area, when it is cut to the shape of the others
MOST_POINTS = 4096  # of a view


@dataclass(frozen=True)
class StoredView:
    """A view with its picture. matrix: (3, 3) for an image width of 1; mask: PNG, 255 where what is shown is."""

    id: str
    path: str
    image: EncodedImage
    c2w: Floats
    matrix: Floats
    mask: bytes | None = None
    points: Floats | None = None


def store_views(files: SceneFiles, scene: Scene) -> tuple[list[StoredView], dict[str, str]]:
    """The views of a scene, all of one shape, and those that are left out: picture → reason.

    Raises InputError for a scene of which one view cannot be had, or fewer than two are left.
    """
    views = [_stored(files, view) for view in scene.views]
    left_out = dict(scene.left_out)
    (width, height), _ = max(
        Counter((view.image.width, view.image.height) for view in views).items(), key=lambda item: (item[1], item[0])
    )
    kept = []
    for view in views:
        own_width, own_height = view.image.width, view.image.height
        crop_width, crop_height = crop_size(own_width, own_height, width, height)
        if crop_width * crop_height < _LEAST_KEPT * own_width * own_height:
            left_out[view.path] = f"{own_width} × {own_height}, another shape than the {width} × {height} of most"
        else:
            kept.append(_cut(view, width, height))
    if len(kept) < MIN_VIEWS:
        raise InputError(f"one view of {width} × {height}; a set has at least {MIN_VIEWS} of one shape")
    if len({view.id for view in kept}) == 1:
        raise InputError("all its pictures are the same")
    return kept, left_out


def columns_of(view: StoredView) -> dict[str, Any]:
    """The columns of one view, of the groups images and cameras."""
    return {
        "image": view.image.encoded,
        "width": view.image.width,
        "height": view.image.height,
        "c2w": flat(view.c2w),
        "intrinsics": flat(view.matrix),
        "mask": view.mask,
        "points": None if view.points is None else flat(_projected(view)),
    }


def quality_of(views: list[StoredView], scene: Scene) -> dict[str, float | None]:
    """What is known of a set: reprojection, baseline and overlap, see the group `cameras`."""
    poses = np.stack([view.c2w for view in views])
    return {"reprojection": scene.reprojection, "overlap": scene.overlap, "baseline": baseline(poses)}


def flat(matrix: Any) -> list[float]:
    """The numbers of a matrix, row by row."""
    values: list[float] = np.asarray(matrix, np.float32).reshape(-1).tolist()
    return values


def quarters(raw: bytes) -> int:
    """By how many quarters EXIF says that a file's picture is to be turned clockwise.

    Raises InputError for one that is mirrored: no camera took it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            is_said = image.format in _IN_EXIF
            turn = tags.orientation(image.info.get("exif"), image.info.get("xmp")) if is_said else 1
    except Exception:  # Pillow does not read it, and its decoder turns it
        return 0
    if turn not in _TURNS:
        raise InputError("mirrored by its EXIF orientation, which no camera does")
    return _TURNS[turn]


def _stored(files: SceneFiles, view: View) -> StoredView:
    raw, image = read_picture(files, view.path)
    try:
        width, height, turn = image.width, image.height, 0 if view.stands else quarters(raw)
        # Programs that find cameras do not look at EXIF, unless they say the size of the picture that stands upright.
        lies = (height, width) if turn % 2 else (width, height)
        if turn and not view.camera.is_of(*lies) and view.camera.is_of(width, height):
            turn, lies = 0, (width, height)
        camera, c2w = view.camera.at(*lies).turned(turn), turned_pose(view.c2w, turn)
        matrix, mask = camera.matrix(), _mask(files, view.mask, width, height, turn)
        if camera.lens:
            pinhole = camera.lens.pinhole(width, height, matrix)
            image = _encoded(pinhole.apply(decode_picture(image.encoded)), image)
            matrix, mask = pinhole.matrix, None if mask is None else pinhole.apply(mask, is_mask=True)
    except InputError as error:
        raise InputError(f"{view.path!r}: {error}") from None
    encoded = None if mask is None else _encoded_mask(mask > 0)
    return StoredView(image_id(raw), view.path, image, c2w, matrix, encoded, view.points)


def _mask(files: SceneFiles, path: str | None, width: int, height: int, turn: int) -> NDArray[np.uint8] | None:
    if path is None:
        return None
    from PIL import Image

    try:
        levels = decode_gray(files.read(path))
    except OSError:
        raise InputError(f"its mask {path!r} is no picture") from None
    if levels.shape != (height, width) and turn:
        levels = np.rot90(levels, -turn)
    sized = Image.fromarray((levels > 0).astype(np.uint8) * 255).resize((width, height), Image.Resampling.NEAREST)
    return np.array(sized)


def _cut(view: StoredView, width: int, height: int) -> StoredView:
    """The view cut and resized to a picture of width × height."""
    own_width, own_height = view.image.width, view.image.height
    if (own_width, own_height) == (width, height):
        return view
    image = _encoded(fit_picture(decode_picture(view.image.encoded), width, height), view.image)
    mask = view.mask
    if mask is not None:
        levels = fit_picture(np.repeat(decode_gray(mask)[..., None], 3, 2), width, height)[..., 0]
        mask = _encoded_mask(levels > 127)
    return replace(
        view, image=image, matrix=fitted_matrix(view.matrix, own_width, own_height, width, height), mask=mask
    )


def _encoded_mask(shown: NDArray[np.bool_]) -> bytes:
    return encode_png(shown.astype(np.uint8) * 255)


def _projected(view: StoredView) -> Floats:
    """(N, 3) x, y for an image width of 1 and depth, of the points that the picture shows."""
    assert view.points is not None
    local = (view.points - view.c2w[:3, 3]) @ view.c2w[:3, :3] * (1, -1, -1)
    depth = local[:, 2:]
    seen = (local / np.where(depth > 0, depth, 1)) @ view.matrix.T
    high = view.image.height / view.image.width
    shown = (depth[:, 0] > 0) & (seen[:, :2] >= 0).all(1) & (seen[:, 0] < 1) & (seen[:, 1] < high)
    points: Floats = np.concatenate([seen[:, :2], depth], 1)[shown]
    return points[:: -(-len(points) // MOST_POINTS)] if len(points) > MOST_POINTS else points


def _encoded(picture: NDArray[np.uint8], before: EncodedImage) -> EncodedImage:
    """A photograph stays a JPEG, at little loss; what was coded without loss is so again."""
    height, width = picture.shape[:2]
    if not before.encoded.startswith(b"\xff\xd8"):
        return EncodedImage(encode_png(picture), width, height)
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=_QUALITY, subsampling=0)
    return EncodedImage(buffer.getvalue(), width, height)
