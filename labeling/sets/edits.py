"""Edits that labels can make of a picture: an object removed, recolored, its background changed, the style changed.

Each has its instruction, often one for the way back, and says how it was made: fillings are computed, not photographed.
H, W pixels; masks are (H, W) bool.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from model.conditions import degrade
from model.pictures import Picture

Mask = NDArray[np.bool_]
_SEARCH_SIDE, _STEP, _RING = 128, 4, 4  # pixels: the longer side where covers are looked for; steps; what must fit
_MOST_COVERS, _LEAST_COVER = 4, 0.3  # parts that cover a region, and the share that one of them covers at least
_GROWN = 0.012  # of the picture's sides, by which a mask is grown before it is filled: shadows and soft edges go too
_COLORS = {
    "red": 0,
    "orange": 24,
    "yellow": 55,
    "green": 120,
    "turquoise": 175,
    "blue": 225,
    "purple": 280,
    "pink": 325,
}
_PLAIN = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (16, 16, 16), "light blue": (176, 208, 236),
          "beige": (225, 208, 180), "dark green": (34, 72, 48)}  # fmt: skip


@dataclass(frozen=True)
class Region:
    """What the picture shows, and where."""

    name: str
    mask: Mask


@dataclass(frozen=True)
class Edit:
    """An edited picture of the same size. back: the instruction of the way back, "" where there is none."""

    picture: Picture
    instruction: str
    back: str
    method: str


def remove(picture: Picture, region: Region, random: np.random.Generator) -> Edit:
    """Fill the region with the colors around it, and with the texture of other parts of the picture, so shifted that
    their borders fit best (Telea 2004, Pérez et al. 2003)."""
    height, width = picture.shape[:2]
    hole = mask = _grown(region.mask)
    scale = min(1.0, _SEARCH_SIDE / max(height, width))
    small = (max(16, round(width * scale)), max(16, round(height * scale)))
    coarse = np.asarray(cv2.resize(np.ascontiguousarray(picture), small, interpolation=cv2.INTER_AREA), np.uint8)
    coarse_hole = cv2.resize(mask.astype(np.uint8), small, interpolation=cv2.INTER_AREA) > 0
    smooth = cv2.inpaint(coarse, coarse_hole.astype(np.uint8), 3, cv2.INPAINT_TELEA)
    covered = np.where(mask[..., None], cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC), picture)
    for _ in range(_MOST_COVERS):
        shift = _best_shift(coarse, coarse_hole)
        if shift is None:
            break
        across, down = round(shift[0] * width / small[0]), round(shift[1] * height / small[1])
        matrix = np.array([[1, 0, -across], [0, 1, -down]], np.float32)
        moved = _shifted(picture, matrix)
        taken = hole & (cv2.warpAffine((~mask).astype(np.uint8), matrix, (width, height)) > 0)
        if not taken.any():
            break
        covered = _cloned(covered, moved, taken)
        hole = hole & ~taken
        coarse_hole = cv2.resize(hole.astype(np.uint8), small, interpolation=cv2.INTER_AREA) > 0
    instruction = _one_of(random, "Remove the {}.", "Take the {} out of the picture.", "Erase the {}.")
    back = _one_of(random, "Add {}.", "Put {} into the picture.")
    return Edit(
        _blended(picture, covered, mask),
        instruction.format(region.name),
        back.format(with_article(region.name)),
        "remove: segmented region filled with colors around it and texture of other parts (cv2.inpaint, seamlessClone)",
    )


def recolor(picture: Picture, region: Region, random: np.random.Generator) -> Edit:
    """Turn the hue of the region to a named color that it does not have; its light stays."""
    hsv = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2HSV_FULL).astype(np.float32)
    inside = hsv[region.mask]
    angle = np.angle(np.sum(inside[:, 1] * np.exp(2j * np.pi * inside[:, 0] / 256))) % (2 * np.pi) * 180 / np.pi
    far = [name for name, hue in _COLORS.items() if abs((hue - angle + 180) % 360 - 180) > 40]
    color = far[int(random.integers(len(far)))]
    hsv[..., 0] = _COLORS[color] * 256 / 360
    # What is nearly gray takes on color too; what is colored keeps how much it varies.
    hsv[..., 1] = np.clip(0.55 * hsv[..., 1] + 90, 0, 255)
    turned = np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB_FULL), np.uint8)
    instruction = _one_of(random, "Make the {} {}.", "Change the color of the {} to {}.", "Turn the {} {}.")
    return Edit(
        _blended(picture, turned, region.mask),
        instruction.format(region.name, color),
        "",
        f"recolor: hue of the segmented region set to {_COLORS[color]}°",
    )


def background(picture: Picture, region: Region, random: np.random.Generator) -> Edit:
    """Change what lies outside the region: plain, blurred, or without color."""
    kind = ("plain", "blurred", "gray")[int(random.integers(2 if is_gray(picture) else 3))]
    name, back = region.name, ""
    if kind == "plain":
        color = list(_PLAIN)[int(random.integers(len(_PLAIN)))]
        changed = np.broadcast_to(np.array(_PLAIN[color], np.uint8), picture.shape)
        instruction = _one_of(random, f"Put the {name} before a plain {color} background.",
                              f"Make the background plain {color}.")  # fmt: skip
    elif kind == "blurred":
        blurred = cv2.GaussianBlur(np.ascontiguousarray(picture), (0, 0), max(picture.shape[:2]) / 50)
        changed = np.asarray(blurred, np.uint8)
        instruction, back = f"Blur everything behind the {name}.", "Bring the background into focus."
    else:
        changed = _gray(picture)
        instruction = f"Make everything but the {name} black and white."
        back = "Give the background its colors back."
    mask = ~region.mask
    return Edit(_blended(picture, changed, mask), instruction, back, f"background: {kind}, around the segmented region")


def restyle(picture: Picture, _: Region | None, random: np.random.Generator) -> Edit:
    """Change the look of the whole picture."""
    possible = [name for name in _STYLES if not (name in _OF_COLORS and is_gray(picture))]
    name = possible[int(random.integers(len(possible)))]
    change, instruction, back, method = _STYLES[name]
    return Edit(change(picture, random), instruction, back, f"style: {method}")


def is_gray(picture: Picture) -> bool:
    """Whether a picture has next to no color, so that none can be taken from it."""
    small = cv2.resize(np.ascontiguousarray(picture), (64, 64), interpolation=cv2.INTER_AREA).astype(np.int16)
    return bool(np.percentile(np.ptp(small, axis=2), 95) < 16)


# Kind → what makes it, and whether it needs a region.
KINDS: Mapping[str, tuple[Callable[[Picture, Region, np.random.Generator], Edit], bool]] = {
    "remove": (remove, True),
    "recolor": (recolor, True),
    "background": (background, True),
    "style": (restyle, False),
}


def regions_of(mask: NDArray[np.uint8], names: Sequence[str], area: tuple[float, float]) -> list[Region]:
    """The classes of a segmentation (0: none, i + 1: class i) whose share of the picture is within `area`."""
    counts = np.bincount(mask.ravel(), minlength=len(names) + 1)[1:] / mask.size
    return [
        Region(name, mask == index + 1)
        for index, (name, share) in enumerate(zip(names, counts.tolist(), strict=False))
        if area[0] <= share <= area[1]
    ]


def with_article(name: str) -> str:
    """A name as a sentence has it: "a dog", "an owl"."""
    return f"{'an' if name[:1].lower() in tuple('aeiou') else 'a'} {name}"


def _best_shift(picture: Picture, hole: Mask) -> tuple[int, int] | None:
    """The (across, down) from which the hole is covered, so that what surrounds it fits best, and most is covered.

    None where nothing of the picture covers a part of it.
    """
    height, width = hole.shape
    rows, columns = np.nonzero(hole)
    if not len(rows):
        return None
    ring = cv2.dilate(hole.astype(np.uint8), np.ones((2 * _RING + 1, 2 * _RING + 1), np.uint8)) - hole
    ring_rows, ring_columns = (axis[:: 1 + len(axis) // 800] for axis in np.nonzero(ring))
    hole_rows, hole_columns = rows[:: 1 + len(rows) // 800], columns[:: 1 + len(rows) // 800]
    levels, known = picture.astype(np.float32), ~hole
    best: tuple[float, tuple[int, int]] | None = None
    for down in range(-height, height, _STEP):
        for across in range(-width, width, _STEP):
            share = _known_share(known, hole_rows + down, hole_columns + across)[0]
            fits, there = _known_share(known, ring_rows + down, ring_columns + across)
            if share < _LEAST_COVER or fits < 0.5:
                continue
            y, x = ring_rows[there], ring_columns[there]
            difference = float(np.abs(levels[y + down, x + across] - levels[y, x]).mean())
            # Near parts are of the same light and distance more often than far ones.
            cost = difference + 40 * (1 - share) + 10 * (abs(across) + abs(down)) / (height + width)
            if best is None or cost < best[0]:
                best = cost, (across, down)
    return best and best[1]


def _known_share(known: Mask, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> tuple[float, Mask]:
    """How many of these places are known, and which."""
    inside = (rows >= 0) & (rows < known.shape[0]) & (columns >= 0) & (columns < known.shape[1])
    inside[inside] = known[rows[inside], columns[inside]]
    return float(inside.mean()), inside


def _shifted(picture: Picture, matrix: NDArray[np.float32]) -> Picture:
    size = (picture.shape[1], picture.shape[0])
    shifted = cv2.warpAffine(np.ascontiguousarray(picture), matrix, size, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(shifted, np.uint8)


def _cloned(picture: Picture, other: Picture, mask: Mask) -> Picture:
    """`other` within the mask, its gradients kept and its border those of the picture."""
    inner = mask.copy()
    inner[[0, -1]] = inner[:, [0, -1]] = False  # which cv2.seamlessClone cannot take
    rows, columns = np.nonzero(inner)
    if not len(rows) or min(np.ptp(rows), np.ptp(columns)) < 4:  # nor what is so narrow
        return np.where(mask[..., None], other, picture)
    # It takes the middle of the mask's box for the place that the box goes to.
    middle = (int(columns.min() + columns.max() + 1) // 2, int(rows.min() + rows.max() + 1) // 2)
    levels = inner.astype(np.uint8) * 255
    cloned = cv2.seamlessClone(other, np.ascontiguousarray(picture), levels, middle, cv2.NORMAL_CLONE)
    return np.where(mask[..., None], cloned, picture)


def _grown(mask: Mask) -> Mask:
    side = 2 * max(1, round(_GROWN * max(mask.shape))) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def _blended(picture: Picture, other: NDArray[np.uint8], mask: Mask) -> Picture:
    """`other` within the mask, whose border is soft over some pixels."""
    spread = max(picture.shape[:2]) / 400
    share = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), spread)[..., None]
    return np.rint(picture + share * (other.astype(np.float32) - picture)).astype(np.uint8)


def _gray(picture: Picture, _: object = None) -> Picture:
    levels = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    return np.repeat(levels[..., None], 3, axis=2)


def _sepia(picture: Picture, _: object) -> Picture:
    tones = np.array([[0.393, 0.769, 0.189], [0.349, 0.686, 0.168], [0.272, 0.534, 0.131]], np.float32)
    return np.clip(picture.astype(np.float32) @ tones.T, 0, 255).astype(np.uint8)


def _dark(picture: Picture, _: object) -> Picture:
    return np.rint(255 * (picture / 255.0) ** 1.8 * 0.6).astype(np.uint8)


def _grain(picture: Picture, random: np.random.Generator) -> Picture:
    noise = random.standard_normal(picture.shape[:2]).astype(np.float32)[..., None]
    return np.clip(picture + 22 * noise, 0, 255).astype(np.uint8)


def _sketch(picture: Picture, _: object) -> Picture:
    """Each level divided by that of its surroundings: lines remain."""
    levels = _gray(picture)[..., 0]
    around = cv2.GaussianBlur(levels, (0, 0), max(2.0, max(levels.shape) / 120))
    return np.repeat(cv2.divide(levels, np.maximum(around, 1), scale=250)[..., None], 3, axis=2)


def _degraded(kind: str) -> Callable[[Picture, np.random.Generator], Picture]:
    return lambda picture, random: degrade(picture, kind, int(random.integers(1 << 31)))


_STYLES: Mapping[str, tuple[Callable[[Picture, np.random.Generator], Picture], str, str, str]] = {
    "gray": (_gray, "Turn it into a black-and-white photograph.", "Colorize the photograph.", "without color"),
    "sepia": (_sepia, "Give it a sepia tone.", "Remove the sepia tone.", "sepia matrix"),
    "dark": (_dark, "Make it darker, as in the evening.", "Brighten the picture.", "gamma 1.8, 60 % of the light"),
    "grain": (_grain, "Add film grain.", "Remove the noise.", "Gaussian noise"),
    "sketch": (_sketch, "Turn it into a pencil drawing.", "", "levels divided by their surroundings"),
    "blur": (_degraded("deblurring"), "Blur the picture.", "Sharpen the picture.", "as for the task deblurring"),
    "coarse": (_degraded("upscaling"), "Make it look like a picture of low resolution.", "Increase the resolution.",
               "as for the task upscaling"),
}  # fmt: skip


_OF_COLORS = ("gray", "sepia")  # styles that take colors away


def _one_of(random: np.random.Generator, *texts: str) -> str:
    return texts[int(random.integers(len(texts)))]
