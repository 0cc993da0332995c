"""Loss and speed of a run as SVG pictures: as events of its checkpoints show them, and as they are now."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pipelines.dashboard.picture_files import keep_picture
from pipelines.jobs.folder import JobFolder, jobs_of
from pipelines.jobs.specification import TrainJob
from pipelines.reports.charts import HEIGHT, WIDTH
from pipelines.reports.curves import Chart
from pipelines.reports.overlays import Inliner
from pipelines.reports.run import describe_run

CURVES = "curves"  # the first part of the address of a run's curves as they are now
# Pixels that an asset page has for a picture among its metadata, and in its description.
METADATA_WIDTH, DESCRIPTION_WIDTH = 540, 730
_MARGIN = 10
_STYLE = (
    "svg{background:#fff;font-family:ui-sans-serif,system-ui,sans-serif}.grid{stroke:#e2e3df;stroke-width:1}"
    ".axis,.note{fill:#5c626d;font-size:11.5px}.title{fill:#1b1d22;font-size:14px;font-weight:600}"
    ".mid{text-anchor:middle}.end{text-anchor:end}.raw{fill:none;stroke:#9db4e6;stroke-width:1}"
    ".line{fill:none;stroke:#2457c5;stroke-width:2;stroke-linejoin:round}.dot{fill:#2457c5}"
)
_SMALL = ".axis,.note{font-size:16px}.title{font-size:19px}.line{stroke-width:3}"


def live_curves(address: str) -> bytes:
    """A run's loss and speed as they are now, as an SVG."""
    run = describe_run(address, Inliner(0), figures={}, tasks=False)
    caption = f"step {run.step:,}, loss {run.loss}, {run.speed_now} tokens/s" if run.charts else "no metrics yet"
    caption += _workers_now(address)
    return draw_charts(run.charts[:2], columns=2, width=DESCRIPTION_WIDTH, caption=caption).encode()


def _workers_now(address: str) -> str:
    """How many workers train the run now, by the recorded state of its job; "" where no job is running."""
    for job_folder in jobs_of(address):
        folder = JobFolder(job_folder)
        state, attempt = folder.state(), folder.attempt()
        if state and attempt and state.attempt == attempt.number and state.is_running:
            specification = folder.specification()
            if isinstance(specification, TrainJob) and specification.workers:
                count = specification.workers.count
                workers = str(count) if isinstance(count, int) else f"{count[0]} to {count[1]}"
                return f"; {workers} {'worker' if workers == '1' else 'workers'} on {attempt.target_name}"
    return ""


def save_charts(charts: Sequence[Chart], columns: int) -> str:
    """Draw charts as one SVG and keep it; its address, "" without charts."""
    return keep_picture(draw_charts(charts, columns).encode(), "svg") if charts else ""


def draw_charts(charts: Sequence[Chart], columns: int, width: int = METADATA_WIDTH, caption: str = "") -> str:
    """Charts as one SVG, in so many columns. width: of the whole, in pixels; caption: a line of text above."""
    cell_width, cell_height = WIDTH + 2 * _MARGIN, HEIGHT + 46
    rows = -(-len(charts) // columns)
    top = 36 if caption else 0
    right, bottom = cell_width * min(columns, max(len(charts), 1)), top + cell_height * rows
    parts = [f'<text class="note" x="{_MARGIN}" y="22">{escape(caption)}</text>'] if caption else []
    for index, chart in enumerate(charts):
        x, y = index % columns * cell_width + _MARGIN, top + index // columns * cell_height
        # Letters are larger here than in a report, so long numbers need the margin.
        opening = f'<svg x="{x}" y="{y + 32}" width="{WIDTH}" height="{HEIGHT}" overflow="visible" '
        inner = str(chart.svg).replace("<svg ", opening, 1)
        parts.append(f'<text class="title" x="{x}" y="{y + 18}">{chart.title}</text>{inner}')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom * width // right}" '
        f'viewBox="0 0 {right} {bottom}"><style>{_STYLE}{_SMALL if columns > 1 else ""}</style>{"".join(parts)}</svg>'
    )
