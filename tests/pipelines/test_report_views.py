"""A page about view sets: how good a set is, and one view as another camera sees it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import read_page

from labeling.sources.rendering import View, render_views
from labeling.sources.view_sets import ViewOptions
from pipelines.demo_data.scene import build_scene
from pipelines.ingest_job.workers import Workers
from pipelines.reports.page import report
from pipelines.reports.reprojection import agreement, reproject
from pipelines.views import views


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    build_scene(folder / "still-life.glb")
    return folder


@pytest.fixture(scope="module")
def turntable(mesh: Path) -> list[View]:
    return render_views(mesh / "still-life.glb", 12, 128, 0, "turntable")[:2]


def test_a_view_looks_through_the_next_camera_like_the_next_view(turntable: list[View]) -> None:
    one, other = turntable
    colors, inverse = reproject(one.image, one.inverse_depth, (one.c2w, other.c2w), (one.intrinsics, other.intrinsics))
    both = (inverse > 0) & (other.inverse_depth > 0)
    assert both.mean() > 0.15 and (agreement(inverse, other.inverse_depth) or 0) > 0.9
    off = np.abs(colors[both].astype(int) - other.image[both]).mean()
    assert off < 0.6 * np.abs(one.image[both].astype(int) - other.image[both]).mean()


def test_wrong_camera_or_unit_is_seen(turntable: list[View]) -> None:
    one, other = turntable
    turned = other.c2w.copy()
    turned[:3, 3] *= 1.3
    _, inverse = reproject(one.image, one.inverse_depth, (one.c2w, turned), (one.intrinsics, other.intrinsics))
    assert (agreement(inverse, other.inverse_depth) or 0) < 0.2
    _, inverse = reproject(one.image, one.inverse_depth / 2, (one.c2w, other.c2w), (one.intrinsics, other.intrinsics))
    assert (agreement(inverse, other.inverse_depth) or 0) < 0.2
    assert agreement(np.zeros((4, 4)), np.ones((4, 4))) is None


def test_page_tells_the_quality_of_a_set_and_draws_a_view_from_the_next(
    mesh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    map_anywhere = Workers.map

    def map_here(self: Workers, function: Any, calls: Any, on_cluster: bool, then: Any, **_: Any) -> Any:
        return map_anywhere(self, function, calls, False, then=then)

    monkeypatch.setattr(Workers, "map", map_here)  # its one scene needs no Ray
    views(str(mesh), str(tmp_path / "views"), ViewOptions(count=6, size=96, path="turntable"))
    page = read_page(report(str(tmp_path / "views")))
    assert "view 1 as view 2 sees it" in page.text
    assert "cameras from" in page.text and "of the distance" in page.text and "of a view" in page.text
    assert any((image["alt"] or "").startswith("view 1 seen from view 2") for image in page.all("img"))
