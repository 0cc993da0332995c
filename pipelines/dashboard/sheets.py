"""Pictures for asset pages: contact sheets of labels, loss curves, samples of a run.

They are files in the dashboard's folder, named by their content, and shown by their address: Dagster shows Markdown on
a page only where it is short, and keeps every event for good, so pictures do not belong into it.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from cluster.user_data import write_whole
from labeling.dataset import Dataset
from model.conditions import CONDITION_READS
from model.pictures import Picture, decode_picture
from pipelines.dashboard.fingerprints import Footers
from pipelines.dashboard.tracked_assets import folder
from pipelines.jobs.folder import JobFolder, jobs_of
from pipelines.jobs.specification import TrainJob
from pipelines.reports.charts import HEIGHT, WIDTH
from pipelines.reports.gallery import joined_rows, pick_rows, row_values, view_of_set
from pipelines.reports.overlays import Drawing, Inliner, draw_label, thumbnail
from pipelines.reports.run import Chart, RunSection, describe_run

PICTURES = "pictures"  # the folder, and the first part of the address they are served at
MOST_BYTES = 1 << 30
CURVES = "curves"  # the first part of the address of a run's curves as they are now
PAGE, WIDE = 540, 730  # pixels that an asset page has for a picture among its metadata, and in its description
TILES, TILE, LINES = 12, 166, 4
SETS, VIEWS, ERRORS = 2, 6, 3
_MARGIN, _LINE = 10, 15
_PAPER, _INK, _SOFT = (255, 255, 255), (27, 29, 34), (92, 98, 109)
_STYLE = (
    "svg{background:#fff;font-family:ui-sans-serif,system-ui,sans-serif}.grid{stroke:#e2e3df;stroke-width:1}"
    ".axis,.note{fill:#5c626d;font-size:11.5px}.title{fill:#1b1d22;font-size:14px;font-weight:600}"
    ".mid{text-anchor:middle}.end{text-anchor:end}.raw{fill:none;stroke:#9db4e6;stroke-width:1}"
    ".line{fill:none;stroke:#2457c5;stroke-width:2;stroke-linejoin:round}.dot{fill:#2457c5}"
)
_SMALL = ".axis,.note{font-size:16px}.title{font-size:19px}.line{stroke-width:3}"


@dataclass
class Tile:
    """A picture of a sheet, None where there is none, with a line above and some below."""

    picture: Picture | None
    title: str
    text: Sequence[str] = ()


@dataclass
class _Collector(Inliner):
    """Takes the pictures that drawings would put into a page; a drawing's source is then the picture's number."""

    pictures: list[Picture] = field(default_factory=list, init=False)

    def __call__(self, picture: Picture, sharp: bool = False) -> str:
        self.pictures.append(picture)
        return str(len(self.pictures) - 1)

    def tile(self, drawing: Drawing, title: str) -> Tile:
        chips = ", ".join(dict.fromkeys(chip.text for chip in drawing.chips))
        picture = self.pictures[int(drawing.source)] if drawing.source else None
        return Tile(picture, title, [text for text in (chips, drawing.note) if text])


def contact_sheet(dataset: Dataset, group: str, shards: Iterable[str], footers: Footers) -> str:
    """Some rows of a group, spread over the shards, each with its label; the sheet's address, "" without rows."""
    if "images" not in footers:
        return ""
    there = [shard for shard in shards if shard in footers["images"] and shard in footers[group]]
    chosen = {shard: footers["images"][shard] for shard in there}
    read = {name: footers[name] for name in ("images", group)}
    sets = dataset.kind == "sets"
    most = SETS if sets else TILES
    good: list[list[Tile]] = []
    bad: list[list[Tile]] = []
    # More than are shown where some are in error: those say little as pictures.
    wanted = 4 * most if any(footers[group][shard].errors for shard in there) else most
    for shard, row_group, offsets in pick_rows(chosen, wanted):
        for offset, row in zip(offsets, joined_rows(dataset, read, shard, row_group, offsets), strict=True):
            some = bad if row.get(f"{group}.error") else good
            if len(some) == (ERRORS if some is bad else most):
                continue
            row |= _latent(dataset, group, shard, row_group, offset)
            if sets:
                views = [view_of_set(row, index) for index in range(min(len(row["images.image"]), VIEWS))]
                some.append([_tile(group, view, read, f"view {index}") for index, view in enumerate(views, start=1)])
            else:
                title = str(row.get("images.source") or row["images.id"]).rsplit("/", 1)[-1]
                some.append([_tile(group, row, read, title)])
    tiles = [tile for some in [*good, *bad][:most] for tile in some]
    return save_sheet(tiles) if tiles else ""


def _tile(group: str, row: Mapping[str, Any], footers: Footers, title: str) -> Tile:
    picture = thumbnail(decode_picture(row["images.image"]), TILE)
    if row.get(f"{group}.error"):
        return Tile(picture, title, [f"in error: {row[f'{group}.error']}"])
    if group in CONDITION_READS:
        collector = _Collector()
        return collector.tile(draw_label(group, row, picture, collector, title), title)
    if group == "images":
        known = [row.get(f"images.{name}") for name in ("text", "author", "licence")]
        return Tile(
            picture, title, [f"{row['images.width']} × {row['images.height']}", *(str(one) for one in known if one)]
        )
    if group == "caption":
        return Tile(picture, title, [str(row.get("caption.caption") or "")])
    if group == "text":
        entries = [entry for entry in row.get("text.entries") or () if entry]
        tasks = [entry["task"] for entry in entries if entry["task"]]
        return Tile(picture, title, [f"{len(entries)} prompts", ", ".join(tasks)])
    if row.get(f"{group}.latent") is not None:
        colors = _false_colors(row[f"{group}.latent"], row[f"{group}.latent_height"], row[f"{group}.latent_width"])
        size = f"{row[f'{group}.latent_width']} × {row[f'{group}.latent_height']} latents, the first three channels"
        return Tile(colors, title, [size])
    values = row_values(row, [group])
    return Tile(picture, title, [f"{name.partition('.')[2]}: {value}" for name, value in values.items()])


def _latent(dataset: Dataset, group: str, shard: str, row_group: int, offset: int) -> dict[str, Any]:
    if not group.startswith("latents"):
        return {}
    table = dataset.read(group, shard, ["latent", "latent_height", "latent_width"], [row_group])
    return {f"{group}.{name}": table[name][offset].as_py() for name in table.column_names}


def _false_colors(values: Sequence[float], height: int, width: int) -> Picture:
    """The first three channels as red, green and blue."""
    channels = np.asarray(values, np.float32).reshape(-1, height, width)[:3]
    low, high = np.percentile(channels, [2, 98], axis=(1, 2), keepdims=True)
    return ((channels - low) / np.maximum(high - low, 1e-6) * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def sample_sheet(run: RunSection) -> str:
    """One sample of each task and direction: what was given, what was sampled, what is true. "" without samples."""
    tiles: list[Tile] = []
    for task, samples in run.samples.items():
        for sample in {one.direction: one for one in reversed(samples)}.values():
            drawings = [*sample.inputs[:1], *sample.outputs[:1], *([sample.truth] if sample.truth else [])][:3]
            text = Tile(None, task, [sample.direction, sample.prompt])
            shown = [Tile(_from_uri(one), one.title, [one.note] if one.note else []) for one in drawings]
            tiles += [text, *shown, *[Tile(None, "")] * (3 - len(shown))]
    return save_sheet(tiles, columns=4, side=122) if tiles else ""


def _from_uri(drawing: Drawing) -> Picture | None:
    return decode_picture(base64.b64decode(drawing.source.partition(",")[2])) if drawing.source else None


def save_sheet(tiles: Sequence[Tile], columns: int = 3, side: int = TILE) -> str:
    """Tiles as one picture, in rows as high as their highest tile, pictures at most `side` pixels; its address."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font has neither × nor →, nor any alphabet but the Latin.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 10.5)
    pictures = [_fitted(tile.picture, side) if tile.picture is not None else None for tile in tiles]
    texts = [_wrapped(tile.text, side // 6) for tile in tiles]
    tall = [
        (_LINE + 2 if tile.title else 0) + (len(picture) + 6 if picture is not None else 4) + len(text) * _LINE
        for tile, picture, text in zip(tiles, pictures, texts, strict=True)
    ]
    heights = [max(tall[start : start + columns]) + _MARGIN for start in range(0, len(tiles), columns)]
    sheet = Image.new("RGB", (columns * (side + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, tile in enumerate(tiles):
        left = _MARGIN + index % columns * (side + _MARGIN)
        top = _MARGIN + sum(heights[: index // columns])
        picture, text = pictures[index], texts[index]
        pen.text((left, top), _cut(tile.title, side // 6), font=font, fill=_INK)
        top += _LINE + 2
        if picture is not None:
            sheet.paste(Image.fromarray(picture), (left, top))
            top += len(picture) + 4
        for number, line in enumerate(text):
            pen.text((left, top + number * _LINE), line, font=font, fill=_SOFT)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=86, optimize=True)
    return keep_picture(buffer.getvalue(), "jpg")


def _fitted(picture: Picture, side: int) -> Picture:
    """At most `side`; a small one enlarged without smoothing, since its own pixels are to be seen."""
    times = max(1, side // max(picture.shape[:2]))
    return thumbnail(picture.repeat(times, 0).repeat(times, 1), side)


def _wrapped(text: Sequence[str], width: int) -> list[str]:
    lines = [line for one in text for line in textwrap.wrap(one, width)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1].rstrip('. ')} …"]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def live_curves(address: str) -> bytes:
    """A run's loss and speed as they are now, as an SVG."""
    run = describe_run(address, Inliner(0), figures={}, tasks=False)
    said = f"step {run.step:,}, loss {run.loss}, {run.speed_now} tokens/s" if run.charts else "no metrics yet"
    return draw_charts(run.charts[:2], columns=2, width=WIDE, caption=f"{said}{_under_way(address)}").encode()


def _under_way(address: str) -> str:
    """Whether a job trains the run now, by what it says of itself."""
    for place in jobs_of(address):
        folder = JobFolder(place)
        state, submission = folder.state(), folder.attempt()
        if state and submission and state.attempt == submission.number and state.is_running:
            job = folder.specification()
            if isinstance(job, TrainJob) and job.workers:
                count = job.workers.count
                workers = str(count) if isinstance(count, int) else f"{count[0]} to {count[1]}"
                return f"; {workers} {'worker' if workers == '1' else 'workers'} on {submission.target_name}"
    return ""


def save_charts(charts: Sequence[Chart], columns: int) -> str:
    """Charts as one SVG; its address, "" without charts."""
    return keep_picture(draw_charts(charts, columns).encode(), "svg") if charts else ""


def draw_charts(charts: Sequence[Chart], columns: int, width: int = PAGE, caption: str = "") -> str:
    """Charts as one SVG, with a line of text above."""
    across, down = WIDTH + 2 * _MARGIN, HEIGHT + 46
    rows = -(-len(charts) // columns)
    top = 36 if caption else 0
    right, bottom = across * min(columns, max(len(charts), 1)), top + down * rows
    parts = [f'<text class="note" x="{_MARGIN}" y="22">{escape(caption)}</text>'] if caption else []
    for index, chart in enumerate(charts):
        x, y = index % columns * across + _MARGIN, top + index // columns * down
        # In larger letters than on the page, so that long numbers reach into the margin.
        place = f'<svg x="{x}" y="{y + 32}" width="{WIDTH}" height="{HEIGHT}" overflow="visible" '
        inner = str(chart.svg).replace("<svg ", place, 1)
        parts.append(f'<text class="title" x="{x}" y="{y + 18}">{chart.title}</text>{inner}')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom * width // right}" '
        f'viewBox="0 0 {right} {bottom}"><style>{_STYLE}{_SMALL if columns > 1 else ""}</style>{"".join(parts)}</svg>'
    )


def keep_picture(content: bytes, kind: str) -> str:
    """Keep a file under the name of its digest; the address that the dashboard's own server gives it."""
    name = f"{hashlib.blake2b(content, digest_size=12).hexdigest()}.{kind}"
    path = picture_folder() / name
    if not path.exists():
        write_whole(path, content)
    return f"/{PICTURES}/{name}"


def picture_folder() -> Path:
    path = folder() / PICTURES
    path.mkdir(exist_ok=True)
    return path


def drop_old_pictures(shown: Iterable[str] = (), most: int = MOST_BYTES) -> None:
    """Delete pictures while all of them take more than `most` bytes: those first that were longest not among `shown`.

    shown: names of the pictures that the newest events show. Older events then show none.
    """
    for name in shown:
        with suppress(FileNotFoundError):
            os.utime(picture_folder() / name)
    files = sorted(((path.stat(), path) for path in picture_folder().iterdir()), key=lambda item: item[0].st_mtime)
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in files:
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= stat.st_size
