"""Contact sheets for asset pages: some rows of a group with their labels, and samples of a run."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from labeling.dataset import IMAGES, Dataset, Footers, FooterTable, is_text
from model.conditions import CONDITION_READS
from model.pictures import Picture, decode_picture
from pipelines.dashboard.picture_files import keep_picture
from pipelines.reports.gallery import joined_rows, pick_rows, row_values, view_of_set
from pipelines.reports.overlays import Drawing, Inliner, draw_label, thumbnail
from pipelines.reports.run import RunSection

TILES, TILE_SIDE, MAX_LINES = 12, 166, 4  # tiles of a sheet, their sides in pixels, lines of text below them
SETS, VIEWS, ERRORS = 2, 6, 3  # most sets of a sheet, most views of each set; most rows in error
_MARGIN, _LINE = 10, 15
_PAPER, _INK, _SOFT = (255, 255, 255), (27, 29, 34), (92, 98, 109)


@dataclass
class Tile:
    """A picture of a sheet (None: text alone), with a title above and lines of text below."""

    picture: Picture | None
    title: str
    text: Sequence[str] = ()


@dataclass
class _Collector(Inliner):
    """Collects the pictures that drawings would put into a page; a drawing's source is then the picture's index."""

    pictures: list[Picture] = field(default_factory=list, init=False)

    def __call__(self, picture: Picture, sharp: bool = False) -> str:
        self.pictures.append(picture)
        return str(len(self.pictures) - 1)

    def tile(self, drawing: Drawing, title: str) -> Tile:
        chips = ", ".join(dict.fromkeys(chip.text for chip in drawing.chips))
        picture = self.pictures[int(drawing.source)] if drawing.source else None
        return Tile(picture, title, [text for text in (chips, drawing.note) if text])


def contact_sheet(dataset: Dataset, group: str, shards: Iterable[str], footers: Footers) -> str:
    """Draw some rows of a group, spread over the shards, each with its label; the sheet's address, "" without rows."""
    if IMAGES not in footers:
        return ""
    present = [shard for shard in shards if shard in footers[IMAGES] and shard in footers[group]]
    image_footers = FooterTable.of(footers[IMAGES]).only(present)
    footers_read = {name: footers[name] for name in (IMAGES, group)}
    max_rows = SETS if dataset.has_sets else TILES
    labeled: list[list[Tile]] = []  # tiles of each row
    in_error: list[list[Tile]] = []
    # Rows in error say little as pictures. Where there are some, more rows are read than fit, to find others.
    count = 4 * max_rows if FooterTable.of(footers[group]).only(present).errors() else max_rows
    for shard, row_group, offsets in pick_rows(image_footers, count):
        for offset, row in zip(offsets, joined_rows(dataset, footers_read, shard, row_group, offsets), strict=True):
            rows, limit = (in_error, ERRORS) if row.get(f"{group}.error") else (labeled, max_rows)
            if len(rows) < limit:
                row |= _latent(dataset, group, shard, row_group, offset)
                rows.append(_row_tiles(group, row, dataset.has_sets))
    tiles = [tile for row_tiles in [*labeled, *in_error][:max_rows] for tile in row_tiles]
    return save_sheet(tiles) if tiles else ""


def _row_tiles(group: str, row: Mapping[str, Any], is_set: bool) -> list[Tile]:
    """The tile of a row, or those of the first views of a set."""
    if not is_set:
        title = str(row.get("images.source") or row["images.id"]).rsplit("/", 1)[-1]
        return [_tile(group, row, title)]
    views = [view_of_set(row, index) for index in range(min(len(row["images.image"]), VIEWS))]
    return [_tile(group, view, f"view {number}") for number, view in enumerate(views, start=1)]


def _tile(group: str, row: Mapping[str, Any], title: str) -> Tile:
    picture = thumbnail(decode_picture(row["images.image"]), TILE_SIDE)
    if row.get(f"{group}.error"):
        return Tile(picture, title, [f"in error: {row[f'{group}.error']}"])
    if group in CONDITION_READS:
        collector = _Collector()
        return collector.tile(draw_label(group, row, picture, collector, title), title)
    if group == IMAGES:
        facts = [row.get(f"images.{name}") for name in ("text", "author", "licence")]
        return Tile(
            picture, title, [f"{row['images.width']} × {row['images.height']}", *(str(fact) for fact in facts if fact)]
        )
    if group == "caption":
        return Tile(picture, title, [str(row.get("caption.caption") or "")])
    if is_text(group):
        entries = [entry for entry in row.get(f"{group}.entries") or () if entry]
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
    """Latents (C, h, w), flattened, as a picture (h, w, 3): the first three channels as red, green and blue."""
    channels = np.asarray(values, np.float32).reshape(-1, height, width)[:3]
    low, high = np.percentile(channels, [2, 98], axis=(1, 2), keepdims=True)
    return ((channels - low) / np.maximum(high - low, 1e-6) * 255).clip(0, 255).astype(np.uint8).transpose(1, 2, 0)


def sample_sheet(run: RunSection) -> str:
    """Draw one sample of each task and direction: input, output and truth; the sheet's address, "" without samples."""
    tiles: list[Tile] = []
    for task, samples in run.samples.items():
        for sample in {one.direction: one for one in reversed(samples)}.values():
            drawings = [*sample.inputs[:1], *sample.outputs[:1], *([sample.truth] if sample.truth else [])][:3]
            text = Tile(None, task, [sample.direction, sample.prompt])
            drawing_tiles = [Tile(_from_uri(one), one.title, [one.note] if one.note else []) for one in drawings]
            tiles += [text, *drawing_tiles, *[Tile(None, "")] * (3 - len(drawing_tiles))]
    return save_sheet(tiles, columns=4, side=122) if tiles else ""


def _from_uri(drawing: Drawing) -> Picture | None:
    return decode_picture(base64.b64decode(drawing.source.partition(",")[2])) if drawing.source else None


def save_sheet(tiles: Sequence[Tile], columns: int = 3, side: int = TILE_SIDE) -> str:
    """Draw tiles as one picture and store it; its address.

    side: the longer side of the tiles' pictures, at most, in pixels. A row is as high as its highest tile.
    """
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font lacks ×, → and all alphabets other than the Latin one.
    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), 10.5)
    pictures = [_scaled(tile.picture, side) if tile.picture is not None else None for tile in tiles]
    texts = [_wrapped(tile.text, side // 6) for tile in tiles]
    tile_heights = [
        (_LINE + 2 if tile.title else 0) + (len(picture) + 6 if picture is not None else 4) + len(text) * _LINE
        for tile, picture, text in zip(tiles, pictures, texts, strict=True)
    ]
    heights = [max(tile_heights[start : start + columns]) + _MARGIN for start in range(0, len(tiles), columns)]
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


def _scaled(picture: Picture, side: int) -> Picture:
    """At most `side` pixels; a small one is enlarged without smoothing, which would hide its own pixels."""
    times = max(1, side // max(picture.shape[:2]))
    return thumbnail(picture.repeat(times, 0).repeat(times, 1), side)


def _wrapped(text: Sequence[str], width: int) -> list[str]:
    lines = [line for paragraph in text for line in textwrap.wrap(paragraph, width)]
    return lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], f"{lines[MAX_LINES - 1].rstrip('. ')} …"]


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
