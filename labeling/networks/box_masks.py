"""Masks of what lies in boxes, without a model that is named: people by mediapipe, all else by GrabCut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labeling.networks.pretrained import mediapipe_solution
from model.pictures import Picture

Mask = NDArray[np.bool_]
Corners = tuple[float, ...]  # x0, y0, x1, y1 in pixels of the picture

_AROUND = 0.15  # of a box's longer side: the margin that is looked at with it
_SMALL_SIDE = 96  # pixels that a box with its margin has at least for GrabCut, where the picture has them
_PERSON_SIDE = 256  # pixels of the square that mediapipe looks at
_LEAST_OF_BOX = 0.1  # share of a person's box: where mediapipe finds less, it has found nobody


class BoxMasks:
    """Cuts out what boxes show.

    working_side: pixels of the longer side that a picture is looked at in; iterations: of GrabCut; threshold: least
    share of person in a pixel; full_people: whether people are looked at in the full picture, and cut out by GrabCut
    where mediapipe finds nobody.
    """

    def __init__(self, working_side: int, iterations: int, threshold: float, full_people: bool) -> None:
        self.working_side = working_side
        self.iterations = iterations
        self.threshold = threshold
        self.full_people = full_people
        self._people: Any = mediapipe_solution("selfie_segmentation").SelfieSegmentation(model_selection=0)

    def of(self, picture: Picture, boxes: Sequence[tuple[Corners, bool]]) -> Iterator[Mask]:
        """(H, W) the pixels of what each box shows. boxes: corners, and whether it is a person."""
        small: Picture | None = None
        for corners, is_person in boxes:
            if not is_person:
                yield self.thing(picture, corners)
            elif self.full_people:
                yield self._person(picture, corners)
            else:
                small = self._small(picture) if small is None else small
                yield self._person_of_small(small, corners, picture)

    def _person(self, picture: Picture, corners: Corners) -> Mask:
        """A person in the full picture: mediapipe's mask of the square around the box, inside the box.

        Where it is empty, or next to, as of people who are bent or half hidden, GrabCut's.
        """
        import mmcv

        height, width = picture.shape[:2]
        x0, y0, x1, y1 = _pixels(corners, width, height)
        half = (0.5 + _AROUND) * max(x1 - x0, y1 - y0)
        across, down = (x0 + x1) / 2, (y0 + y1) / 2
        left, top = max(0, round(across - half)), max(0, round(down - half))
        right, bottom = min(width, round(across + half)), min(height, round(down + half))
        crop = picture[top:bottom, left:right]
        interpolation = "area" if max(crop.shape[:2]) > _PERSON_SIDE else "bilinear"
        square = mmcv.imresize(crop, (_PERSON_SIDE, _PERSON_SIDE), interpolation=interpolation)
        share = np.asarray(self._people.process(np.ascontiguousarray(square)).segmentation_mask)
        share = mmcv.imresize(share, (right - left, bottom - top), interpolation="bilinear")
        person = share[y0 - top : y1 - top, x0 - left : x1 - left] >= self.threshold
        if np.count_nonzero(person) < _LEAST_OF_BOX * person.size:
            return self.thing(picture, corners)
        full = np.zeros((height, width), bool)
        full[y0:y1, x0:x1] = person
        return full

    def _small(self, picture: Picture) -> Picture:
        import mmcv

        scale = min(1.0, self.working_side / max(picture.shape[:2]))
        return np.ascontiguousarray(mmcv.imrescale(picture, scale, interpolation="area") if scale < 1 else picture)

    def _person_of_small(self, small: Picture, corners: Corners, picture: Picture) -> Mask:
        """A person in a reduced picture: mediapipe's mask of the surroundings of the box, inside the box."""
        import mmcv

        height, width = small.shape[:2]
        fx, fy = width / picture.shape[1], height / picture.shape[0]
        x0, y0, x1, y1 = _pixels((corners[0] * fx, corners[1] * fy, corners[2] * fx, corners[3] * fy), width, height)
        around = _AROUND * max(x1 - x0, y1 - y0)
        window = np.array([max(0, x0 - around), max(0, y0 - around), min(width, x1 + around), min(height, y1 + around)])
        left, top, right, bottom = window.round().astype(int)
        crop = np.ascontiguousarray(mmcv.imcrop(small, np.array([left, top, right - 1, bottom - 1])))
        share = np.asarray(self._people.process(crop).segmentation_mask)
        person = np.zeros((height, width), bool)
        person[top : top + share.shape[0], left : left + share.shape[1]] = share >= self.threshold
        inside = np.zeros((height, width), bool)
        inside[y0:y1, x0:x1] = True
        return _resized(person & inside, picture.shape[1], picture.shape[0])

    def thing(self, picture: Picture, corners: Corners) -> Mask:
        """What is no person: GrabCut around its box, outside of which is background.

        It sees the box and a margin. Of a whole picture the background has all colors, those of a small object too.
        """
        import mmcv

        height, width = picture.shape[:2]
        x0, y0, x1, y1 = _pixels(corners, width, height)
        around = round(_AROUND * max(x1 - x0, y1 - y0))
        left, top = max(0, x0 - around), max(0, y0 - around)
        right, bottom = min(width, x1 + around), min(height, y1 + around)
        crop = picture[top:bottom, left:right]
        side = max(crop.shape[:2])
        # An object is as large as in a picture of working_side, and a small one larger.
        scale = min(1.0, max(self.working_side / max(height, width), _SMALL_SIDE / side))
        if scale < 1:
            crop = mmcv.imrescale(crop, scale, interpolation="area")
        fx, fy = crop.shape[1] / (right - left), crop.shape[0] / (bottom - top)
        inside = ((x0 - left) * fx, (y0 - top) * fy, (x1 - left) * fx, (y1 - top) * fy)
        cut = self._grab(np.ascontiguousarray(crop), _pixels(inside, crop.shape[1], crop.shape[0]))
        full = np.zeros((height, width), bool)
        full[top:bottom, left:right] = _resized(cut, right - left, bottom - top)
        return full

    def _grab(self, picture: Picture, box: tuple[int, int, int, int]) -> Mask:
        """What GrabCut finds inside a box, in pixels."""
        import cv2

        height, width = picture.shape[:2]
        x0, y0, x1, y1 = box
        mask = np.full((height, width), cv2.GC_BGD, np.uint8)
        mask[y0:y1, x0:x1] = cv2.GC_PR_FGD
        if (mask == cv2.GC_BGD).sum() < 0.02 * mask.size:  # the box fills the picture: its rim is the best guess
            rim = max(1, round(0.02 * min(height, width)))
            mask[:rim], mask[-rim:], mask[:, :rim], mask[:, -rim:] = (cv2.GC_PR_BGD,) * 4
            mask[0], mask[-1], mask[:, 0], mask[:, -1] = (cv2.GC_BGD,) * 4
        if not (mask == cv2.GC_PR_FGD).any():  # a box of two or three pixels
            return np.ones((height, width), bool)
        cv2.setRNGSeed(0)  # GrabCut begins with k-means, which draws its centers
        back, fore = np.zeros((1, 65)), np.zeros((1, 65))
        nowhere = (0, 0, 1, 1)  # the rectangle is not used when a mask is given
        cv2.grabCut(picture, mask, nowhere, back, fore, self.iterations, cv2.GC_INIT_WITH_MASK)
        cut = np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
        return cv2.morphologyEx(cut.astype(np.uint8), cv2.MORPH_OPEN, kernel).astype(bool)


def _resized(cut: Mask, width: int, height: int) -> Mask:
    import mmcv

    return np.asarray(mmcv.imresize(cut.astype(np.uint8) * 255, (width, height), interpolation="bilinear") > 127)


def _pixels(corners: Corners, width: int, height: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (round(value) for value in corners)
    x0, y0 = min(max(x0, 0), width - 1), min(max(y0, 0), height - 1)
    return x0, y0, min(max(x1, x0 + 1), width), min(max(y1, y0 + 1), height)
