"""Charts as inline SVG: no script, no fonts, colors by CSS class, so that they follow the page into dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from pipelines.reports.numbers import is_number, number, two_decimals

WIDTH, HEIGHT = 460, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 22, 24, 34
MAX_POINTS = 400
Points = Sequence[tuple[float, float]]


def line_chart(
    points: Points,
    label: str,
    unit: str,
    smooth: bool = True,
    top: float | None = None,
    others: Mapping[str, Points] | None = None,
    axis: str = "step",
) -> Markup:
    """Values over training steps, or what `axis` says: as measured, faint, and smoothed, strong.

    points: (step, value); label: what is measured, for readers of the page's text; unit: on the vertical axis;
    top: of that axis, to give several charts the same. others: CSS class of a line → what else to draw, smoothed too.
    Values that are not finite are left out.
    """
    points, more = _finite(points), {name: _finite(line) for name, line in (others or {}).items()}
    more = {name: line for name, line in more.items() if line}
    if not points and not more:
        return Markup("")
    points = points or next(iter(more.values()))
    steps, values = np.array(points, float).T
    means = smoothed(values) if smooth else values
    lines = {name: np.array(line, float).T for name, line in more.items()}
    every_x, every_y = np.concatenate([np.array([steps, values]), *lines.values()], axis=1)
    high = top or max(chart_top(each) for each in (values, *(line[1] for line in lines.values())))
    low = min(0.0, float(every_y.min()))
    x0, x1 = float(every_x.min()), float(every_x.max())
    if x0 == x1:
        x0, x1 = x0 - 1, x1 + 1
    inner = (WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM)

    def x(value: float) -> float:
        return _LEFT + (value - x0) / (x1 - x0) * inner[0]

    def y(value: float) -> float:
        return _TOP + (1 - (min(value, high) - low) / (high - low)) * inner[1]

    parts = []
    for tick in ticks(low, high, 5):
        line_y = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{line_y:.1f}" y2="{line_y:.1f}"/>')
        parts.append(f'<text class="axis end" x="{_LEFT - 7}" y="{line_y + 3.5:.1f}">{number(tick)}</text>')
    for tick in ticks(x0, x1, 6):
        parts.append(f'<text class="axis mid" x="{x(tick):.1f}" y="{HEIGHT - 18}">{number(tick)}</text>')
    parts.append(f'<text class="axis end" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}">{escape(axis)}</text>')
    parts.append(f'<text class="axis" x="4" y="12">{escape(unit)}</text>')
    own = {"raw": (steps, values), "line": (steps, means)} if smooth else {"line": (steps, values)}
    own |= {name: (line[0], smoothed(line[1]) if smooth else line[1]) for name, line in lines.items()}
    for name, (across, up) in own.items():
        if len(across) == 1:
            parts.append(f'<circle class="dot {name}" cx="{x(across[0]):.1f}" cy="{y(up[0]):.1f}" r="3"/>')
            continue
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in zip(*_thinned(across, up), strict=True))
        parts.append(f'<polyline class="{name}" points="{path}"/>')
    summary = f"{label}: {number(float(means[0]))} at {axis} {number(steps[0])}, {number(float(means[-1]))} at the end"
    return _svg(WIDTH, HEIGHT, summary, "chart", parts)


def _finite(points: Points) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def chart_top(values: Iterable[float]) -> float:
    """The top of a vertical axis that shows all values but the rarest spikes; 1 without finite values."""
    finite = np.array([value for value in values if math.isfinite(value)], float)
    if not finite.size:
        return 1.0
    high = max(float(np.quantile(finite, 0.995)), float(smoothed(finite).max()))
    return high * 1.05 if high > 0 else 1.0


def dot_strip(figure: Mapping[str, Any], baselines: Mapping[str, str]) -> Markup:
    """Correlations on one axis: a dot for each picture, a bar for the model's mean, a mark for each baseline.

    figure: as in evaluation.json; baselines: key in it → short name. Marks are explained by the page's legend.
    """
    single = [value for value in figure.get("per_picture") or () if is_number(value)]
    marks = {key: figure[key] for key in baselines if is_number(figure.get(key))}
    values = [*single, *marks.values(), *([figure["model"]] if is_number(figure.get("model")) else [])]
    if not values:
        return Markup("")
    low = math.floor(min(-0.1, *values) * 10) / 10
    width, height, left, right = WIDTH, 64, 14, 14

    def x(value: float) -> float:
        return left + (value - low) / (1 - low) * (width - left - right)

    parts = [f'<line class="grid" x1="{left}" x2="{width - right}" y1="30" y2="30"/>']
    for tick in ticks(low, 1, 6):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="10" y2="46"/>')
        parts.append(f'<text class="axis mid" x="{x(tick):.1f}" y="60">{number(tick)}</text>')
    parts += [f'<circle class="dot" cx="{x(value):.1f}" cy="30" r="4"/>' for value in single]
    for index, (key, value) in enumerate(marks.items()):
        parts.append(
            f'<path class="mark m{index}" d="M{x(value):.1f} 12v36"><title>{escape(baselines[key])}</title></path>'
        )
    if is_number(figure.get("model")):
        parts.append(f'<path class="mark model" d="M{x(figure["model"]):.1f} 8v44"><title>model</title></path>')
    others = "; ".join(f"{baselines[key]} {value:.2f}" for key, value in marks.items())
    summary = f"correlation of the model {two_decimals(figure.get('model'))}; {others}"
    return _svg(width, height, summary, "strip", parts)


def camera_plan(c2w: Sequence[Sequence[float]], intrinsics: Sequence[Sequence[float]]) -> Markup:
    """The cameras of a view set seen from above (z up): where each stands, and what lies in its field of view.

    c2w: 16 numbers a camera, OpenGL camera-to-world; intrinsics: 9 numbers a camera, for an image width of 1.
    """
    size, margin = 220, 26
    matrices = np.array(c2w, float).reshape(-1, 4, 4)
    focal = np.array(intrinsics, float).reshape(-1, 3, 3)[:, 0, 0]
    positions = matrices[:, :2, 3]
    if not (len(matrices) and np.isfinite(matrices).all() and np.isfinite(focal).all() and (focal > 0).all()):
        return Markup("")
    forward, rightward = -matrices[:, :2, 2], matrices[:, :2, 0]
    span = np.concatenate([positions, np.zeros((1, 2))])
    middle = (span.max(0) + span.min(0)) / 2
    reach = float(np.abs(span - middle).max()) or 1.0
    scale = (size / 2 - margin) / reach
    length = 0.42 * reach

    def at(point: Any) -> str:
        across, up = (np.asarray(point) - middle) * scale
        return f"{size / 2 + across:.1f},{size / 2 - up:.1f}"

    ox, oy = at((0, 0)).split(",")
    parts = [f'<path class="origin" d="M{ox} {oy}m-5 0h10m-5 -5v10"/>']
    for index, position in enumerate(positions):
        half = rightward[index] * 0.5 / focal[index]
        left, right = (position + length * (forward[index] + sign * half) for sign in (-1, 1))
        parts.append(f'<polygon class="view" points="{at(position)} {at(left)} {at(right)}"/>')
    for index, position in enumerate(positions):
        cx, cy = at(position).split(",")
        outward = position - middle
        tx, ty = at(position + outward / (np.linalg.norm(outward) or 1) * 13 / scale).split(",")
        parts.append(f'<circle class="dot" cx="{cx}" cy="{cy}" r="3.5"/>')
        parts.append(f'<text class="axis mid" x="{tx}" y="{float(ty) + 3.5:.1f}">{index + 1}</text>')
    return _svg(size, size, f"{len(positions)} cameras seen from above", "plan", parts)


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exponential moving average of values (N,), corrected for the bias of its start.

    Its time constant is a thirtieth of the curve.
    """
    keep = 1 - 1 / max(1.0, len(values) / 30)
    total = weight = 0.0
    averages = np.empty(len(values))
    for index, value in enumerate(values):
        total, weight = keep * total + float(value), keep * weight + 1
        averages[index] = total / weight
    return averages


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers from low to high."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MAX_POINTS points: means over equal parts of the curve."""
    if len(x) <= MAX_POINTS:
        return x, y
    ranges = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[part].mean() for part in ranges]), np.array([y[part].mean() for part in ranges])


def _svg(width: int, height: int, summary: str, kind: str, parts: Sequence[str]) -> Markup:
    """An SVG image of class `kind`; summary: its text for people who do not see it."""
    return Markup(  # noqa: S704 - numbers, and text that was escaped above
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(summary)}">'
        + "".join(parts)
        + "</svg>"
    )
