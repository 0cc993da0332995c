"""Reads the samples that the plan names, and packs them for a worker: only their bytes where shards say places.

torch is imported only where a sample needs it: to make rays of cameras, and to encode degraded pictures where that is
asked for here.

C = 16 latent channels, h × w latent height and width, V views, L prompt tokens, Y text width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from labeling.dataset import (
    CAMERAS,
    DROPPED_CAPTION,
    IMAGES,
    ArrayFile,
    Dataset,
    PageCache,
    Want,
    changed_shard,
    damaged_shard,
    gone_shard,
    read_arrays,
)
from model.constants import LATENT_CHANNELS, LATENT_FACTOR
from model.inputs import InputError
from model.prompts import DEGRADED, RAYS, build_prompt, find_task
from training.batch import Sample, StepBatch
from training.config import TrainingConfig
from training.device import encode_pictures
from training.plan.dealing import Dealer
from training.plan.manifest import Manifest
from training.plan.planned_sample import PlannedSample
from training.plan.streams import CAPTION, ITEM, LATENT_COLUMNS, NAMES, SUBJECT, Stream
from training.row_pictures import Encoded, RowPictures, latent_shape
from training.size_cache import SizeCache, allow_files

if TYPE_CHECKING:
    from model.codecs import ImageCodec
    from model.pictures import Picture

_WAITING_THREADS = 4  # that read where it takes waiting for S3, or decoding pictures outside Python's lock
_DENSE = 2 / 3  # of what a page holds: if so much of it will be used, it is read as a whole from a store with delay
_OPEN_FILES = 4096  # shards of groups; one that is opened anew is asked for its footer again
Allocate = Callable[[tuple[int, ...]], NDArray[np.float16]]


class PlanReader:
    """Reads what the plan gives to one worker."""

    def __init__(
        self, manifest: Manifest, config: TrainingConfig, codec: str | None = None, allocate: Allocate | None = None
    ) -> None:
        """codec: what encoded the latents (as for `model.codecs.load_codec`), to encode degraded pictures with; None
        leaves that to who computes, see `training.device`. allocate: makes the arrays of samples, pinned ones perhaps.

        threads: how many should call `read` at a time.
        """
        self.manifest, self.config = manifest, config
        self.dealer = Dealer(manifest, config)
        self._codec_name = codec
        self._allocate = allocate or (lambda shape: np.empty(shape, np.float16))
        self._datasets = {name: Dataset(source.dataset) for name, source in manifest.sources.items()}
        self._tables = SizeCache(config.reader.cache_mb << 20)
        self._pictures = RowPictures(self._table, self._place, config.reader.cache_mb << 18)
        files, most = allow_files(_OPEN_FILES), config.reader.cache_mb << 18
        self._files = SizeCache(most, lambda file: max(file.nbytes, most // files))
        self._planning = Lock()
        far = [dataset.store.parallel for dataset in self._datasets.values() if dataset.store.gap]
        self._pages = PageCache(ThreadPoolExecutor(max(far), "range"), config.reader.cache_mb << 20) if far else None
        self._is_dense = self._dense_streams()
        # Arrays from a disk are there at once, and threads would only take Python's lock from each other.
        waits = far or any(IMAGES in stream.groups for stream in manifest.streams)
        self.threads = config.reader.threads or (_WAITING_THREADS if waits else 1)

    @cached_property
    def codec(self) -> ImageCodec:
        """The codec of degraded pictures, loaded when the first one comes."""
        from model.codecs import load_codec

        assert self._codec_name is not None
        return load_codec(self._codec_name)

    def read(self, step: int, rank: int, workers: int) -> StepBatch:
        """The packs of one worker for a step. Safe to be called by several threads.

        Raises InputError for a shard that is not the one the run began with, naming it.
        """
        with self._planning:
            dealt, most, frames_in_loss = self.dealer.deal(step, rank, workers)
        images = self._read_images([planned for pack in dealt for planned, _, _ in pack], workers)
        wants: list[Want] = []
        packs = [[self._sample(*leveled, images, wants) for leveled in pack] for pack in dealt]
        self._fill(wants, workers)
        first = packs[0][0]
        while len(packs) < most:
            # Sharded models call forward equally often on every worker: one more sample, which the loss leaves out.
            packs.append([Sample(**{**vars(first), "in_loss": np.zeros_like(first.in_loss)})])
        return StepBatch(step, packs, frames_in_loss)

    def read_sample(self, planned: PlannedSample, sigmas: NDArray[np.float32], in_loss: NDArray[np.bool_]) -> Sample:
        """One sample with the noise levels given."""
        wants: list[Want] = []
        sample = self._sample(planned, sigmas, in_loss, self._read_images([planned], 1), wants)
        self._fill(wants, 1)
        return sample

    def _read_images(self, samples: Sequence[PlannedSample], workers: int) -> dict[tuple[object, ...], Any]:
        """Key (of `RowPictures`) → encoded image, of all that samples are made from and that shards say places of."""
        wants: list[Want] = []
        images: dict[tuple[object, ...], Any] = {}
        for planned in samples:
            stream = self.manifest.streams[planned.stream]
            file = self._file(stream, IMAGES, planned.shard) if IMAGES in stream.groups else None
            if file is None or file.pictures is None:
                continue
            for view in planned.views or (None,):
                key = self._pictures.key(stream, planned, view)
                if key in images or key in self._pictures:
                    continue
                value = file.pictures.value(file.row_starts[planned.row_group] + planned.row, view or 0)
                images[key] = np.empty(file.pictures.sizes[value], np.uint8)
                wants.append(file.want(value, images[key]))
        self._fill(wants, workers)
        return images

    def _fill(self, wants: list[Want], workers: int) -> None:
        if self._pages is None:
            read_arrays(wants)
            return
        # Each lane has begun `window` row groups of every group that it reads. Pages that do not fit all together would
        # be read again and again.
        lanes = max(1, -(-self.manifest.lanes // workers))
        begun = lanes * self.config.reader.window * sum(len(stream.groups) for stream in self.manifest.streams)
        self._pages.read(wants, (self.config.reader.cache_mb << 20) // begun)

    def _dense_streams(self) -> list[bool]:
        """Of each stream whether most of what is stored beside one of its rows is eligible too."""
        return [
            stream.rows > _DENSE * self.manifest.sources[stream.source].shards.row_starts[-1]
            for stream in self.manifest.streams
        ]

    def _sample(
        self,
        planned: PlannedSample,
        sigmas: NDArray[np.float32],
        in_loss: NDArray[np.bool_],
        images: Encoded,
        wants: list[Want],
    ) -> Sample:
        """A sample whose arrays have their values once `wants`, which gets what it lacks, is read."""
        stream = self.manifest.streams[planned.stream]
        if planned.views:
            latents, pictures = self._set(stream, planned, images, wants)
        elif stream.pictures == "online":
            latents, pictures = self._drawn(stream, planned, images)
        else:
            latents, pictures = self._encoded(stream, planned, images, wants)
        if self._codec_name is not None:
            for frame, picture in pictures.items():
                latents[frame] = encode_pictures(self.codec, [picture])[0].numpy()
            pictures = {}
        if stream.text == "online":
            text, prompt = np.empty((0, self.config.model.caption_channels), np.float16), self._prompt(stream, planned)
        else:
            text, prompt = self._text(stream, planned, wants), None
        drawn = planned.noise_seed, pictures, prompt, planned.index
        return Sample(stream.task, latents, text, sigmas, in_loss, *drawn)

    def _encoded(
        self, stream: Stream, planned: PlannedSample, images: Encoded, wants: list[Want]
    ) -> tuple[NDArray[np.float16], dict[int, Picture]]:
        """(F, C, h, w) as it is stored, and the degraded picture that a frame is to be encoded from."""
        is_degraded = stream.degrades
        groups = [stream.latents, *([stream.condition] if stream.condition else [])]
        sources = [self._latent(stream, group, planned) for group in groups]
        shape = sources[0].shape
        if any(source.shape != shape for source in sources):
            raise InputError(
                f"{self._place(stream, groups[1], planned)}: latents of another size than the "
                f"picture's; label {groups[1]} again"
            )
        latents = self._allocate((len(groups) + is_degraded, *shape))
        for frame, source in zip(latents, sources, strict=False):
            source.fill(frame, wants)
        size = (shape[2] * LATENT_FACTOR, shape[1] * LATENT_FACTOR)
        return latents, {1: self._pictures.degraded(stream, planned, images, size)} if is_degraded else {}

    def _drawn(
        self, stream: Stream, planned: PlannedSample, images: Encoded
    ) -> tuple[NDArray[np.float16], dict[int, Picture]]:
        """(F, C, h, w) to be filled, and the pictures that all frames are to be encoded from."""
        image, condition = self._pictures.image(stream, planned, images), find_task(stream.task).condition
        pictures = {0: image.picture}
        if condition == DEGRADED:
            pictures[1] = self._pictures.degraded(stream, planned, images)
        elif condition is not None:
            pictures[1] = self._pictures.condition(stream, planned, image.width, image.height)
        return self._allocate((len(pictures), *latent_shape(image.picture))), pictures

    def _latent(self, stream: Stream, group: str, planned: PlannedSample, view: int | None = None) -> _Source:
        """(C, h, w) of a picture, or of a view of a set."""
        file = self._file(stream, group, planned.shard)
        if file.latents:
            value = file.latents.value(file.row_starts[planned.row_group] + planned.row, view or 0)
            page = file.page(planned.row_group) if self._pages and self._is_dense[planned.stream] else None
            return _Source(file.latents.shape(value), file, value, page=page)
        table = self._table(stream, group, planned)
        latent, height, width = (table[name][planned.row] for name in LATENT_COLUMNS)
        if view is not None:
            latent, height, width = latent[view], height[view], width[view]
        shape, values = (LATENT_CHANNELS, height.as_py(), width.as_py()), _array(latent.values)
        if values.size != math.prod(shape):
            raise damaged_shard(file.address, planned.row_group)
        return _Source(shape, values=values)

    def _set(
        self, stream: Stream, planned: PlannedSample, images: Encoded, wants: list[Want]
    ) -> tuple[NDArray[np.float16], dict[int, Picture]]:
        """(F, C, h, w) of the views shown: image₀, rays₀, image₁, …, of a task with references an image and those that
        it refers to; and the pictures that images are to be encoded from."""
        pictures: list[Picture] = []
        sources: list[_Source] = []
        shapes: list[tuple[int, ...]]
        if stream.pictures == "online":
            group = IMAGES
            pictures = [self._pictures.image(stream, planned, images, view).picture for view in planned.views]
            shapes = [latent_shape(picture) for picture in pictures]
        else:
            group = stream.latents
            sources = [self._latent(stream, group, planned, view) for view in planned.views]
            shapes = [source.shape for source in sources]
        has_rays = find_task(stream.task).condition == RAYS
        if any(shape != shapes[0] for shape in shapes):
            raise InputError(f"{self._place(stream, group, planned)}: pictures must be of one shape")
        apart = 2 if has_rays else 1
        frames = self._allocate((apart * len(planned.views), *shapes[0]))
        if has_rays:
            frames[1::2] = self._rays(stream, planned, *shapes[0][1:])
        for frame, source in zip(frames[::apart], sources, strict=False):
            source.fill(frame, wants)
        return frames, {apart * number: picture for number, picture in enumerate(pictures)}

    def _rays(self, stream: Stream, planned: PlannedSample, h: int, w: int) -> NDArray[np.float16]:
        """(V, C, h, w) of the cameras of the views shown, cropped as their pictures are."""
        import torch

        from model.cameras import camera_rays, fitted_intrinsics, rays_to_latents

        cameras = self._table(stream, CAMERAS, planned)
        chosen = {
            name: torch.tensor([cameras[name][planned.row][view].as_py() for view in planned.views])
            for name in cameras.column_names
        }
        c2w, intrinsics = chosen["c2w"].reshape(-1, 4, 4), chosen["intrinsics"].reshape(-1, 3, 3)
        if "width" in chosen:  # sets of before had square views only
            intrinsics = fitted_intrinsics(intrinsics, torch.stack([chosen["width"], chosen["height"]], -1), (w, h))
        rays = camera_rays(c2w, intrinsics, (h, w), normalize=True, scale=self.config.objective.c2w_scaling)
        latents: NDArray[np.float16] = rays_to_latents(rays, h, w).to(torch.float16).numpy()
        return latents

    def _text(self, stream: Stream, planned: PlannedSample, wants: list[Want]) -> NDArray[np.float16]:
        """(L, Y) of the prompt; of a set, the prompt of the first view shown."""
        task = DROPPED_CAPTION if planned.drop_caption else stream.task
        file = self._file(stream, stream.text_group, planned.shard)
        try:
            if file.entries:
                row = file.row_starts[planned.row_group] + planned.row
                value = file.entries.value(row, task, planned.views[0] if planned.views else 0)
                is_dense = self._pages and self._is_dense[planned.stream] and file.entries.share(task) > _DENSE
                page = file.page(planned.row_group) if is_dense else None
                source = _Source(file.entries.shape(value), file, value, page=page)
            else:
                source = self._entry(stream, planned, task, file.address)
        except KeyError:
            named = f"for task {task!r}" if task else "that is empty, for dropped captions"
            place = self._place(stream, stream.text_group, planned)
            raise InputError(f"{place}: no prompt {named}; label {stream.text_group} again") from None
        if source.shape[1] != self.config.model.caption_channels:
            raise InputError(
                f"model.caption_channels is {self.config.model.caption_channels}, but the prompts of "
                f"{self.manifest.sources[stream.source].dataset} are {source.shape[1]} wide; set it so"
            )
        text = self._allocate(source.shape)
        source.fill(text, wants)
        return text

    def _prompt(self, stream: Stream, planned: PlannedSample) -> str:
        """The prompt as it is embedded; of a set, that of the first view shown, with captions of those referred to."""
        if planned.drop_caption:
            return ""

        def value(group: str, column: str, place: int = 0) -> Any:
            found = self._table(stream, group, planned)[column][planned.row]
            return (found[planned.views[place]] if planned.views else found).as_py()

        if references := find_task(stream.task).references:
            caption, *others = (value(CAPTION, CAPTION, place) for place in range(len(planned.views)))
            items = [value(SUBJECT, ITEM)] if stream.task == SUBJECT else []
            return build_prompt(stream.task, caption, items, sources=others if references > 1 else [])
        named = [value(stream.task, column) for column in NAMES] if find_task(stream.task).phrase else []
        return build_prompt(stream.task, value(CAPTION, CAPTION), *named)

    def _entry(self, stream: Stream, planned: PlannedSample, task: str, address: str) -> _Source:
        """The embedding of a task's prompt, from the whole row group. Raises KeyError where there is none."""
        entries = self._table(stream, stream.text_group, planned)["entries"][planned.row]
        if planned.views:
            entries = entries[planned.views[0]]
        structs = entries.values
        tasks = structs.field("task").to_pylist()
        if task not in tasks:
            raise KeyError(task)
        place = tasks.index(task)
        embedding, tokens = _array(structs.field("embedding")[place].values), structs.field("tokens")[place].as_py()
        if not tokens or embedding.size % tokens:
            raise damaged_shard(address, planned.row_group)
        return _Source((tokens, embedding.size // tokens), values=embedding)

    def _table(self, stream: Stream, group: str, planned: PlannedSample) -> pa.Table:
        """The row group of `group` that holds the sample."""
        dataset, columns = self._datasets[stream.source], stream.columns(group)

        def read() -> pa.Table:
            file = self._file(stream, group, planned.shard)
            shard = self.manifest.sources[stream.source].shards.name(planned.shard)
            try:
                return dataset.read(group, shard, columns, [planned.row_group], file.content).combine_chunks()
            except FileNotFoundError:
                raise gone_shard(file.address) from None

        return self._tables.get((dataset.uri, group, planned.shard, planned.row_group, *columns), read)

    def _file(self, stream: Stream, group: str, number: int) -> ArrayFile:
        """A shard of a group. Raises InputError for one whose content is not what the manifest pins."""
        source = self.manifest.sources[stream.source]

        def open_file() -> ArrayFile:
            name = source.shards.name(number)
            place = f"{source.dataset}/{group}/{name}.parquet"
            try:
                file = self._datasets[stream.source].arrays(group, name)
            except FileNotFoundError:
                raise gone_shard(place) from None
            # Content does not tell where row groups end, and rows are counted in them.
            is_same = np.array_equal(file.row_groups, source.shards.row_groups(number))
            if not is_same or file.content != source.shards.content[group][number].as_py():
                raise changed_shard(place)
            return file

        return self._files.get((stream.source, group, number), open_file)

    def _place(self, stream: Stream, group: str, planned: PlannedSample) -> str:
        source = self.manifest.sources[stream.source]
        row = source.shards.row_in_shard(planned.shard, planned.row_group, planned.row)
        return f"{source.dataset}/{group}/{source.shards.name(planned.shard)}.parquet row {row}"


class _Source:
    """Where an array comes from: a file that it is still to be read from, or values that are there."""

    def __init__(
        self,
        shape: tuple[int, ...],
        file: ArrayFile | None = None,
        value: int = 0,
        values: Any = None,
        page: tuple[int, int] | None = None,
    ) -> None:
        self.shape, self._file, self._value, self._values, self._page = shape, file, value, values, page

    def fill(self, target: NDArray[np.float16], wants: list[Want]) -> None:
        """Put the array into `target`, now or once `wants` is read."""
        if self._file is None:
            target.reshape(-1)[:] = self._values
        else:
            wants.append(self._file.want(self._value, target, self._page))


def _array(values: pa.Array) -> NDArray[np.float16]:
    return np.asarray(values.to_numpy(zero_copy_only=False), np.float16)
