"""Reads the samples that the plan names, and packs them for a worker; runs in reading processes without torch.

torch is imported only where a sample needs it: to encode degraded pictures and to make rays of cameras.

C = 16 latent channels, h × w latent height and width, V views, L prompt tokens, Y text width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeling.dataset import CAMERAS, DROPPED_CAPTION, IMAGES, TEXT, Dataset
from model.constants import LATENT_CHANNELS, LATENT_FACTOR
from model.inputs import InputError
from model.prompts import DEGRADED, find_task
from training.batch import Sample, StepBatch
from training.config import TrainingConfig
from training.dealing import Dealer
from training.manifest import Manifest
from training.planned import PlannedSample
from training.streams import Stream

if TYPE_CHECKING:
    from model.codecs import ImageCodec
    from model.pictures import Picture

_COLUMNS = {IMAGES: ["image"], TEXT: ["entries"], CAMERAS: ["c2w", "intrinsics"]}
_LATENT_COLUMNS = ["latent", "latent_height", "latent_width"]


class PlanReader:
    """Reads what the plan gives to one worker."""

    def __init__(self, manifest: Manifest, config: TrainingConfig, codec: str) -> None:
        """codec: what encoded the latents, to encode degraded pictures with (as for `model.codecs.load_codec`)."""
        self.manifest, self.config = manifest, config
        self.dealer = Dealer(manifest, config)
        self._codec_name = codec
        self._datasets = {name: Dataset(source.dataset) for name, source in manifest.sources.items()}
        self._tables = _Cache(config.reader.cache_mb << 20)
        self._pictures = _Cache(config.reader.cache_mb << 18)
        self._verified: set[tuple[str, str, int]] = set()

    @cached_property
    def codec(self) -> ImageCodec:
        """The codec of degraded pictures, loaded when the first one comes."""
        from model.codecs import load_codec

        _limit_threads()
        return load_codec(self._codec_name)

    def read(self, step: int, rank: int, workers: int) -> StepBatch:
        """The packs of one worker for a step.

        Raises InputError for a shard that is not the one the run began with, naming it.
        """
        dealt, most, frames_in_loss = self.dealer.deal(step, rank, workers)
        packs = [[self.read_sample(*planned) for planned in pack] for pack in dealt]
        first = packs[0][0]
        while len(packs) < most:
            # Sharded models call forward equally often on every worker: one more sample, which the loss leaves out.
            packs.append([Sample(**{**vars(first), "in_loss": np.zeros_like(first.in_loss)})])
        return StepBatch(step, packs, frames_in_loss)

    def read_sample(self, planned: PlannedSample, sigmas: NDArray[np.float32], in_loss: NDArray[np.bool_]) -> Sample:
        """One sample with the noise levels given."""
        stream = self.manifest.streams[planned.stream]
        if planned.views:
            latents = self._views(stream, planned)
        else:
            frames = [self._latent(stream, stream.latents, planned)]
            if find_task(stream.task).condition == DEGRADED:
                frames.append(self._degraded(stream, planned, frames[0].shape))
            elif stream.condition is not None:
                frames.append(self._latent(stream, stream.condition, planned))
                if frames[1].shape != frames[0].shape:
                    raise InputError(
                        f"{self._place(stream, stream.condition, planned)}: latents of another size than the "
                        f"picture's; label {stream.condition} again"
                    )
            latents = np.stack(frames)
        return Sample(stream.task, latents, self._text(stream, planned), sigmas, in_loss, planned.noise_seed)

    def _latent(self, stream: Stream, group: str, planned: PlannedSample) -> NDArray[np.float16]:
        """(C, h, w) of a picture."""
        table = self._table(stream, group, planned)
        height, width = (table[name][planned.row].as_py() for name in ("latent_height", "latent_width"))
        return _array(table["latent"][planned.row].values).reshape(LATENT_CHANNELS, height, width)

    def _views(self, stream: Stream, planned: PlannedSample) -> NDArray[np.float16]:
        """(2V, C, h, w): image₀, rays₀, image₁, rays₁, …"""
        import torch

        from model.cameras import camera_rays, rays_to_latents

        _limit_threads()
        table = self._table(stream, stream.latents, planned)
        heights, widths, latents = (table[name][planned.row] for name in ("latent_height", "latent_width", "latent"))
        sides = {(heights[view].as_py(), widths[view].as_py()) for view in planned.views}
        if len(sides) > 1 or len(set(*sides)) > 1:
            raise InputError(f"{self._place(stream, stream.latents, planned)}: views must be square and of one size")
        side = next(iter(sides))[0]
        images = np.stack([_array(latents[view].values).reshape(LATENT_CHANNELS, side, side) for view in planned.views])
        cameras = self._table(stream, CAMERAS, planned)
        chosen = {
            name: torch.tensor([cameras[name][planned.row][view].as_py() for view in planned.views])
            for name in ("c2w", "intrinsics")
        }
        rays = camera_rays(
            chosen["c2w"].reshape(-1, 4, 4),
            chosen["intrinsics"].reshape(-1, 3, 3),
            side,
            normalize=True,
            scale=self.config.objective.c2w_scaling,
        )
        ray_frames = rays_to_latents(rays, side, side).to(torch.float16).numpy()
        return np.stack([images, ray_frames], axis=1).reshape(-1, LATENT_CHANNELS, side, side)

    def _degraded(self, stream: Stream, planned: PlannedSample, shape: tuple[int, ...]) -> NDArray[np.float16]:
        """(C, h, w) of the picture, fitted like the stored latents, then degraded and encoded."""
        import torch

        from model.conditions import degrade

        fitted = self._picture(stream, planned, shape[2] * LATENT_FACTOR, shape[1] * LATENT_FACTOR)
        degraded = degrade(fitted, stream.task, planned.degradation_seed)
        pixels = torch.from_numpy(degraded.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            return self.codec.encode(pixels)[0].to(torch.float16).numpy()

    def _picture(self, stream: Stream, planned: PlannedSample, width: int, height: int) -> Picture:
        """The image of the sample, fitted to a size in pixels; cached, since small datasets soon use it again."""
        from model.pictures import decode_picture, fit_picture

        def read() -> Picture:
            data = self._table(stream, IMAGES, planned)["image"][planned.row].as_py()
            return fit_picture(decode_picture(data), width, height)

        key = (stream.source, planned.shard, planned.row_group, planned.row, width, height)
        return self._pictures.get(key, read)

    def _text(self, stream: Stream, planned: PlannedSample) -> NDArray[np.float16]:
        """(L, Y) of the prompt; of a set, the prompt of the first view shown."""
        task = DROPPED_CAPTION if planned.drop_caption else stream.task
        entries = self._table(stream, TEXT, planned)["entries"][planned.row]
        if planned.views:
            entries = entries[planned.views[0]]
        structs = entries.values
        tasks = structs.field("task").to_pylist()
        if task not in tasks:
            named = f"for task {task!r}" if task else "that is empty, for dropped captions"
            raise InputError(f"{self._place(stream, 'text', planned)}: no prompt {named}; label text again")
        place = tasks.index(task)
        embedding = _array(structs.field("embedding")[place].values)
        text = embedding.reshape(structs.field("tokens")[place].as_py(), -1)
        if text.shape[1] != self.config.model.caption_channels:
            raise InputError(
                f"model.caption_channels is {self.config.model.caption_channels}, but the prompts of "
                f"{self.manifest.sources[stream.source].dataset} are {text.shape[1]} wide; set it so"
            )
        return text

    def _table(self, stream: Stream, group: str, planned: PlannedSample) -> pa.Table:
        """The row group of `group` that holds the sample."""
        dataset = self._datasets[stream.source]

        def read() -> pa.Table:
            self._verify(stream, group, planned.shard)
            shard = self.manifest.sources[stream.source].shards[planned.shard].name
            columns = _COLUMNS.get(group, _LATENT_COLUMNS)
            return dataset.read(group, shard, columns, [planned.row_group]).combine_chunks()

        return self._tables.get((dataset.uri, group, planned.shard, planned.row_group), read)

    def _verify(self, stream: Stream, group: str, number: int) -> None:
        """Stop at a shard whose content is not what the manifest pins."""
        key = (stream.source, group, number)
        if key in self._verified:
            return
        source = self.manifest.sources[stream.source]
        pin = source.shards[number]
        place = f"{source.dataset}/{group}/{pin.name}.parquet"
        try:
            content = self._datasets[stream.source].footer(group, pin.name).content
        except FileNotFoundError:
            raise InputError(f"{place}: gone since the run began; restore it, or begin a new run") from None
        if content != pin.content[group]:
            raise InputError(f"{place}: changed since the run began; restore it, or begin a new run")
        self._verified.add(key)

    def _place(self, stream: Stream, group: str, planned: PlannedSample) -> str:
        source = self.manifest.sources[stream.source]
        shard = source.shards[planned.shard]
        row = sum(shard.row_groups[: planned.row_group]) + planned.row
        return f"{source.dataset}/{group}/{shard.name}.parquet row {row}"


class _Cache:
    """The values used last (tables, arrays), up to a limit in bytes."""

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._values: OrderedDict[tuple[Any, ...], Any] = OrderedDict()

    def get(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """The value of the key, made if it is not there. Values have `nbytes`."""
        if key in self._values:
            self._values.move_to_end(key)
            return self._values[key]
        value = self._values[key] = make()
        self._bytes += value.nbytes
        while self._bytes > self._limit and len(self._values) > 1:
            self._bytes -= self._values.popitem(last=False)[1].nbytes
        return value


def _limit_threads() -> None:
    """Let torch use one thread in this process, since each reader has about one CPU."""
    import torch

    torch.set_num_threads(1)


def _array(values: pa.Array) -> NDArray[np.float16]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float16)
