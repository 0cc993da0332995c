"""Numbers as people write them."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """A number with three significant digits and thousands apart, "–" for none."""
    if not is_number(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) >= 1000 or (float(value).is_integer() and abs(value) < 1e15):
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.2g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def two_decimals(value: Any) -> str:
    """A correlation, "–" for none."""
    return f"{value:.2f}" if is_number(value) else "–"


def duration(seconds: Any) -> str:
    """Seconds in the largest units that fit: 0.42 s, 7.5 s, 3 min 20 s, 2 h 05 min."""
    if not is_number(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
