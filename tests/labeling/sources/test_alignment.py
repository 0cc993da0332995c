"""What surrounds a point in one picture is found in another, to a small part of a pixel."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from labeling.sources.scenes.alignment import lay_over

SIDE = 13  # pixels of a template with its border


def smooth_picture() -> np.ndarray:
    noise = np.random.default_rng(0).normal(size=(240, 240)).astype(np.float32)
    picture = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.asarray(128 + 40 * picture / picture.std(), np.float32)


def templates_at(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    half = SIDE // 2
    cut = [picture[y - half : y + half + 1, x - half : x + half + 1] for x, y in where]
    return np.stack(cut).reshape(len(where), -1)


@pytest.mark.parametrize("turn", [0, 70])
def test_points_are_found_in_a_picture_that_is_warped_and_darker(turn: int) -> None:
    picture = smooth_picture()
    matrix = cv2.getRotationMatrix2D((120, 120), turn, 1.0)
    matrix[:, :2] = np.array([[1.0, 0.15], [-0.05, 0.9]]) @ matrix[:, :2]
    moved = 0.7 * cv2.warpAffine(picture, matrix, (240, 240), flags=cv2.INTER_CUBIC) + 12
    where = np.stack(np.meshgrid(np.arange(70, 171, 10), np.arange(70, 171, 10)), -1).reshape(-1, 2)
    true = where @ matrix[:, :2].T + matrix[:, 2]
    start = np.broadcast_to(cv2.getRotationMatrix2D((0, 0), turn, 1.0)[:, :2], (len(where), 2, 2))
    off = np.random.default_rng(1).uniform(-0.8, 0.8, true.shape)
    found, alike = lay_over(moved, templates_at(picture, where), true + off, start)
    error = np.linalg.norm(found - true, axis=1)
    assert np.median(error) < 0.05 and (error[alike > 0.98] < 0.2).all()
    assert (alike > 0.98).mean() > 0.9


def test_points_that_are_not_there_and_those_without_texture_are_not_alike() -> None:
    picture = smooth_picture()
    where = np.array([[100, 100], [140, 90]])
    flat = np.full_like(picture, 90.0)
    upright = np.broadcast_to(np.eye(2), (2, 2, 2))
    for other, templates in ((picture[::-1].copy(), picture), (flat, picture), (picture, flat), (flat, flat)):
        found, alike = lay_over(other, templates_at(templates, where), where.astype(float), upright)
        assert np.isfinite(found).all() and (alike < 0.9).all()
