"""Charts of the page: round ticks, readable numbers, bounded size, and no number that is none."""

from __future__ import annotations

import pytest

from pipelines.reports.charts import camera_plan, line_chart, ticks
from pipelines.reports.numbers import number


def test_charts_have_readable_axes() -> None:
    assert ticks(0, 1.37, 5) == pytest.approx([0, 0.5, 1.0])
    assert ticks(10, 1000, 6) == [200, 400, 600, 800, 1000]
    assert [number(value) for value in (0, 0.00012, 0.1234, 12.34, 2911.4, 3.0, None)] == [
        *("0", "0.00012", "0.123", "12.3", "2,911", "3", "–")
    ]
    assert not line_chart([(1, float("nan"))], "loss", "loss")
    assert "nan" not in line_chart([(1, 1.0), (2, float("inf")), (3, 0.0)], "loss", "loss")
    assert "circle" in line_chart([(5, 1.0)], "loss", "loss"), "one point is a dot"
    long = line_chart([(float(step), 1.0) for step in range(100_000)], "loss", "loss")
    assert len(long) < 20_000
    assert "&lt;b&gt;" in line_chart([(1, 1.0), (2, 2.0)], "<b>", "<b>")


def test_invalid_cameras_give_no_plan() -> None:
    assert not camera_plan([[float("nan")] * 16], [[1.0] * 9])
    assert not camera_plan([[1.0] * 16], [[0.0] * 9])
