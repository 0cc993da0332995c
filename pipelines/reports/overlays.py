"""Labels drawn over their pictures, small enough to lie inside a page: what a person looks at, not what a model sees.

Everything is drawn at the size it is shown in, so that lines and names stay sharp. h, w are pixels of a thumbnail.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.conditions import CONDITION_READS, DEGRADATIONS, condition_picture, rgb_of
from model.inputs import InputError
from model.pictures import Picture, decode_gray, decode_picture, fit_picture

SIDE = 256
UNKNOWN = (96, 100, 108)  # the color of pixels without depth
EDGE = (255, 214, 10)
_COLOR = re.compile(r"#[0-9A-Fa-f]{6}")
_PLAIN = "#808080"
_FACE = "#FFD700"
_DEGRADED = tuple(f"degraded-{kind}" for kind in DEGRADATIONS)
# What is drawn of a row, and the columns that it takes.
DRAWN = {**CONDITION_READS, "faces": ("faces.boxes",), **{group: (f"{group}.picture",) for group in _DEGRADED}}


@dataclass(frozen=True)
class Chip:
    """An entry of a legend: a class and the color it is drawn in."""

    text: str
    color: str = ""


@dataclass(frozen=True)
class Drawing:
    """One label over its picture, ready for the page.

    source: data URI, "" where there is nothing to show, and then `note` says why. scale: of depth, (far, near).
    """

    title: str
    source: str = ""
    alt: str = ""
    width: int = 0
    height: int = 0
    chips: Sequence[Chip] = ()
    note: str = ""
    scale: tuple[str, str] | None = None


@dataclass
class Inliner:
    """Turns pictures into data URIs and counts their characters.

    limit: the number of characters from which on `full` is true, so that callers leave out further pictures.
    """

    limit: int = 8 << 20
    used: int = field(default=0, init=False)

    @property
    def full(self) -> bool:
        """Whether the pictures take as many characters as the limit."""
        return self.used >= self.limit

    def __call__(self, picture: Picture, sharp: bool = False) -> str:
        """The data URI of a picture (h, w, 3): JPEG, or PNG where it is `sharp`, as drawings and small samples are."""
        from PIL import Image

        buffer = io.BytesIO()
        image = Image.fromarray(np.ascontiguousarray(picture))
        if sharp:
            image.save(buffer, "PNG", optimize=True)
        else:
            image.save(buffer, "JPEG", quality=84, optimize=True)
        text = f"data:image/{'png' if sharp else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"
        self.used += len(text)
        return text


def thumbnail(picture: Picture, side: int = SIDE) -> Picture:
    """A (H, W, 3) picture whose longer side is at most `side`."""
    from PIL import Image

    height, width = picture.shape[:2]
    if max(height, width) <= side:
        return picture
    size = _fit(width, height, side)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS), np.uint8)


def inline_file(data: bytes, inline: Inliner, alt: str, title: str = "", side: int = SIDE) -> Drawing:
    """A picture file as a Drawing; bytes that are no picture give one that says so."""
    from PIL import UnidentifiedImageError

    try:
        small = thumbnail(decode_picture(data), side)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError):
        return Drawing(title, note="not a readable picture")
    height, width = small.shape[:2]
    # Small samples become PNG: they show what the model made, without artifacts of JPEG.
    return Drawing(title, inline(small, sharp=max(width, height) <= 128), alt, width, height)


def draw_label(group: str, row: Mapping[str, Any], picture: Picture, inline: Inliner, subject: str) -> Drawing:
    """The label of a row ("group.column" → value) over its thumbnail.

    picture: (h, w, 3) thumbnail; subject: what the picture is called in the alternative text. A label in error, or
    one that does not fit its picture, gives a Drawing without a picture and with the reason.
    """
    if row.get(f"{group}.error"):
        return Drawing(group, note=f"no label: {row[f'{group}.error']}")
    if any(row.get(column) is None for column in DRAWN[group]):
        return Drawing(group, note="not labeled yet")
    chips: Sequence[Chip] = ()
    note, scale = "", None
    try:
        if group == "boxes":
            canvas, chips = _boxes(row, picture)
        elif group == "segmentation":
            canvas, chips = _mask(row, picture)
        elif group == "pose":
            canvas, note = _skeleton(row, picture)
        elif group == "edges":
            canvas = _edges(row, picture)
        elif group == "depth":
            canvas, scale, note = _depth(row, picture)
        elif group == "faces":
            canvas, chips = _faces(row, picture)
        elif group in _DEGRADED:
            canvas = fit_picture(decode_picture(row[f"{group}.picture"]), picture.shape[1], picture.shape[0])
        else:
            canvas = _as_condition(group, row, picture)
    except (KeyError, ValueError, TypeError, IndexError, OSError, SyntaxError) as error:
        return Drawing(group, note=f"cannot be drawn: {error}")
    except InputError as error:  # of a condition that another package draws
        return Drawing(group, note=str(error))
    if group in ("boxes", "segmentation", "faces") and not chips:
        note = "nothing found"
    caption = ", ".join(dict.fromkeys(chip.text for chip in chips)) or note
    alt = f"{group} of {subject}" + (f": {caption}" if caption else "")
    height, width = canvas.shape[:2]
    return Drawing(group, inline(canvas), alt, width, height, chips, note, scale)


def _as_condition(group: str, row: Mapping[str, Any], picture: Picture) -> Picture:
    """A label as the model sees it, at the size of a thumbnail."""
    whole = condition_picture(group, row, row["images.width"], row["images.height"])
    return fit_picture(whole, picture.shape[1], picture.shape[0])


@cache
def depth_colors() -> NDArray[np.uint8]:
    """(256, 3): the colors from far to near."""
    from matplotlib import colormaps

    return (np.asarray(colormaps["magma"](np.linspace(0.04, 0.98, 256)))[:, :3] * 255).round().astype(np.uint8)


def depth_gradient() -> str:
    """Write the colors as stops of a CSS gradient."""
    colors = depth_colors()[np.linspace(0, 255, 9).astype(int)]
    return ", ".join(f"rgb({r} {g} {b})" for r, g, b in colors.tolist())


def _boxes(row: Mapping[str, Any], picture: Picture) -> tuple[Picture, list[Chip]]:
    from PIL import Image, ImageDraw, ImageFont

    image = Image.fromarray(picture.copy())
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(11)
    boxes = row["boxes.boxes"]
    names = [str(name)[:40] for name in row["boxes.names"]]
    colors = [_color(color) for color in row["boxes.colors"]]
    scores = row.get("boxes.scores") or [None] * len(boxes)
    fit = (image.width / row["images.width"], image.height / row["images.height"])
    corners = [(box["x0"] * fit[0], box["y0"] * fit[1], box["x1"] * fit[0], box["y1"] * fit[1]) for box in boxes]
    order = sorted(range(len(boxes)), key=lambda i: -(corners[i][2] - corners[i][0]) * (corners[i][3] - corners[i][1]))
    for index in order:
        x0, y0, x1, y1 = corners[index]
        if x1 > x0 and y1 > y0:
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colors[index], width=2)
    name_boxes: list[tuple[float, float, float, float]] = []
    for index in order:  # names come last, so that no line goes through them
        x0, y0, *_ = corners[index]
        left, top, right, bottom = pen.textbbox((0, 0), names[index], font=font)
        width, height = right - left + 6, bottom - top + 5
        x = min(max(x0, 0), max(image.width - width, 0))
        y = y0 - height if y0 >= height else max(y0, 0)
        while any(x < x3 and x2 < x + width and y < y3 and y2 < y + height for x2, y2, x3, y3 in name_boxes):
            y += height  # so that no name hides another; each step passes at least one of them, so this ends
        name_boxes.append((x, y, x + width, y + height))
        pen.rectangle((x, y, x + width, y + height), fill=colors[index])
        pen.text((x + 3 - left, y + 2 - top), names[index], font=font, fill=_ink(colors[index]))
    chips = [
        Chip(name if score is None else f"{name} {score:.2f}", color)
        for name, color, score in zip(names, colors, scores, strict=True)
    ]
    return np.asarray(image, np.uint8), chips


def _faces(row: Mapping[str, Any], picture: Picture) -> tuple[Picture, list[Chip]]:
    """Boxes, and the five points of each."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(picture.copy())
    pen = ImageDraw.Draw(image)
    fit = (image.width / row["images.width"], image.height / row["images.height"])
    for box in row["faces.boxes"]:
        x0, y0, x1, y1 = (box[key] * fit[key[0] == "y"] for key in ("x0", "y0", "x1", "y1"))
        if x1 > x0 and y1 > y0:
            pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_FACE, width=2)
    for points in row.get("faces.landmarks") or ():
        for point in points:
            x, y = point["x"] * fit[0], point["y"] * fit[1]
            pen.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=_FACE)
    scores = (row.get("faces.scores") or [None] * len(row["faces.boxes"]))[: len(row["faces.boxes"])]
    return np.asarray(image, np.uint8), [Chip("face" if one is None else f"face {one:.2f}", _FACE) for one in scores]


def _mask(row: Mapping[str, Any], picture: Picture) -> tuple[Picture, list[Chip]]:
    mask = _nearest(decode_gray(row["segmentation.mask"]), picture)
    names = [str(name) for name in row["segmentation.names"]]
    colors = [_color(color) for color in row["segmentation.colors"]]
    palette = np.array([(0, 0, 0), *map(rgb_of, colors)], np.float32)
    region = mask > 0
    canvas = picture.astype(np.float32)
    canvas[~region] = canvas[~region] * 0.6 + 40  # darker where there is no class
    canvas[region] = canvas[region] * 0.45 + palette[mask[region]] * 0.55
    edge = np.zeros_like(region)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    canvas[edge] = 255
    chips = dict.fromkeys(Chip(name, color) for name, color in zip(names, colors, strict=True))
    return canvas.clip(0, 255).astype(np.uint8), list(chips)


def _skeleton(row: Mapping[str, Any], picture: Picture) -> tuple[Picture, str]:
    skeleton = decode_picture(row["pose.skeleton"])
    small = _area(skeleton, picture).astype(np.float32)
    canvas = picture.astype(np.float32) * 0.5
    # `cover` is the share of each pixel that lines take. Limbs are dim by convention, so they are brightened here.
    cover = _area(np.repeat((skeleton.max(2) > 0)[..., None], 3, 2).astype(np.uint8) * 255, picture) / np.float32(255)
    canvas = canvas * (1 - cover) + np.minimum(small * 1.5, 255)
    people = row.get("pose.keypoints")
    count = len(people) if people is not None else None
    note = "" if count is None else "nobody found" if count == 0 else f"{count} {'person' if count == 1 else 'people'}"
    return canvas.clip(0, 255).astype(np.uint8), note


def _edges(row: Mapping[str, Any], picture: Picture) -> Picture:
    cover = _area(np.repeat(decode_gray(row["edges.edges"])[..., None], 3, 2), picture) / np.float32(255)
    gray = picture.mean(2, keepdims=True) * 0.4
    return (gray * (1 - cover) + np.array(EDGE, np.float32) * cover).clip(0, 255).astype(np.uint8)


def _depth(row: Mapping[str, Any], picture: Picture) -> tuple[Picture, tuple[str, str] | None, str]:
    depth = _nearest(decode_gray(row["depth.depth"]), picture)
    canvas = depth_colors()[(depth >> 8).astype(np.uint8)]
    hatched = (np.add.outer(np.arange(depth.shape[0]), np.arange(depth.shape[1])) // 4 % 2).astype(np.uint8) * 14
    unknown = np.array(UNKNOWN, np.uint8) + hatched[..., None]
    canvas = np.where((depth == 0)[..., None], unknown, canvas)
    far, near = row.get("depth.far"), row.get("depth.near")
    scale = (f"{far:.3g}", f"{near:.3g}") if far is not None and near is not None else ("", "")
    missing = float((depth == 0).mean())
    notes = [str(row["depth.method"])] if row.get("depth.method") else []
    notes += [f"{missing:.0%} unknown"] if missing >= 0.005 else []
    return canvas, scale, ", ".join(notes)


def _nearest(labels: NDArray[Any], like: Picture) -> NDArray[Any]:
    """Labels (H, W) at the size (h, w) of a thumbnail, each the nearest one, without interpolation."""
    height, width = like.shape[:2]
    rows = (np.arange(height) + 0.5) * labels.shape[0] / height
    columns = (np.arange(width) + 0.5) * labels.shape[1] / width
    return labels[rows.astype(int)[:, None], columns.astype(int)]


def _area(picture: Picture, like: Picture) -> Picture:
    """A picture at the size of a thumbnail, by means over areas."""
    import cv2

    height, width = like.shape[:2]
    return np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    scale = side / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _color(code: Any) -> str:
    """A color as it may stand in a style, whatever a shard holds."""
    return code if isinstance(code, str) and _COLOR.fullmatch(code) else _PLAIN


def _ink(code: str) -> str:
    red, green, blue = rgb_of(code)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
