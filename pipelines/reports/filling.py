"""Templates filled with values: every page that reports make."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipelines.reports.numbers import number
from pipelines.reports.overlays import depth_gradient

TEMPLATES = Path(__file__).parent / "templates"


def written_now() -> str:
    """The time, as pages say when they were written."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def fill_template(template: str, **values: Any) -> str:
    """A page as HTML. All text is escaped: names and captions come from anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # trim_blocks and lstrip_blocks: thousands of small elements, none of them padded.
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    return environment.get_template(template).render(depth_gradient=depth_gradient(), **values)
