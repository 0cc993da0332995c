"""How good an order of samples is, without reading: what workers would read, how well rows are mixed, who has how much.

Nothing here takes time: the plan and the dealing are played through.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.pictures import aspect_bucket
from training.config import TrainingConfig, load_config
from training.plan.dealing import Dealer
from training.plan.manifest import Manifest, SourcePin
from training.plan.pinned_shards import ShardPin, Shards, bits_of
from training.plan.step_plan import load_plan
from training.plan.streams import Stream

LATENT_BYTES, TEXT_BYTES = 32 * 1024, 50 * 1024  # of a row at 256²: 82 kB, as in the loaders' comparison


@dataclass(frozen=True)
class ReadRatio:
    """row_groups: bytes of row groups that a worker loads ÷ bytes of its samples, once its cache is filled.

    whole_run: the same with those that fill it. shards: that a worker takes rows of, on average.
    """

    row_groups: float
    whole_run: float
    shards: float


def pictures_manifest(shards: int, row_groups: int, rows: int, lanes: int, tasks: int = 1) -> Manifest:
    """One source of that many shards × row groups × rows, all eligible, for some tasks of equal weight."""
    names = ["text2image", "edges", "depth", "segmentation", "boxes", "pose"][:tasks]
    pins = [
        ShardPin(f"{number:06d}", [rows] * row_groups, {}, dict.fromkeys(f"{name}@256" for name in names))
        for number in range(shards)
    ]
    streams = [Stream("a", name, 1.0, 256, shards * row_groups * rows) for name in names]
    return Manifest({"a": SourcePin("a", "pictures", {}, Shards.of(pins))}, streams, lanes)


def stage2_manifest(lanes: int, shards: int = 200) -> Manifest:
    """The streams of the preset stage2, of three sources of that many shards; sets have 1 to 20 views."""
    tasks = ["deblurring", "inpainting", "upscaling", "edges", "depth", "pose", "segmentation", "boxes"]
    served = {"pictures": ["text2image@512"], "labeled": [f"{task}@256" for task in tasks], "views": ["views@256"]}
    sources = {}
    for name, keys in served.items():
        pins = [
            ShardPin(
                f"{number:06d}",
                [16] * 10,
                {},
                dict.fromkeys(keys),
                [1 + (7 * number + row) % 20 for row in range(160)] if name == "views" else [],
            )
            for number in range(shards)
        ]
        sources[name] = SourcePin(name, "sets" if name == "views" else "pictures", {}, Shards.of(pins))
    streams = [
        Stream(name, key.split("@")[0], 1.0, int(key.split("@")[1]), shards * 160)
        for name, keys in served.items()
        for key in keys
    ]
    return Manifest(sources, streams, lanes)


@dataclass(frozen=True)
class SmallOrder:
    """Of a run on few rows.

    uneven: most − least times that a row of a task was drawn. pictures, samples: distinct pictures of a step, and
    samples of its most frequent task, on average; spread: standard deviation of the latter. frames: in a step's loss.
    level: mean noise level of the frames in the loss.
    """

    uneven: int
    pictures: float
    samples: float
    spread: float
    frames: float
    level: float


def small_order(lanes: int | None = None, steps: int = 500, seed: int = 0) -> SmallOrder:
    """The order of the demo's run: 31 pictures in one shard of two row groups, of which tasks have 1 to 31.

    lanes: as configured by default, 0 for version 1.
    """
    config = load_config("debug")
    weights = config.mixture["pictures"].tasks
    eligible = {"segmentation": 15, "boxes": 16, "pose": 7, "depth": 1}
    masks = {name: np.arange(31) < eligible.get(name, 31) for name in weights}
    bits = {f"{name}@{config.size}": bits_of(mask) for name, mask in masks.items()}
    shards = Shards.of([ShardPin("000000", [16, 15], {}, bits)])
    streams = [Stream("a", name, weights[name], config.size, int(mask.sum())) for name, mask in masks.items()]
    manifest = Manifest(
        {"a": SourcePin("a", "pictures", {}, shards)}, streams, config.lanes if lanes is None else lanes
    )
    plan = load_plan(manifest, seed, config.batch, config.objective, config.reader.window)
    most = max(weights, key=lambda name: weights[name])
    drawn: dict[str, Counter[tuple[int, int]]] = {name: Counter() for name in weights}
    pictures, samples, frames, levels = [], [], [], []
    for step in range(steps):
        leveled = plan.draw(step, range(config.batch))
        for planned, sigmas, counted in leveled:
            drawn[planned.task][planned.row_group, planned.row] += 1
            levels += sigmas[counted].tolist()
        pictures.append(len({(planned.row_group, planned.row) for planned, _, _ in leveled}))
        samples.append(sum(planned.task == most for planned, _, _ in leveled))
        frames.append(sum(int(counted.sum()) for _, _, counted in leveled))
    uneven = max(max(rows.values()) - min(rows.values()) for rows in drawn.values())
    means = [float(np.mean(each)) for each in (pictures, samples, frames, levels)]
    return SmallOrder(uneven, means[0], means[1], float(np.std(samples)), means[2], means[3])


def run_config(batch: int, **changes: Any) -> TrainingConfig:
    """A configuration whose mixture is not looked at."""
    mixture = {"a": {"dataset": "none", "tasks": ["text2image"]}}
    return TrainingConfig(**{"name": "order", "steps": 1, "batch": batch, "size": 256, "mixture": mixture, **changes})


class RowGroupCache:
    """The reader's cache of row groups with sizes alone."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self.loaded = limit, 0, 0
        self._sizes: OrderedDict[tuple[Any, ...], int] = OrderedDict()

    def touch(self, key: tuple[Any, ...], size: int) -> None:
        """Load what is not held, and drop what was used longest ago."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return
        self._sizes[key] = size
        self._held += size
        self.loaded += size
        while self._held > self._limit and len(self._sizes) > 1:
            self._held -= self._sizes.popitem(last=False)[1]


def read_ratio(manifest: Manifest, config: TrainingConfig, workers: int, steps: int, fill: int) -> ReadRatio:
    """What workers read in `steps` steps after the `fill` steps that fill their caches; a few of them stand for all."""
    dealer = Dealer(manifest, config)
    ranks = sorted({0, workers // 3, workers // 2, workers - 1})
    caches = {rank: RowGroupCache(config.reader.cache_mb << 20) for rank in ranks}
    shards: dict[int, set[tuple[int, int]]] = {rank: set() for rank in ranks}
    delivered = before = loaded_before = 0
    for step in range(fill + steps):
        if step == fill:
            before, loaded_before = delivered, sum(cache.loaded for cache in caches.values())
        for rank, cache in caches.items():
            for planned in (leveled[0] for pack in dealer.deal(step, rank, workers)[0] for leveled in pack):
                stream = manifest.streams[planned.stream]
                rows = int(manifest.sources[stream.source].shards.row_groups(planned.shard)[planned.row_group])
                groups = [stream.latents, stream.condition] if stream.condition else [stream.latents]
                for group, size in [*((group, LATENT_BYTES) for group in groups), ("text", TEXT_BYTES)]:
                    cache.touch((stream.source, group, planned.shard, planned.row_group), rows * size)
                    delivered += size
                shards[rank].add((planned.stream, planned.shard))
    loaded = sum(cache.loaded for cache in caches.values())
    return ReadRatio(
        (loaded - loaded_before) / (delivered - before),
        loaded / delivered,
        float(np.mean([len(each) for each in shards.values()])),
    )


def read_ratio_64(steps: int = 400) -> float:
    """Bytes of row groups ÷ bytes of samples, 64 workers, batch 256: shards of 10 row groups of 16 rows of 82 kB."""
    config = run_config(256)
    return read_ratio(pictures_manifest(2000, 10, 16, config.lanes), config, 64, steps, 200).row_groups


def row_order(manifest: Manifest, config: TrainingConfig, steps: int, first: int = 0) -> Iterator[NDArray[np.int64]]:
    """The rows of each step, numbered over all shards as they are stored."""
    plan = Dealer(manifest, config).plan
    shards = manifest.sources["a"].shards
    for step in range(first, first + steps):
        yield np.array(
            [shards.row_starts[s.shard] + shards.row_in_shard(s.shard, s.row_group, s.row) for s in plan.step(step)]
        )


def shuffle_variance(
    batch: int = 32, window: int = 8, lanes: int | None = None, kin: int = 16, shards: int = 25
) -> float:
    """Variance of a batch's mean × batch, over an epoch, of features that `kin` neighboring rows share.

    1 is a full shuffle. Shards have 10 row groups of 16 rows; lanes: as configured by default, 0 for version 1.
    """
    config = run_config(batch, reader={"window": window, "lanes": lanes or None})
    manifest = pictures_manifest(shards, 10, 16, config.lanes if lanes != 0 else 0)
    batches = np.stack(list(row_order(manifest, config, shards * 160 // batch))) // kin
    features = np.random.default_rng(0).standard_normal((64, int(batches.max()) + 1))
    return float(features[:, batches].mean(-1).var(1).mean()) * batch


def sorted_variance(batch: int = 32, window: int = 8, lanes: int | None = None, shards: int = 250) -> float:
    """The same of data that are sorted by a value: the value is the number of the row."""
    config = run_config(batch, reader={"window": window, "lanes": lanes or None})
    manifest = pictures_manifest(shards, 10, 16, config.lanes if lanes != 0 else 0)
    rows = np.stack(list(row_order(manifest, config, shards * 160 // batch))) / (shards * 160)
    return float(rows.mean(1).var() * batch * 12)


def token_imbalance(
    manifest: Manifest, config: TrainingConfig, workers: int, steps: int = 20, aspects: bool = False
) -> tuple[float, float, float]:
    """(tokens of the fullest worker ÷ mean − 1: mean and most over steps, and the mean that longest-first would reach).

    aspects: count the tokens of pictures of 1:2 to 2:1, to which the plan's are close.
    """
    from training.plan.packing import deal_to_one

    dealer, rng = Dealer(manifest, config), np.random.default_rng(0)
    found, ideal = [], []
    for step in range(steps):
        loads = []
        sizes = dealer.plan.sizes(step).tokens
        true = sizes * _aspect_factors(rng, len(sizes)) if aspects else sizes.astype(float)
        for rank in range(workers):
            dealt = dealer.deal(step, rank, workers)[0]
            loads.append(sum(true[planned.index % config.batch] for pack in dealt for planned, _, _ in pack))
        found.append(max(loads) / (sum(loads) / workers) - 1)
        budget = config.workers.pack_tokens
        packs = [deal_to_one(sizes.tolist(), budget, workers, rank)[0] for rank in range(workers)]
        best = [sum(true[place] for pack in each for place in pack) for each in packs]
        ideal.append(max(best) / (sum(best) / workers) - 1)
    return float(np.mean(found)), float(np.max(found)), float(np.mean(ideal))


def _aspect_factors(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count,) tokens of pictures of random aspects ÷ those of a square."""
    factors = []
    for aspect in np.exp2(rng.uniform(-1, 1, count)):
        width, height = aspect_bucket(round(1000 * aspect), 1000, 256)
        factors.append(width * height / 256**2)
    return np.array(factors)
