"""Captions: written by an image-to-text model, or put together from what other labels and the source say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from labeling.labeler import Row, required
from labeling.networks.text_writer import WriterLabeler
from model.inputs import one_line
from model.pictures import Picture

Point = Mapping[str, float]  # x, y in pixels, score
Box = Mapping[str, float]  # x0, y0, x1, y1 in pixels

# Part of the recipe where a model is named: American spelling would make all its captions stale.
_INSTRUCTION = "Describe this picture in 100 to 150 words: what is in it, where, its colours, light and style."
_SURE = 0.6  # least score of a point of the body that a sentence may rest on
_MOST_PLACES = 4  # classes whose place is described, the largest first
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PLURALS = {"person": "people", "knife": "knives", "mouse": "mice", "sheep": "sheep"}
# What is counted of words without a singular.
_PARTS = {"skis": "pair", "scissors": "pair", "broccoli": "piece"}
# Shoulders, hips, knees, ankles, wrists, eyes: left and right in mediapipe's 33 points and in COCO's 17.
_BODIES = {
    33: {"shoulders": (11, 12), "hips": (23, 24), "knees": (25, 26), "ankles": (27, 28), "wrists": (15, 16),
         "eyes": (2, 5)},
    17: {"shoulders": (5, 6), "hips": (11, 12), "knees": (13, 14), "ankles": (15, 16), "wrists": (9, 10),
         "eyes": (1, 2)},
}  # fmt: skip
# Upper ends of hue, in degrees, of colors that are neither dark, pale nor gray.
_HUES = ((15, "red"), (40, "orange"), (68, "yellow"), (165, "green"), (195, "turquoise"), (255, "blue"),
         (290, "purple"), (340, "pink"), (361, "red"))  # fmt: skip


class CaptionLabeler(WriterLabeler):
    """What an image shows, as a text that claims nothing unknown."""

    name = "caption"
    version = 1
    reads: tuple[str, ...] = (
        "images.image",
        "images.text",
        "boxes.boxes",
        "boxes.names",
        "boxes.scores",
        "pose.keypoints",
    )
    network_reads = ("images.image",)
    packages: tuple[str, ...] = ("mmcv",)
    schema = pa.schema([("caption", pa.string())])

    class Parameters(WriterLabeler.Parameters):
        """Those of a model that writes, where one is named; threshold: least score of an object that a composed caption
        speaks of."""

        prompt: str = _INSTRUCTION
        threshold: float = Field(0.6, ge=0, le=1)

    parameters: Parameters

    def __init__(self, group: str, parameters: BaseModel) -> None:
        super().__init__(group, parameters)
        if self.parameters.model:
            self.packages = ()

    @property
    def model(self) -> str:
        return self.written_by or "composed"

    def columns_of(self, text: str) -> Row:
        return {"caption": text}

    def label_row(self, row: Row) -> Row:
        if self.has_network:
            return super().label_row(row)
        required(row, "images.image", "boxes.boxes", "pose.keypoints")
        return {"caption": compose(np.asarray(row["images.image"]), row, self.parameters.threshold)}


def compose(picture: Picture, row: Row, threshold: float) -> str:
    """Sentences from the source's text, detected objects and where they are, poses, and the picture's colors."""
    height, width = picture.shape[:2]
    sentences = []
    if text := one_line(row["images.text"] or ""):
        sentences.append(text if text.endswith((".", "!", "?")) else f"{text}.")
    objects: dict[str, list[Box]] = {}
    for box, name, score in zip(row["boxes.boxes"], row["boxes.names"], row["boxes.scores"], strict=True):
        if score >= threshold:
            objects.setdefault(name, []).append(box)
    if objects:
        kinds = sorted(objects, key=lambda name: -max(_area(box) for box in objects[name]))
        sentences.append(f"The picture shows {_listed([_amount(len(objects[name]), name) for name in kinds])}.")
        sentences += [_placed(name, objects[name], width, height) for name in kinds[:_MOST_PLACES]]
    sentences += _poses(row["pose.keypoints"], height)
    sentences += _looks(picture)
    return " ".join(sentences)


def _amount(count: int, name: str) -> str:
    if name in _PARTS:
        return f"{_amount(count, _PARTS[name])} of {name}"
    if count == 1:
        return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
    return f"{_COUNTS[count] if count < len(_COUNTS) else count} {_plural(name)}"


def _plural(name: str) -> str:
    ending = "es" if name.endswith(("s", "x", "ch", "sh")) else "s"
    return _PLURALS.get(name, f"{name}{ending}")


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _area(box: Box) -> float:
    return (box["x1"] - box["x0"]) * (box["y1"] - box["y0"])


def _placed(name: str, boxes: Sequence[Box], width: int, height: int) -> str:
    """Where the objects of a class lie, and how large a single one is."""
    sides = {_side(box, width) for box in boxes}
    if len(boxes) > 1:
        place = sides.pop() if len(sides) == 1 else "in different parts of the picture"
        return f"The {_plural(name) if name not in _PARTS else name} are {place}."
    box, verb = boxes[0], "are" if name in _PARTS and name.endswith("s") else "is"
    share = _area(box) / (width * height)
    if share > 0.6:
        return f"The {name} {'fill' if verb == 'are' else 'fills'} most of the picture."
    middle = (box["y0"] + box["y1"]) / 2 / height
    part = ", near the top" if middle < 0.3 else ", near the bottom" if middle > 0.7 else ""
    return f"The {name} {verb} {'small, and ' if share < 0.03 else ''}{sides.pop()}{part}."


def _side(box: Box, width: int) -> str:
    if box["x1"] - box["x0"] > 0.75 * width:
        return "across the whole width"
    center = (box["x0"] + box["x1"]) / 2 / width
    return "on the left" if center < 0.38 else "on the right" if center > 0.62 else "in the middle"


def _poses(people: Sequence[Sequence[Point]], height: int) -> list[str]:
    """What the people do whose points are visible."""
    known = [person for person in people if len(person) in _BODIES]
    sentences = []
    for does, do, count in (
        ("stands upright", "stand upright", sum(_stands(person) for person in known)),
        ("has an arm raised", "have an arm raised", sum(_raises_arm(person) for person in known)),
        ("is cut off above the knees", "are cut off above the knees", sum(_is_cut(person, height) for person in known)),
    ):
        if count:
            number = _COUNTS[count] if count < len(_COUNTS) else str(count)
            sentences.append(
                f"{number.capitalize()} {'person' if count == 1 else 'people'} {does if count == 1 else do}."
            )
    return sentences


def _points(person: Sequence[Point], part: str) -> list[Point]:
    return [person[index] for index in _BODIES[len(person)][part] if person[index]["score"] >= _SURE]


def _stands(person: Sequence[Point]) -> bool:
    """Whether shoulders, hips, knees and ankles are all visible, one above the other and at the distances of a body."""
    parts = [_points(person, part) for part in ("shoulders", "hips", "knees", "ankles")]
    if any(len(part) < 2 for part in parts):
        return False
    heights = np.array([np.mean([point["y"] for point in part]) for part in parts])
    steps, length = np.diff(heights), heights[-1] - heights[0]
    across = np.ptp([np.mean([point["x"] for point in part]) for part in parts])
    # Sitting and kneeling shorten one of the three; leaning and lying spread them across.
    return bool(length > 0 and (steps > 0.18 * length).all() and across < 0.25 * length)


def _raises_arm(person: Sequence[Point]) -> bool:
    """Whether a wrist lies above the eyes, of a person whose shoulders lie below them."""
    eyes, wrists, shoulders = (_points(person, part) for part in ("eyes", "wrists", "shoulders"))
    if not (eyes and wrists and shoulders):
        return False
    top = min(point["y"] for point in eyes)
    return min(point["y"] for point in wrists) < top < min(point["y"] for point in shoulders)


def _is_cut(person: Sequence[Point], height: int) -> bool:
    """Whether both shoulders are visible, and both knees lie below the picture."""
    knees = [person[index] for index in _BODIES[len(person)]["knees"]]
    return len(_points(person, "shoulders")) == 2 and all(knee["y"] > height for knee in knees)


def _looks(picture: Picture) -> list[str]:
    """Colors, brightness and contrast, from the pixels."""
    import mmcv

    small = np.asarray(mmcv.imresize(picture, (64, 64), interpolation="area"), np.float64).reshape(-1, 3) / 255
    light = small.mean(axis=1)
    tone = "dark" if light.mean() < 0.27 else "bright" if light.mean() > 0.7 else ""
    flat = "low in contrast" if light.std() < 0.08 else ""
    about = [part for part in (tone, flat) if part]
    if np.percentile(np.ptp(small, axis=1), 99) < 0.06:  # one colored thing is enough to make it a color picture
        return [f"The picture is {_listed(['black and white', *about])}."]
    names, counts = np.unique(_colors(small), return_counts=True)
    order = sorted(zip(-counts, names, strict=True))
    main = [str(name) for share, name in order if -share >= 0.12 * len(small)][:3]
    # "colour" is what version 1 wrote: another spelling would be another caption under the same recipe.
    sentences = (
        [f"The picture's main {'colour is' if len(main) == 1 else 'colours are'} {_listed(main)}."] if main else []
    )
    return [*sentences, f"It is {_listed(about)}."] if about else sentences


def _colors(pixels: NDArray[np.float64]) -> NDArray[np.str_]:
    """An everyday name of each color, (N, 3) in 0…1. Hue, saturation and value are those of the module colorsys."""
    most, least = pixels.max(axis=1), pixels.min(axis=1)
    span = most - least
    is_gray = span == 0
    saturation = span / np.where(is_gray, 1.0, most)
    away = (most[:, None] - pixels) / np.where(is_gray, 1.0, span)[:, None]  # of each channel from the strongest
    red, green, blue = away.T
    sector = np.where(
        pixels[:, 0] == most, blue - green, np.where(pixels[:, 1] == most, 2 + red - blue, 4 + green - red)
    )
    hue = np.where(is_gray, 0.0, sector / 6 % 1) * 360
    is_warm = (hue >= 12) & (hue < 55)
    names = np.array([name for _, name in _HUES])[np.digitize(hue, [end for end, _ in _HUES])]
    return np.select(
        [
            most < 0.18,
            (saturation < 0.15) & (most > 0.85),
            saturation < 0.15,
            is_warm & (saturation < 0.45) & (most > 0.6),
            is_warm & (most < 0.7),
        ],
        ["black", "white", "gray", "beige", "brown"],
        names,
    )
